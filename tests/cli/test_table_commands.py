"""`gatehouse items` and `gatehouse users` on a store."""

import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from torch import Tensor, nn

from app.artifacts.encoding import Listed, write_vocabulary
from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.artifacts.publish import publish
from app.artifacts.store import Store
from app.artifacts.tables.listing import tables_of
from app.artifacts.tables.table import open_table
from app.cli.main import main
from app.errors import ExitCode
from tests import REPOSITORY
from tests.cli.item_tables import ROWS, default_store, items, table
from tests.support.artifacts import corrupt
from tests.support.builders import Request, batch, description, published, scripted
from tests.support.server import patient_environment, running_server

VOCABULARY = "vocabulary.item.jsonl"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A store with `feed/1`; its items have the features `item` (id) and `quality` (2 numbers)."""
    store = tmp_path_factory.mktemp("models")
    published(store)
    return store


@pytest.fixture
def store(models, tmp_path, monkeypatch):
    return default_store(models, tmp_path, monkeypatch)


def run(capsys, *arguments, code=ExitCode.OK):
    found = main(["items", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert found == code, err
    return out if code == ExitCode.OK else err.replace("gatehouse: ", "")


def test_publish_list_show(store, capsys):
    out = run(capsys, "publish", items(ROWS))
    assert out.startswith(
        "published items/1 of feed: 3 rows, 2 features, key item (int64), 0.0 MB, encoded for "
        "version 1, in "
    )
    found = table(store)
    assert found.take(found.find(np.array([2])))["quality"].tolist() == [
        np.array([0.3, 0.4], np.float32).tolist()
    ]
    (line,) = (line for line in run(capsys, "list").splitlines() if "feed 1" in line)
    for cell in ("3", "item (int64)", "unknown keys: error"):
        assert f"│ {cell}" in line
    assert run(capsys, "show", 3) == ("items/1 of feed, item 3\n  item: 3\n  quality: 0.5 0.6\n")
    assert "items/1 has no key 4" in run(capsys, "show", 4, code=ExitCode.FAILED)
    assert "keys of this table are integers" in run(capsys, "show", "x", code=ExitCode.USAGE)


def test_users_are_published_by_a_key_that_is_no_feature(store, capsys):
    users = [{"user_id": f"u{n}", "age": n, "recent": [1, 2]} for n in range(3)]
    path = items("\n".join(map(json.dumps, users)), "users.jsonl")
    assert main(["users", "publish", path]) == ExitCode.USAGE
    assert "choose the key with --key (id features: none; columns of the file: user_id, age" in (
        capsys.readouterr().err
    )
    assert main(["users", "publish", path, "--key", "user_id", "--max-age", "36h"]) == ExitCode.OK
    found = table(store, "users")
    assert (found.key, found.key_type, found.max_age_s) == ("user_id", str, 36 * 3600)
    taken = found.take(found.find(["u2", "u9"]))
    assert taken["age"].tolist() == [[2.0], [0.0]]
    assert taken["recent"].tolist() == [[1, 2, -1], [-1, -1, -1]]
    assert main(["users", "publish", path]) == ExitCode.OK  # the key of the newest table
    assert main(["users", "list"]) == ExitCode.OK
    assert "at most 36h old" in capsys.readouterr().out
    assert main(["users", "publish", path, "--unknown", "drop"]) == ExitCode.USAGE


@pytest.mark.parametrize("name", ["_id", "item id", "ключ", "a.b", "$id"])
def test_a_key_may_have_the_name_of_any_column(store, capsys, name):
    path = items(f"{name},quality,item\nx,1 2,1\ny,3 4,2\n")
    run(capsys, "publish", path, "--key", name)
    run(capsys, "publish", path, "--delta")
    assert table(store).key == name
    assert run(capsys, "show", "y").startswith(f"items/1.1 of feed, {name} y\n")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("", ""),
        ("a\tb", ""),
        ("a/b", '; to read that column, use --key a-b --column "a-b=a/b"'),
        (".id", '; to read that column, use --key id --column "id=.id"'),
    ],
)
def test_a_name_that_no_key_can_have_is_told_with_the_nearest(store, capsys, name, hint):
    path = items(f"{name},quality,item\nx,1 2,1\n")
    message = run(capsys, "publish", path, "--key", name, code=ExitCode.USAGE)
    assert "must have 1 to 64 characters, no slash or control character among them" in message
    assert message.endswith(f"no space at either end{hint}\n")
    if hint:
        run(capsys, "publish", path, *shlex.split(hint.partition(" use ")[2]))
        assert table(store).find(["x"]) == [0]


@pytest.mark.usefixtures("store")
def test_a_column_of_parquet_that_cannot_be_the_key_is_one_problem(capsys):
    quality = pa.array([[1.0, 2.0]] * 2)
    skus = {"b.parquet": [b"x", b"y"], "n.parquet": [1, 2], "s.parquet": ["x", "y"]}
    for name, sku in skus.items():
        parquet.write_table(pa.table({"sku": sku, "item": [1, 2], "quality": quality}), name)
    key = ("--key", "sku")
    assert run(capsys, "publish", "b.parquet", *key, code=ExitCode.USAGE).splitlines() == [
        'b.parquet: column "sku" is binary, the key needs integers or strings',
        "nothing is published: 1 problem",
    ]
    message = run(capsys, "publish", "n.parquet", "s.parquet", *key, code=ExitCode.USAGE)
    assert message.startswith('n.parquet: column "sku" is int64, the key needs strings\n')
    run(capsys, "publish", "n.parquet", *key)
    message = run(capsys, "publish", "s.parquet", "--delta", code=ExitCode.USAGE)
    assert message.startswith('s.parquet: column "sku" is string, the key needs integers\n')


def test_features_of_any_name_may_be_sent_or_be_the_key(store, capsys):
    inputs = (
        DenseInput(name="age", side="user"),
        IdInput(name="_артикул id", side="candidate", vocabulary_size=10),
        DenseInput(name="цена", side="candidate"),
        DenseInput(name="size", side="candidate"),
    )
    publish(Store(store), description(inputs=inputs), scripted(Sized()), batch(inputs))
    run(capsys, "publish", items("_артикул id,size\n1,2\n"), "--sent", "цена")
    found = table(store)
    assert (found.key, found.description.sent) == ("_артикул id", ("цена",))


def test_a_file_whose_name_is_not_utf8_is_published(store, capsys):
    name = os.fsdecode(b"items\xff.csv")
    Path(name).write_text(ROWS, encoding="utf-8")
    run(capsys, "publish", name)
    assert table(store).description.source == "items\ufffd.csv"


def test_bad_rows_are_listed_with_file_line_column_and_rule(store, capsys):
    path = items(ROWS + "x,1 2\n5,1\n6,nan 1\n7\n")
    assert run(capsys, "publish", path, code=ExitCode.USAGE).splitlines() == [
        'items.csv, line 5: column "item": must be an integer that fits in int64',
        'items.csv, line 6: column "quality": must have 2 numbers, has 1',
        'items.csv, line 7: column "quality", element 1: must be finite and within the range of '
        "float32",
        "items.csv, line 8: has 1 columns, the header has 2",
        "nothing is published: 4 bad rows",
    ]
    assert tables_of(store / "feed", "items") == []
    assert list((store / "feed" / "items").iterdir()) == []
    out, err = main(["items", "publish", path, "--max-bad-rows", "4"]), capsys.readouterr().err
    assert out == ExitCode.OK
    assert "left out: items.csv, line 8: has 1 columns" in err
    assert table(store).rows == 3


@pytest.mark.usefixtures("store")
def test_twenty_bad_rows_are_listed_and_all_are_counted(capsys):
    path = items(ROWS + "9,z 1\n" * 1234)
    lines = run(capsys, "publish", path, code=ExitCode.USAGE).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "nothing is published: 1,234 bad rows"
    for bad, total in ((20, []), (21, ["gatehouse: left out: 21 bad rows in all"])):
        path = items(ROWS + "9,z 1\n" * bad)
        options = ["--key", "item", "--max-bad-rows", "21"]
        assert main(["items", "publish", path, *options]) == ExitCode.OK
        left_out = capsys.readouterr().err.splitlines()
        assert left_out[20:] == total
        assert all(line.startswith("gatehouse: left out: items.csv, ") for line in left_out[:20])


def test_a_guessed_key_of_few_values_is_doubted(store, capsys):
    inputs = (
        DenseInput(name="age", side="user"),
        IdInput(name="gender", side="user", vocabulary_size=3),
        IdInput(name="item", side="candidate", vocabulary_size=1001),
        DenseInput(name="size", side="candidate"),
    )
    publish(Store(store), description(inputs=inputs), scripted(Sized()), batch(inputs))
    repeated = items("user_id,gender,age\n7,1,30\n8,1,40\n", "users.csv")
    assert main(["users", "publish", repeated]) == ExitCode.USAGE
    assert capsys.readouterr().err.endswith(
        "nothing is published: 1 repeated key; the key is gender, the only id feature: "
        "--key names another\n"
    )
    path = items("user_id,gender,age\n7,1,30\n8,2,40\n", "users.csv")
    assert main(["users", "publish", path]) == ExitCode.OK
    assert capsys.readouterr().err == (
        "gatehouse: warning: the key is gender, the only id feature, which has 3 values at most: "
        "if users have another key, publish again with --key and --force (columns not used: "
        "user_id); --key gender omits this warning\n"
    )
    for arguments in ([], ["--key", "gender"], ["--delta"], ["--key", "user_id", "--force"]):
        assert main(["users", "publish", path, *arguments]) == ExitCode.OK
        assert capsys.readouterr().err == ""
    assert main(["items", "publish", items("item,size\n1,2\n")]) == ExitCode.OK
    assert capsys.readouterr().err == ""


def test_repeated_keys_are_named_by_their_places(store, capsys):
    other = items("item,quality\n7,1 2\n2,1 2\n", "more.csv")
    lines = run(capsys, "publish", items(ROWS + "3,0 0\n"), other, code=ExitCode.USAGE).splitlines()
    assert lines == [
        "items.csv, line 5: repeats the key of items.csv, line 4",
        "more.csv, line 3: repeats the key of items.csv, line 3",
        "nothing is published: 2 repeated keys; the key is item, the only id feature: --key names "
        "another",
    ]
    assert tables_of(store / "feed", "items") == []


@pytest.mark.usefixtures("store")
def test_every_reason_against_a_file_is_told_at_once(capsys):
    parquet.write_table(pa.table({"itm": [1], "quality": ["a"]}), "items.parquet")
    arguments = ["--unknown", "default", "--sent", "colour", "--column", "qualty=q"]
    lines = run(capsys, "publish", "items.parquet", *arguments, code=ExitCode.USAGE).splitlines()
    assert lines == [
        '--column qualty: is not a feature; did you mean "quality"? (item, quality)',
        'items.parquet: no column "item", the key; did you mean "itm"? (columns: itm, quality)',
        'items.parquet: column "quality" is string, feature "quality" needs lists of numbers',
        "--sent colour: is not a feature (item, quality)",
        'feature "quality": has no default, which --unknown default needs',
        "nothing is published: 5 problems",
    ]


def test_missing_and_unused_columns(store, capsys):
    message = run(capsys, "publish", items("item,qualty\n1,2\n"), code=ExitCode.USAGE)
    assert message.splitlines()[0] == (
        'items.csv: no column "quality" for feature "quality": it has no default; '
        'did you mean "qualty"?'
    )
    out = run(capsys, "publish", items("item,colour\n1,2\n"), "--sent", "quality")
    assert "columns not used: colour" in out
    assert table(store).description.sent == ("quality",)
    path = items("user_id,age\n1,30\n", "users.csv")
    assert main(["users", "publish", path, "--key", "user_id"]) == ExitCode.OK
    assert "without a column, so always the default: recent" in capsys.readouterr().out


def test_columns_may_have_other_names_and_be_several(store, capsys):
    path = items("id,a,b\n1,0.5,1.5\n")
    run(capsys, "publish", path, "--column", "item=id", "--column", "quality=a,b")
    assert table(store).take(np.array([0]))["quality"].tolist() == [[0.5, 1.5]]
    message = run(capsys, "publish", path, "--column", "quality=a,b,c", code=ExitCode.USAGE)
    assert "--column quality: 3 columns, the feature needs 2" in message


def test_a_delta_of_rows_that_end_in_padding_bytes_is_published(store, capsys):
    users = Path("users.jsonl")
    for age, more in ((30, ["--key", "user"]), (40, ["--delta"])):
        users.write_text(json.dumps({"user": 1, "age": age, "recent": [4, 7]}) + "\n")
        assert main(["users", "publish", str(users), *more]) == ExitCode.OK
    capsys.readouterr()
    found = table(store, "users")
    assert found.description.record.itemsize == 32  # 3 ids, a number, 4 bytes of padding
    row = found.take(found.find(np.array([1])))
    assert (row["age"].tolist(), row["recent"].tolist()) == ([[40]], [[4, 7, -1]])


def test_deltas_change_rows_and_compaction_keeps_them(store, capsys):
    run(capsys, "publish", items(ROWS), "--unknown", "drop")
    change = items("item,quality,gone\n2,7 7,\n9,1 1,no\n2,8 8,\n1,,yes\n", "change.csv")
    out = run(capsys, "publish", change, "--delta", "--deleted", "gone")
    assert out.startswith("published items/1.1 of feed: 2 rows, 1 removed key, 2 features")
    found = table(store)
    assert found.find(np.array([1, 2, 3, 9]))[0] == -1
    assert found.take(found.find(np.array([2, 9])))["quality"].tolist() == [[8, 8], [1, 1]]
    assert (found.rows, found.unknown) == (3, "drop")
    assert "published items/2 of feed: items/1.1, 3 rows" in run(capsys, "compact")
    assert table(store).label == "2"
    assert table(store).unknown == "drop"
    assert "items/2 has no deltas" in run(capsys, "compact", code=ExitCode.USAGE)
    run(capsys, "publish", change, "--delta", "--table", "1", "--deleted", "gone")
    assert [listed.deltas for listed in tables_of(store / "feed", "items")] == [(1, 2), ()]
    message = run(capsys, "publish", items("item\n1\n"), "--delta", code=ExitCode.USAGE)
    assert 'feature "quality": a delta has every column of its table' in message
    message = run(capsys, "publish", change, "--delta", "--deleted", "gnoe", code=ExitCode.USAGE)
    assert 'change.csv: no column "gnoe" for --deleted; did you mean "gone"?' in message
    for option in (["--key", "item"], ["--unknown", "error"], ["--sent", "quality"]):
        message = run(capsys, "publish", change, "--delta", *option, code=ExitCode.USAGE)
        assert f"{option[0]} cannot be used with --delta" in message
    message = run(capsys, "publish", change, "--table", "1", code=ExitCode.USAGE)
    assert "--table is for deltas; add --delta" in message
    message = run(capsys, "publish", change, "--delta", "--table", "8", code=ExitCode.USAGE)
    assert "feed has no items/8 (tables: 1, 2)" in message


def test_compaction_does_not_put_an_old_table_over_the_one_that_serves(store, capsys):
    run(capsys, "publish", items(ROWS))
    run(capsys, "publish", items("item,quality\n1,7 7\n"), "--delta")
    skus = "item,quality,sku\n" + "".join(f"{n},1 2,s{n}\n" for n in range(3))
    run(capsys, "publish", items(skus, "skus.csv"), "--key", "sku", "--force")
    assert run(capsys, "compact", "--table", 1, code=ExitCode.USAGE) == (
        "nothing is published: version 1 serves from items/2, which is newer than items/1, and "
        "would get the old rows; --force publishes them\n"
    )
    assert [listed.version for listed in tables_of(store / "feed", "items")] == [1, 2]
    (store / "feed" / "items" / "2" / "rows").unlink()  # nothing serves from it
    assert "published items/3 of feed" in run(capsys, "compact", "--table", 1)
    run(capsys, "publish", items(skus, "skus.csv"), "--key", "sku", "--force")
    assert "published items/5 of feed" in run(capsys, "compact", "--table", 1, "--force")


def test_a_table_that_other_versions_serve_from_may_be_compacted(store, capsys):
    with_vocabulary(store, ["apple"])
    run(capsys, "publish", items(ROWS), "--version", "1")
    run(capsys, "publish", items("item,quality\n1,7 7\n"), "--delta")
    run(capsys, "publish", items("item,quality\napple,1 2\n"), "--key", "item")
    manifest = store / "feed" / "2" / "model.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-9])
    message = run(capsys, "compact", "--table", 1, code=ExitCode.USAGE)
    assert message.startswith("nothing is published: feed/2 may need any of the tables: model.json")
    manifest.write_bytes(content)
    assert "published items/3 of feed: items/1.1, 3 rows" in run(capsys, "compact", "--table", 1)


@pytest.mark.usefixtures("store")
def test_one_row_is_counted_as_one(capsys):
    path = items("item,quality\n1,1 1\n")
    assert ": 1 row, 2 features" in run(capsys, "publish", path)
    run(capsys, "publish", path, "--delta")
    assert run(capsys, "compact").endswith(", 1 row\n")


class Sized(nn.Module):
    """[B, 2]: the user's age plus the candidate's size, twice."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        total = user["age"][row_to_request] + candidate["size"]  # [B, 1]
        return torch.cat([total, total], dim=1)  # [B, 2]


