"""Items and users of a table, as `gatehouse items publish` and `users publish` read them."""

import pyarrow.parquet as parquet
import pytest

from models import __main__ as cli, data
from models.data import files
from tests import TINY_EXPERIMENT
from tests.models import impressions
from tests.models.impressions import columns, folder, read, table


def last_rows(key, *names):
    """A plain loop: the last row of each key."""
    rows = [
        dict(zip(names, row, strict=True)) for row in zip(*map(columns().get, names), strict=True)
    ]
    return {row[key]: row for row in rows}


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_last_row_of_each_key_has_the_values_of_requests(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(files, "READ_BYTES", 500)  # several chunks
    schema = ("max_length = 2\n", 'max_length = 2\nseparator = "|"\n')
    config = read(tmp_path, schema=schema).data
    if ending == "csv":
        (tmp_path / "rows.parquet").unlink()
        impressions.write_csv(tmp_path / "rows.csv", table())
    want = last_rows("item", "item", "price", "age")
    assert data.write_entities(config, "items", None, tmp_path / "out" / "items.parquet") == 8
    found = parquet.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert {row["item"]: row for row in found} == {
        key: {"item": key, "quality": [row["price"], row["age"]]} for key, row in want.items()
    }
    want = last_rows("user", "user", "recent")
    rows = data.write_entities(config, "users", None, tmp_path / "users.parquet")
    assert rows == len(want)
    found = parquet.read_table(tmp_path / "users.parquet").to_pylist()
    assert {row["user"]: row for row in found} == {
        key: row | {"recent": row["recent"][:2]} for key, row in want.items()
    }


def test_missing_values_stay_missing_and_rows_without_a_key_are_left_out(tmp_path):
    price, item = columns()["price"], columns()["item"]
    price[-1], item[-2] = None, None
    schema = ('missing = "refuse"', "")
    config = read(tmp_path, schema=schema, price=price, item=item).data
    data.write_entities(config, "items", "item", tmp_path / "items.parquet")
    found = parquet.read_table(tmp_path / "items.parquet").to_pylist()
    assert next(row for row in found if row["item"] == item[-1])["quality"][0] is None
    assert None not in [row["item"] for row in found]


def test_command_says_what_it_wrote_or_why_not(tmp_path, capsys):
    config, out = folder(tmp_path), tmp_path / "items.parquet"
    assert cli.main(["items", "--config", str(config), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 8 items; publish: gatehouse items publish {out}\n"
    assert cli.main(["items", "--config", str(config), "--key", "itme"]) == 2
    assert capsys.readouterr().err == (
        '--key: "itme" is no id feature of the items (id features: item); did you mean "item"?\n'
    )
    assert cli.main(["users", "--config", str(TINY_EXPERIMENT)]) == 2
    assert "users are read from tables, but the source is" in capsys.readouterr().err
