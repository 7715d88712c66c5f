"""Items and users of a table, as `gatehouse items publish` and `users publish` read them."""

import pyarrow.parquet as parquet
import pytest

from models import __main__ as cli, data
from models.data import files
from tests.models import impressions
from tests.models.impressions import columns, folder, read, table

USUAL = {"items": None, "users": None}


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
    written = data.write_tables(config, tmp_path / "out", USUAL)
    assert written[tmp_path / "out" / "items.parquet"] == 8
    found = parquet.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert {row["item"]: row for row in found} == {
        key: {"item": key, "quality": [row["price"], row["age"]]} for key, row in want.items()
    }
    want = last_rows("user", "user", "recent")
    assert written[tmp_path / "out" / "users.parquet"] == len(want)
    found = parquet.read_table(tmp_path / "out" / "users.parquet").to_pylist()
    assert {row["user"]: row for row in found} == {
        key: row | {"recent": row["recent"][:2]} for key, row in want.items()
    }


def test_missing_values_stay_missing_and_rows_without_a_key_are_left_out(tmp_path):
    price, item = columns()["price"], columns()["item"]
    price[-1], item[-2] = None, None
    schema = ('missing = "refuse"', "")
    config = read(tmp_path, schema=schema, price=price, item=item).data
    data.write_tables(config, tmp_path, USUAL | {"items": "item"})
    found = parquet.read_table(tmp_path / "items.parquet").to_pylist()
    assert next(row for row in found if row["item"] == item[-1])["quality"][0] is None
    assert None not in [row["item"] for row in found]


def test_command_says_what_it_wrote_or_why_not(tmp_path, capsys):
    config, out = folder(tmp_path), tmp_path / "out"
    assert cli.main(["tables", "--config", str(config), "--out", str(out)]) == 0
    users = len(set(columns()["user"]))
    assert capsys.readouterr().out == (
        f"{out / 'items.parquet'}: 8 rows, for gatehouse items publish\n"
        f"{out / 'users.parquet'}: {users} rows, for gatehouse users publish\n"
    )
    assert cli.main(["tables", "--config", str(config), "--item-key", "itme"]) == 2
    assert capsys.readouterr().err == (
        '--item-key: "itme" is no id feature of the items (id features: item); did you mean '
        '"item"?\n'
    )