def with_vocabulary(store, words):
    """Publish a version of `feed` whose items are words."""
    inputs = (
        DenseInput(name="age", side="user"),
        IdListInput(name="recent", side="user", vocabulary_size=10, max_length=3),
        IdInput(
            name="item", side="candidate", vocabulary_size=10, encoding=Listed(file=VOCABULARY)
        ),
        DenseInput(name="quality", side="candidate", dim=2),
    )
    content = {VOCABULARY: write_vocabulary(words)}
    model = description(inputs=inputs)
    return publish(Store(store), model, scripted(Request()), batch(inputs), content)


def test_a_table_belongs_to_the_vocabulary_of_a_version(store, capsys):
    with_vocabulary(store, ["apple", "pear"])
    with_vocabulary(store, ["plum", "apple", "pear"])
    fruit = items("item,quality\napple,1 2\npear,3 4\nkiwi,5 6\n")
    out = run(capsys, "publish", fruit, "--version", "2")
    assert 'feature "item": 1 unknown id' in out
    assert "encoded for version 2" in out
    run(capsys, "publish", fruit)
    run(capsys, "publish", items(ROWS, "numbers.csv"), "--version", "1", "--key", "item")
    first, second, third = (open_table(e, "feed") for e in tables_of(store / "feed", "items"))
    assert first.take(first.find(["apple", "pear", "kiwi"]))["item"].tolist() == [1, 2, 0]
    assert second.take(second.find(["apple", "pear", "kiwi"]))["item"].tolist() == [2, 3, 0]
    listed = [line for line in run(capsys, "list").splitlines() if "feed" in line]
    assert [line.split("│")[7].strip() for line in listed] == ["2", "3", "1"]
    assert run(capsys, "show", "pear", "--table", "1").splitlines()[1] == "  item: 2 (pear)"
    shutil.rmtree(store / "feed" / "2")
    listed = [line for line in run(capsys, "list").splitlines() if "feed 1" in line]
    assert 'feature "item": the table was made with another vocabulary' in listed[0]
    message = run(capsys, "publish", fruit, "--delta", "--table", "1", code=ExitCode.USAGE)
    assert "nothing is published: no version of the model fits items/1" in message
    assert third.key_type is int


