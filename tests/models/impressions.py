"""A small table of impressions, written as Parquet or as CSV, with a schema and an experiment."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv
import pyarrow.parquet

from models.training import experiment
from models.training.experiment import Experiment

REQUESTS, CANDIDATES = 60, 4

SCHEMA = """
files = ["rows.*"]
group = "request"
user = "user"

[[features]]
name = "user"
kind = "id"
side = "user"
encoding = { kind = "hash", buckets = 50 }

[[features]]
name = "recent"
kind = "id_list"
side = "user"
max_length = 2
shared_with = "item"

[[features]]
name = "item"
kind = "id"
side = "candidate"
encoding = { kind = "vocabulary", file = "items.jsonl" }

[[features]]
name = "quality"
kind = "dense"
side = "candidate"
columns = ["price", "age"]
missing = "refuse"

[[labels]]
name = "click"
kind = "binary"

[[labels]]
name = "like"
kind = "binary"

[[labels]]
name = "dwell"
kind = "duration"
"""

EXPERIMENT = """
name = "shop"

[network]
architecture = "shared_bottom"
expert_hidden_units = [4]
tower_hidden_units = [2]

[data]
source = "files"
schema_file = "schema.toml"

[embedding]
dim = 2

[[tasks]]
name = "click"
kind = "binary"

[[tasks]]
name = "like"
kind = "binary"
sample_space = "click"

[training]
epochs = 2
batch_rows = 32

[ranking]
weights = { click = 1.0, like = 1.0 }
"""


def columns() -> dict[str, list[Any]]:
    """The table, a list a column: a request is four rows of one user."""
    random = np.random.default_rng(0)
    rows = REQUESTS * CANDIDATES
    request = np.repeat(np.arange(REQUESTS), CANDIDATES)
    users = random.integers(9, size=REQUESTS)
    recent = [[f"item {i}" for i in random.integers(8, size=user % 4)] for user in users]
    click = random.integers(2, size=rows)
    like = random.integers(2, size=rows)
    return {
        "request": request.tolist(),
        "user": [f"user-{users[number]}" for number in request],
        "recent": [recent[number] for number in request],
        "item": [f"item {i}" for i in random.integers(8, size=rows)],
        "price": random.random(rows).round(3).tolist(),
        "age": random.integers(30, size=rows).tolist(),
        "click": click.tolist(),
        "like": [int(like[row]) if click[row] else None for row in range(rows)],
        "dwell": (click * random.integers(1, 60, size=rows)).tolist(),
    }


def table(**changes: Any) -> pa.Table:
    """The table, with columns changed; None leaves one out."""
    kept = {name: column for name, column in (columns() | changes).items() if column is not None}
    return pa.table(kept)


def write_parquet(path: Path, content: pa.Table, *, row_group_size: int = 100) -> None:
    pyarrow.parquet.write_table(content, path, row_group_size=row_group_size)


def write_csv(path: Path, content: pa.Table) -> None:
    """Lists become text with a bar between the ids, since these have spaces."""
    recent = compute.binary_join(content["recent"], "|")
    place = content.schema.get_field_index("recent")
    pyarrow.csv.write_csv(content.set_column(place, "recent", recent), path)


def folder(
    path: Path,
    *,
    schema: tuple[str, str] = ("", ""),
    tasks: tuple[str, str] = ("", ""),
    items: str = "01234567",
    **changes: Any,
) -> Path:
    """Write everything and return the experiment's path; (old, new) pairs change the texts."""
    assert schema[0] in SCHEMA
    assert tasks[0] in EXPERIMENT
    path.mkdir(parents=True, exist_ok=True)
    (path / "schema.toml").write_text(SCHEMA.replace(*schema) if schema[0] else SCHEMA + schema[1])
    text = EXPERIMENT.replace(*tasks) if tasks[0] else EXPERIMENT
    (path / "shop.toml").write_text(text)
    (path / "items.jsonl").write_text("".join(f'"item {digit}"\n' for digit in items))
    write_parquet(path / "rows.parquet", table(**changes))
    return path / "shop.toml"


def read(path: Path, **changes: Any) -> Experiment:
    return experiment.read(folder(path, **changes))
