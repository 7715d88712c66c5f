"""Small tables on disk, made from Python values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.artifacts.tables.description import TableColumn, TableKey, record_dtype
from app.artifacts.tables.listing import ListedTable
from app.artifacts.tables.publish import publish_delta, publish_table
from app.artifacts.tables.segment import Records
from app.artifacts.tables.writer import TablePlan, TableWriter

FEATURES = (
    DenseInput(name="price", side="candidate", dim=1, default=(0.5,)),
    DenseInput(name="vector", side="candidate", dim=3),
    IdInput(name="brand", side="candidate", vocabulary_size=10, default=7),
    IdListInput(name="tags", side="candidate", vocabulary_size=10, max_length=2),
)

Rows = Mapping[Any, float]
"""Key to a number from which all columns of its row are made."""


def record(number: float) -> Records:
    """Return the row that stands for a number, `[1]`."""
    one = np.zeros(1, record_dtype(list(FEATURES)))
    one["price"], one["vector"] = number, [number, -number, 1.0]
    one["brand"], one["tags"] = int(number) % 10, [int(number) % 10, -1]
    return one


DEFAULTS = record(0)
DEFAULTS["price"], DEFAULTS["vector"], DEFAULTS["brand"] = 0.5, 0.0, 7


def plan(store: Path, key_type: str = "int64", **changes: Any) -> TablePlan:
    """Return the plan of a table of items of the model `feed`."""
    settings: dict[str, Any] = {
        "model": store / "feed",
        "kind": "items",
        "key": TableKey(name="item_id", type=key_type),
        "columns": tuple(TableColumn(feature=feature) for feature in FEATURES),
        "defaults": DEFAULTS,
    }
    return TablePlan(**settings | changes)


def publish(plan: TablePlan, rows: Rows) -> ListedTable:
    """Publish a table."""
    return publish_table(plan, lambda writer: add(writer, rows))


def change(
    plan: TablePlan, rows: Rows, removed: Sequence[Any] = (), table: int | None = None
) -> ListedTable:
    """Publish a delta."""

    def fill(writer: TableWriter) -> None:
        add(writer, rows)
        if removed:
            writer.remove(as_keys(plan, list(removed)))

    return publish_delta(plan, fill, table)


def add(writer: TableWriter, rows: Rows) -> None:
    """Add rows to a table."""
    if rows:
        records = np.concatenate([record(number) for number in rows.values()])
        writer.add(as_keys(writer.plan, list(rows)), records)


def as_keys(plan: TablePlan, keys: list[Any]) -> Any:
    """Return keys as a table takes them."""
    return np.array(keys, np.int64) if plan.key.type == "int64" else keys