def test_a_table_that_would_break_most_requests_needs_force(store, capsys):
    header, *rows = ROWS.splitlines(keepends=True)
    empty = items(header, "empty.csv")
    nothing = "nothing is published: there is no row\n"
    assert run(capsys, "publish", empty, code=ExitCode.USAGE) == nothing
    run(capsys, "publish", items(ROWS))
    assert run(capsys, "publish", empty, "--force", code=ExitCode.USAGE) == nothing
    small = items(header + rows[0], "small.csv")
    assert run(capsys, "publish", small, code=ExitCode.USAGE) == (
        "nothing is published: 1 row, under half of the 3 of items/1; --force publishes them\n"
    )
    skus = items("item,quality,sku\n" + "".join(f"{n},1 2,s{n}\n" for n in range(3)), "skus.csv")
    assert run(capsys, "publish", skus, "--key", "sku", code=ExitCode.USAGE).splitlines() == [
        "the key would be sku (string), that of items/1 is item (int64): requests with the former "
        "keys would fail; --force changes it",
        "nothing is published: 1 problem",
    ]
    assert [listed.version for listed in tables_of(store / "feed", "items")] == [1]
    run(capsys, "publish", items(header + "".join(rows[:2]), "most.csv"))
    run(capsys, "publish", skus, "--key", "sku", "--force")
    assert table(store).key == "sku"
    run(capsys, "publish", small, "--key", "item", "--force")
    assert (table(store).rows, table(store).key) == (1, "item")


def test_prune_keeps_what_a_version_needs(store, capsys):
    with_vocabulary(store, ["apple"])
    run(capsys, "publish", items(ROWS), "--version", "1")
    for _ in range(3):
        run(capsys, "publish", items("item,quality\napple,1 2\n"), "--key", "item")
    would = run(capsys, "prune", "--keep", "1", "--dry-run")
    assert would == "would remove items/2 of feed\nwould remove items/3 of feed\n"
    assert run(capsys, "prune", "--keep", "1") == would.replace("would remove", "removed")
    assert [listed.version for listed in tables_of(store / "feed", "items")] == [1, 4]
    assert "--keep must be 1 or more" in run(capsys, "prune", "--keep", "0", code=ExitCode.USAGE)


@pytest.mark.parametrize("damage", [Path.unlink, corrupt])
def test_prune_does_not_count_a_table_that_servers_refuse(store, capsys, damage):
    for _ in range(4):
        run(capsys, "publish", items(ROWS))
    folder = store / "feed" / "items"
    damage(folder / "3" / "rows")
    damage(folder / "4" / "rows")
    assert main(["items", "prune", "--keep", "1"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert out == "removed items/1 of feed\n"
    assert re.findall("(items/[0-9]) stays and is not counted; servers refuse it: rows: ", err) == [
        "items/4",
        "items/3",
    ]
    run(capsys, "publish", items(ROWS))
    assert run(capsys, "prune", "--keep", "1").count("removed") == 3
    assert [listed.version for listed in tables_of(store / "feed", "items")] == [5]


@pytest.mark.parametrize("damage", [Path.unlink, corrupt])
def test_prune_keeps_the_newest_good_table_of_each_version(store, capsys, damage):
    with_vocabulary(store, ["apple"])
    for _ in range(2):
        run(capsys, "publish", items(ROWS), "--version", "1", "--key", "item")
    for _ in range(2):
        run(capsys, "publish", items("item,quality\napple,1 2\n"), "--key", "item")
    damage(store / "feed" / "items" / "2" / "rows")
    assert run(capsys, "prune", "--keep", "1") == (
        "removed items/2 of feed\nremoved items/3 of feed\n"
    )


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_prune_removes_nothing_while_a_version_cannot_be_read(store, capsys, more):
    with_vocabulary(store, ["apple"])
    run(capsys, "publish", items(ROWS), "--version", "1")
    run(capsys, "publish", items("item,quality\napple,1 2\n"), "--key", "item")
    manifest = store / "feed" / "1" / "model.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-9])
    assert run(capsys, "prune", "--keep", "2", *more) == ""
    message = run(capsys, "prune", "--keep", "1", *more, code=ExitCode.USAGE)
    assert message.startswith("nothing is removed: feed/1 may need any of the tables: model.json: ")
    assert message.endswith("; restore it, or remove it with gatehouse prune or by hand\n")
    assert [listed.version for listed in tables_of(store / "feed", "items")] == [1, 2]
    manifest.write_bytes(content)
    assert run(capsys, "prune", "--keep", "1", *more) == ""


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda folder: corrupt(folder / "rows")])
def test_prune_of_versions_keeps_the_newest_that_has_its_tables(store, capsys, damage):
    with_vocabulary(store, ["apple"])
    (store / "feed" / "traffic.toml").write_text("accept_incompatible = 2")
    run(capsys, "publish", items(ROWS), "--version", "1")
    run(capsys, "publish", items("item,quality\napple,1 2\n"), "--key", "item")
    damage(store / "feed" / "items" / "2")
    assert main(["prune", "--keep", "1"]) == ExitCode.OK
    assert Store(store).versions("feed") == [1, 2]
    run(capsys, "publish", items("item,quality\napple,1 2\n"), "--key", "item")
    assert main(["prune", "--keep", "1"]) == ExitCode.OK
    assert Store(store).versions("feed") == [2]


def test_list_names_files_that_are_missing_or_short(store, capsys):
    for _ in range(2):
        run(capsys, "publish", items(ROWS))
    run(capsys, "publish", items(ROWS), "--delta")
    (store / "feed" / "items" / "1" / "rows").unlink()
    with (store / "feed" / "items" / "2.delta" / "1" / "keys").open("r+b") as file:
        file.truncate(3)
    lines = [line for line in run(capsys, "list").splitlines() if "feed" in line]
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    assert [row[7:9] for row in cells] == [
        ["none", "rows: is missing"],
        ["1", "delta 1: keys: has 3 bytes, table.json says 24; unknown keys: error"],
    ]


def test_a_damaged_table_is_listed_with_the_reason(store, capsys):
    run(capsys, "publish", items(ROWS))
    folder = tables_of(store / "feed", "items")[0].folder
    corrupt(folder / "rows")
    assert "rows: its SHA-256 differs" in run(capsys, "show", "1", code=ExitCode.USAGE)
    (folder / "table.json").write_text("{}")
    assert "required key is missing" in run(capsys, "list")
    shutil.rmtree(folder)
    assert 'store "store" has no items' in run(capsys, "list", code=ExitCode.FAILED)


def test_a_table_that_cannot_be_read_is_replaced_by_one_with_the_same_key(store, capsys):
    skus = "item,quality,sku\n" + "".join(f"{n},1 2,s{n}\n" for n in range(3))
    for _ in range(2):
        run(capsys, "publish", items(skus, "skus.csv"), "--key", "sku", "--force")
    (store / "feed" / "items" / "2" / "table.json").write_text("{}")
    run(capsys, "publish", items(skus, "skus.csv"))
    assert table(store).key == "sku"


def test_a_delta_of_a_damaged_table_is_not_published(store, capsys):
    run(capsys, "publish", items(ROWS))
    folder = store / "feed" / "items" / "1"
    added = ["publish", items("item,quality\n2,7 7\n", "added.csv"), "--delta"]
    gone = items("item,gone\n2,yes\n", "gone.csv")
    removed = ["publish", gone, "--delta", "--deleted", "gone"]
    run(capsys, *added)
    (folder.with_name("1.delta") / "1" / "keys").unlink()
    assert run(capsys, *removed, code=ExitCode.USAGE) == (
        "nothing is published: items/1: delta 1: keys: is missing\n"
    )
    (folder / "rows").unlink()
    for arguments in (added, removed):
        assert run(capsys, *arguments, code=ExitCode.USAGE) == (
            "nothing is published: items/1: rows: is missing\n"
        )
    assert tables_of(store / "feed", "items")[0].deltas == (1,)


def test_a_delta_that_only_removes_keys_needs_no_features(store, capsys):
    run(capsys, "publish", items(ROWS))
    path = items("item,gone\n2,yes\n9,yes\n", "gone.csv")
    out = run(capsys, "publish", path, "--delta", "--deleted", "gone")
    assert out.startswith("published items/1.1 of feed: 0 rows, 2 removed keys (1 unknown), ")
    assert table(store).find(np.array([1, 2, 3]))[1] == -1
    assert table(store).rows == 2
    lines = items('{"item": 1, "gone": true}\n{"item": 9, "gone": true}\n', "gone.jsonl")
    out = run(capsys, "publish", lines, path, "--delta", "--deleted", "gone")
    assert "0 rows, 3 removed keys (2 unknown), " in out
    assert table(store).rows == 1
    for kept in ("gone.csv", "gone.jsonl"):
        text = "item,gone\n3,\n" if kept == "gone.csv" else '{"item": 3, "gone": false}\n'
        message = run(
            capsys,
            "publish",
            items(text, kept),
            "--delta",
            "--deleted",
            "gone",
            code=ExitCode.USAGE,
        )
        assert 'column "quality": is missing; only rows that remove their key may lack' in message
        assert message.endswith("nothing is published: 1 bad row\n")
    message = run(
        capsys,
        *("publish", path, "--delta", "--deleted", "gone", "--column", "quality=q"),
        code=ExitCode.USAGE,
    )
    assert 'no column "q" for feature "quality"' in message


def test_deleted_is_read_as_pandas_writes_booleans_with_gaps(store, capsys):
    run(capsys, "publish", items(ROWS))
    quality = [[7.0, 7.0]] * 3
    for gone in ([1.0, None, 0.0], [1.0, float("nan"), 0.0], [True, None, False]):
        columns = {"item": [1, 2, 3], "quality": quality, "gone": gone}
        parquet.write_table(pa.table(columns), "gone.parquet")
        out = run(capsys, "publish", "gone.parquet", "--delta", "--deleted", "gone")
        assert ": 2 rows, 1 removed key" in out
        assert table(store).find(np.array([1, 2, 3])).tolist()[0] == -1


def test_a_row_that_neither_keeps_nor_removes_its_key_is_bad(store, capsys):
    run(capsys, "publish", items(ROWS))
    cells = ["on", "deleted", "x", "2", "-1", "0.5", "null"]
    text = "item,quality,gone\n" + "".join(f"1,7 7,{gone}\n" for gone in cells)
    arguments = ["publish", items(text, "gone.csv"), "--delta", "--deleted", "gone"]
    rule = "must be true or false, t, f, yes, no, y, n, 1 or 0; an empty cell is false"
    assert run(capsys, *arguments, code=ExitCode.USAGE).splitlines() == [
        *(f'gone.csv, line {line}: column "gone": {rule}' for line in range(2, 9)),
        "nothing is published: 7 bad rows",
    ]
    assert table(store).label == "1"
    path = items("item,gone\n1,x\n2,yes\n", "gone.csv")  # whether it needs features is unclear
    message = run(capsys, "publish", path, *arguments[2:], code=ExitCode.USAGE)
    assert message.splitlines()[0] == f'gone.csv, line 2: column "gone": {rule}'
    assert ": 0 rows, 1 removed key" in run(
        capsys, "publish", path, *arguments[2:], "--max-bad-rows", 1
    )
    assert table(store).find(np.array([1, 2])).tolist() == [0, -1]


def test_a_delta_that_removes_most_rows_needs_force(store, capsys):
    run(capsys, "publish", items(ROWS))
    more = items("item,quality\n4,1 1\n5,1 1\n6,1 1\n7,1 1\n", "more.csv")
    run(capsys, "publish", more, "--delta")

    def gone(*numbers):
        text = "item,gone\n" + "".join(f"{number},yes\n" for number in numbers)
        return ["publish", items(text, "gone.csv"), "--delta", "--deleted", "gone"]

    assert run(capsys, *gone(1, 2, 3, 4, 9), code=ExitCode.USAGE) == (
        "nothing is published: items/1 would have 3 rows, under half of its 7; --force publishes "
        "the delta\n"
    )
    assert table(store).label == "1.1"
    run(capsys, *gone(1, 2, 3))  # 4 of 7 stay
    run(capsys, *gone(1, 2, 3, 4, 5, 6), "--force")
    assert table(store).rows == 1
    for force in ([], ["--force"]):
        assert run(capsys, *gone(7), *force, code=ExitCode.USAGE) == (
            "nothing is published: items/1 would have no row left\n"
        )
    (line,) = (line for line in run(capsys, "list").splitlines() if "feed 1" in line)
    assert [cell.strip() for cell in line.split("│")[2:4]] == ["1", "3"]
    assert "published items/2 of feed: items/1.3, 1 row" in run(capsys, "compact")


def test_a_table_of_half_the_rows_that_deltas_made_needs_force(store, capsys):
    run(capsys, "publish", items(ROWS))
    more = items("item,quality\n4,1 1\n5,1 1\n6,1 1\n7,1 1\n", "more.csv")
    run(capsys, "publish", more, "--delta")
    assert run(capsys, "publish", items(ROWS), code=ExitCode.USAGE) == (
        "nothing is published: 3 rows, under half of the 7 of items/1; --force publishes them\n"
    )
    keys = store / "feed" / "items" / "1.delta" / "1" / "keys"
    with keys.open("r+b") as file:
        file.truncate(3)
    (line,) = (line for line in run(capsys, "list").splitlines() if "feed 1" in line)
    assert line.split("│")[2].strip() == "3 before deltas"
    run(capsys, "publish", items(ROWS))  # of what cannot be read, servers have only the table


def test_a_delta_without_rows_does_not_make_a_table_fresh(store, capsys):
    run(capsys, "publish", items(ROWS), "--max-age", "1h")
    header = items("item,quality\n", "empty.csv")
    none = items("", "empty.jsonl")
    schema = pa.schema({"item": pa.int64(), "quality": pa.list_(pa.float64())})
    parquet.write_table(schema.empty_table(), "empty.parquet")
    for path in (header, "empty.parquet"):
        assert run(capsys, "publish", path, "--delta", code=ExitCode.USAGE) == (
            "nothing is published: there is no row; with --allow-empty the delta would change "
            "nothing, and the table would count as fresh\n"
        )
    message = run(capsys, "publish", none, "--delta", code=ExitCode.USAGE)
    assert message == "empty.jsonl: is empty\n"
    bad = items("item,quality\nx,1 2\n", "bad.csv")
    arguments = ["publish", bad, header, "--delta", "--allow-empty", "--max-bad-rows", 1]
    message = run(capsys, *arguments, code=ExitCode.USAGE)
    assert message.endswith("nothing is published: there is no good row\n")
    assert table(store).label == "1"


def test_a_job_without_changes_may_say_so(store, capsys):
    run(capsys, "publish", items(ROWS), "--max-age", "1h")
    described = store / "feed" / "items" / "1" / "table.json"
    described.write_text(re.sub('"created": "[0-9]{4}', '"created": "2001', described.read_text()))
    assert table(store).created.year == 2001
    with gzip.open("blank.jsonl.gz", "wt") as file:
        file.write("\n \n")
    schema = pa.schema({"item": pa.int64(), "quality": pa.list_(pa.float64())})
    parquet.write_table(schema.empty_table(), "empty.parquet")
    csv, lines = items("item,quality\n", "empty.csv"), items("", "empty.jsonl")
    files = [csv, lines, "blank.jsonl.gz", "empty.parquet"]
    for number, path in enumerate(files, 1):
        out = run(capsys, "publish", path, "--delta", "--allow-empty")
        assert out.startswith(f"published items/1.{number} of feed: 0 rows, 2 features")
    found = table(store)
    assert (found.label, found.rows) == ("1.4", 3)
    assert found.created.year > 2001
    change = items("item,quality\n1,7 7\n", "change.csv")
    run(capsys, "publish", change, *files, "--delta", "--allow-empty")
    assert table(store).take(np.array([4]))["quality"].tolist() == [[7, 7]]
    zero = items("", "zero.csv")
    message = run(capsys, "publish", zero, "--delta", "--allow-empty", code=ExitCode.USAGE)
    assert message == "zero.csv: is empty\n"
    message = run(capsys, "publish", change, "--allow-empty", code=ExitCode.USAGE)
    assert message == "--allow-empty is for deltas; add --delta\n"


def test_a_missing_delta_is_told_and_nothing_comes_before_those_after_it(store, capsys):
    run(capsys, "publish", items(ROWS))
    for quality in (1, 2, 3):
        path = items(f"item,quality\n3,{quality} {quality}\n", "change.csv")
        run(capsys, "publish", path, "--delta")
    shutil.rmtree(store / "feed" / "items" / "1.delta" / "2")
    gap = (
        "delta 2 is missing, so delta 3 will not be applied: restore items/1.delta/2, or remove "
        "the deltas after it"
    )
    for command in (["publish", path, "--delta"], ["compact"]):
        assert run(capsys, *command, code=ExitCode.USAGE) == f"items/1: {gap}\n"
    assert gap in run(capsys, "list")
    assert main(["check"]) == ExitCode.FAILED
    assert gap in capsys.readouterr().out
    shutil.rmtree(store / "feed" / "items" / "1.delta" / "3")
    assert "published items/1.4" in run(capsys, "publish", path, "--delta")  # 2 and 3 are no more


def test_check_verifies_tables_and_their_deltas(store, capsys):
    run(capsys, "publish", items(ROWS))
    run(capsys, "publish", items(ROWS), "--delta")
    run(capsys, "publish", items(ROWS))
    assert main(["check"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert [c.strip() for c in re.findall("│([^│]*)", out) if "items" in c or "table" in c] == [
        "feed/items/1",
        "table with 1 deltas",
        "feed/items/2",
        "table",
    ]
    corrupt(store / "feed" / "items" / "1.delta" / "1" / "keys")
    assert main(["check"]) == ExitCode.FAILED
    assert "delta 1: keys: its SHA-256 differs from that in table.json" in capsys.readouterr().out


def test_an_active_version_without_a_table_is_a_problem(store, capsys):
    run(capsys, "publish", items(ROWS))
    with_vocabulary(store, ["apple", "pear"])
    problem = "needs a table of items: items/1: "
    assert main(["check"]) == ExitCode.FAILED
    shown = [line for line in capsys.readouterr().out.splitlines() if problem in line]
    assert [line.split("│")[1].strip() for line in shown] == ["feed/2"]
    assert main(["versions"]) == ExitCode.OK
    shown = [line for line in capsys.readouterr().out.splitlines() if problem in line]
    assert [line.split("│")[2].strip() for line in shown] == ["2"]
    run(capsys, "publish", items("item,quality\napple,1 2\n"), "--key", "item")
    for command in ("check", "versions"):
        assert main([command]) == ExitCode.OK
        assert "needs a table" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "missing COMMAND; see gatehouse items --help"),
        (["pubish"], 'unknown command "pubish" of gatehouse items; did you mean "publish"?'),
        (["zzz"], 'unknown command "zzz" of gatehouse items (commands: publish, list, show'),
        (["publish"], "missing FILE; see gatehouse items publish --help"),
        (["publish", "a.csv", "--kye", "x"], "unknown option --kye; did you mean --key?"),
        (["publish", "none.csv"], "none.csv: cannot be read: No such file or directory"),
        (["publish", "a.csv", "--max-age", "6"], "--max-age 6: must be a time such as 90s"),
        (["publish", "a.csv", "--column", "x"], "--column x: must be FEATURE=COLUMN"),
        (["publish", "a.csv", "--model", "fed"], 'has no model "fed"; did you mean "feed"?'),
        (["publish", "a.csv", "--version", "9"], "has no version 9"),
        (["publish", "a.csv", "--max-bad-rows", "-1"], "must be a whole number, 0 or more"),
        (["prune"], "missing --keep"),
        (["show", "1"], "feed has no items (tables: none)"),
    ],
)
@pytest.mark.usefixtures("store")
def test_wrong_usage_is_one_line(capsys, arguments, line):
    assert line in run(capsys, *arguments, code=ExitCode.USAGE)


def test_help_names_the_kind(capsys):
    for kind in ("items", "users"):
        for command in ("", "publish", "list", "show", "compact", "prune"):
            assert main([kind, *filter(None, [command]), "--help"]) == ExitCode.OK
            out = capsys.readouterr().out
            assert f"usage: gatehouse {kind} {command}".rstrip() in out
        assert main([kind, "publish", "--help"]) == ExitCode.OK
        assert ("drop" in capsys.readouterr().out) == (kind == "items")


@pytest.mark.usefixtures("store")
def test_without_pyarrow_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = run(capsys, "publish", items(ROWS), code=ExitCode.USAGE)
    assert message == (
        "reading tables needs pyarrow: pip install -e '.[data]'; an image has it if data is among "
        "the EXTRAS that it is built with\n"
    )


def test_the_commands_of_the_operators_guide_work(store, capsys):
    guide = (REPOSITORY / "docker" / "TABLES.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(gatehouse items publish.*?)^```$", guide, flags=re.S | re.M)
    parquet.write_table(pa.table({"item": [1, 42], "quality": [[1.0, 2.0]] * 2}), "items.parquet")
    items('{"item": 7, "quality": [0, 1]}\n', "changes.jsonl")
    items("user_id,age\n1,30\n", "users.csv")
    for command in block.splitlines():
        assert main(shlex.split(command)[1:]) == ExitCode.OK, capsys.readouterr().err
    assert "items/1.1 of feed, item 42" in capsys.readouterr().out
    assert table(store).label == "2"


@pytest.mark.slow
def test_a_killed_publish_leaves_nothing_that_serves(store, capsys):
    rows = "".join(
        f'{{"item": {n % 10}, "quality": [0.5, {n}], "sku": {n}}}\n' for n in range(400_000)
    )
    path = items(rows, "items.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", "items", "publish", path, "--key", "sku"],
        env=patient_environment() | {"PYTHONPATH": str(REPOSITORY)},
    )
    folder = store / "feed" / "items"
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in folder.rglob("rows")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert tables_of(store / "feed", "items") == []
    run(capsys, "publish", items(ROWS), "--key", "item")
    assert table(store).rows == 3


STOPPING = """
import sys, time
from app.artifacts import publish
from app.artifacts.tables.writer import TableWriter
from app.cli.main import main

def stop(*_):
    print("stopped", flush=True)
    time.sleep(600)

publish.load = TableWriter.finish = stop
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("command", [["items", "publish", "items.csv"], ["publish", "built"]])
def test_a_publish_that_is_ended_leaves_nothing_for_long(store, tmp_path, capsys, command, number):
    items(ROWS)
    shutil.copytree(store / "feed" / "1", tmp_path / "built")
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, *command],
        env=patient_environment() | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped\n"
    process.send_signal(number)
    process.communicate()
    is_killed = number == signal.SIGKILL
    assert process.returncode == (-number if is_killed else 128 + number)
    folder = store / "feed" / "items" if command[0] == "items" else store / "feed"
    left = [path.name for path in folder.iterdir() if path.name.startswith(".publishing-")]
    assert len(left) == is_killed
    assert main(["check"]) == ExitCode.OK
    lines = [line for line in capsys.readouterr().out.splitlines() if ".publishing-" in line]
    assert len(lines) == is_killed
    for line in lines:
        place = (folder / left[0]).relative_to(store)
        assert re.match(rf"{re.escape(str(place))}: [0-9.]+ MB of a command that was killed", line)
    assert main(command) == ExitCode.OK
    assert not any(path.name.startswith(".publishing-") for path in folder.iterdir())


@pytest.mark.slow
def test_publish_waits_until_a_server_serves_from_the_table_or_refuses_it(store, tmp_path, capsys):
    with_vocabulary(store, ["apple", "pear"])
    (store / "feed" / "traffic.toml").write_text("accept_incompatible = 2")
    fruit = items("item,quality\napple,1 2\npear,3 4\n")
    delta = items("item,quality\npear,5 6\n", "delta.csv")
    numbers = items(ROWS, "numbers.csv")
    flags = ("--store-poll-s", "60", "--lanes", "1")
    with running_server(store, tmp_path / "log", *flags) as server:
        wait = ["--wait", server.url]
        nudge = [*wait, "--hup", server.process.pid]
        out = run(capsys, "publish", fruit, *nudge)
        assert re.search(rf"^{server.url}: feed serves from items/1 \([0-9.]+ s\)$", out, re.M)
        assert "feed serves from items/1.1 (" in run(capsys, "publish", delta, "--delta", *nudge)
        assert "feed serves from items/2 (" in run(capsys, "compact", *nudge)
        soon = [*wait, "--timeout", "2"]
        late = run(capsys, "publish", delta, "--delta", *soon, code=ExitCode.FAILED)
        state = "feed serves from items/2"
        assert late == f"{server.url} has not applied the change within 2 s: {state}\n"
        for_another = [numbers, "--version", "1", "--key", "item"]
        refused = run(capsys, "publish", *for_another, *nudge, code=ExitCode.FAILED)
        assert refused.startswith(f"{server.url} refuses items/3: does not fit feed/2: feature ")
    nobody = run(capsys, "publish", fruit, *soon, code=ExitCode.FAILED)
    assert "has not applied the change within 2 s: no response: " in nobody
    assert [listed.version for listed in tables_of(store / "feed", "items")] == [1, 2, 3, 4]
