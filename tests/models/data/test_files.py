"""Tables in files: what is read is what was written, and what is wrong is said in one line."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from app.artifacts.encoding import Hashed, rows_of
from models import __main__ as cli, data
from models.data import scan
from models.data.dataset import joined
from models.data.schema import FilesConfig
from models.training import experiment
from tests.models import impressions
from tests.models.impressions import CANDIDATES, REQUESTS, columns, folder, read, table

ROWS = REQUESTS * CANDIDATES
BY_FILE = """
[split]
by = "file"
train = ["a.parquet"]
validation = ["b.parquet"]
test = ["c.parquet"]
"""
DAYS = [8 if 40 <= row < 80 else 9 if 80 <= row < 120 else 1 for row in range(ROWS)]
BY_COLUMN = """
[split]
by = "column"
column = "day"
validation = [8]
test = [9]
"""


def generate(path, **changes):
    settings = read(path, **changes)
    return data.generate(settings.data, settings.tasks)


def refusal(path, **changes):
    settings = read(path, **changes)
    with pytest.raises(data.DataInvalid) as caught:
        data.generate(settings.data, settings.tasks)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def everything(splits):
    """All rows of all parts, as plain tuples, in no order."""
    parts = [joined(list(splits.train.batches(50))), splits.validation, splits.test]
    return sorted(repr(row) for part in parts for row in plain(part))


def plain(dataset):
    for row, request in enumerate(dataset.row_to_request.tolist()):
        user = {name: column[request].tolist() for name, column in dataset.user.items()}
        candidate = {name: column[row].tolist() for name, column in dataset.candidate.items()}
        labels = {name: label[row].item() for name, label in dataset.labels.items()}
        yield user | candidate | labels


def expected():
    """The same from the lists that were written."""
    source = columns()
    hashed = Hashed(buckets=50)
    for row in range(ROWS):
        recent = [int(item[-1]) + 1 for item in source["recent"][row][:2]]
        like = source["like"][row]
        yield repr(
            {
                "user": int(rows_of(hashed, [source["user"][row]], {})[0]),
                "recent": recent + [-1] * (2 - len(recent)),
                "item": int(source["item"][row][-1]) + 1,
                "quality": [float(np.float32(source["price"][row])), float(source["age"][row])],
                "click": float(source["click"][row]),
                "like": math.nan if like is None else float(like),
                "dwell": float(source["dwell"][row]),
            }
        )


def test_every_row_is_read_as_it_was_written(tmp_path):
    splits = generate(tmp_path)
    assert everything(splits) == sorted(expected())
    assert splits.notes == ()


def test_csv_equals_parquet(tmp_path):
    path = folder(tmp_path, schema=("max_length = 2", 'max_length = 2\nseparator = "|"'))
    (tmp_path / "rows.parquet").unlink()
    impressions.write_csv(tmp_path / "rows.csv", table())
    settings = experiment.read(path)
    assert everything(data.generate(settings.data, settings.tasks)) == sorted(expected())


def test_features_are_those_of_the_schema_user_first(tmp_path):
    features = {feature.name: feature.model_dump() for feature in read(tmp_path).features}
    assert list(features) == ["user", "recent", "item", "quality"]
    assert features["user"]["vocabulary_size"] == 51
    assert features["item"]["vocabulary_size"] == features["recent"]["vocabulary_size"] == 9
    assert features["recent"]["shared_with"] == "item"
    assert features["quality"]["dim"] == 2


def test_requests_are_whole_and_in_one_part_only(tmp_path):
    splits = generate(tmp_path)
    seen = 0
    for part in (joined(list(splits.train.batches(50))), splits.validation, splits.test):
        assert torch.bincount(part.row_to_request).tolist() == [CANDIDATES] * part.requests
        seen += part.requests
    assert seen == REQUESTS
    assert splits.train.requests + splits.validation.requests + splits.test.requests == REQUESTS
    assert splits.train.rows == splits.train.requests * CANDIDATES


def test_split_depends_on_the_seed_only(tmp_path):
    again, other = (
        generate(tmp_path / "a"),
        generate(tmp_path / "b", schema=("", "[split]\nby='hash'\nseed=1")),
    )
    first = generate(tmp_path / "c")
    assert list(map(repr, plain(first.test))) == list(map(repr, plain(again.test)))
    assert list(map(repr, plain(first.test))) != list(map(repr, plain(other.test)))


def test_user_whose_features_change_within_a_group_gets_a_row_for_each(tmp_path):
    recent = [[f"item {row % 3}"] for row in range(ROWS)]
    splits = generate(tmp_path, recent=recent)
    assert splits.train.requests == splits.train.rows
    for row in plain(splits.test):
        assert row["recent"][0] in (1, 2, 3)


def test_epoch_streams_every_row_once_whatever_it_holds_in_memory(tmp_path):
    settings = read(tmp_path)
    assert isinstance(settings.data, FilesConfig)
    small = settings.data.model_copy(update={"shuffle_rows": 20})
    train = data.generate(small, settings.tasks).train
    shuffle = torch.Generator().manual_seed(5)
    one, two = (list(train.batches(10, shuffle)) for _ in range(2))
    again = list(train.batches(10, torch.Generator().manual_seed(5)))
    in_order = list(train.batches(10))
    texts = [
        [repr(row) for batch in epoch for row in plain(batch)] for epoch in (one, two, in_order)
    ]
    assert texts[0] != texts[1]
    assert sorted(texts[0]) == sorted(texts[1]) == sorted(texts[2])
    assert texts[0] == [repr(row) for batch in again for row in plain(batch)]
    assert len(texts[0]) == train.rows
    assert max(batch.rows for batch in one) <= 10 + CANDIDATES


def test_part_can_be_chosen_by_file(tmp_path):
    path = folder(tmp_path, schema=('files = ["rows.*"]', ""))
    (tmp_path / "schema.toml").write_text((tmp_path / "schema.toml").read_text() + BY_FILE)
    for name, first, last in (("a", 0, 40), ("b", 40, 50), ("c", 50, 60)):
        part = table().slice(first * CANDIDATES, (last - first) * CANDIDATES)
        impressions.write_parquet(tmp_path / f"{name}.parquet", part)
    settings = experiment.read(path)
    splits = data.generate(settings.data, settings.tasks)
    assert [splits.train.requests, splits.validation.requests, splits.test.requests] == [40, 10, 10]
    assert everything(splits) == sorted(expected())


def test_part_can_be_chosen_by_column(tmp_path):
    day = [8 if row < 40 else 9 if row < 60 else row % 7 for row in range(ROWS)]
    splits = generate(tmp_path, schema=("", BY_COLUMN), day=day)
    assert [splits.validation.rows, splits.test.rows, splits.train.rows] == [40, 20, ROWS - 60]


def test_request_in_two_parts_is_refused(tmp_path):
    day = [8 if row % 4 == 0 else 9 if row % 9 == 1 else 1 for row in range(ROWS)]
    message = refusal(tmp_path, schema=("", BY_COLUMN), day=day)
    assert message.startswith(
        "split: 60 requests (column 'request') are in both the training set and"
    )


def test_masked_label_is_not_defined_where_the_mask_is_false(tmp_path):
    seen = [row % 4 != 0 for row in range(ROWS)]
    masked = ('name = "dwell"', 'name = "dwell"\nmask = "seen"')
    splits = generate(tmp_path, schema=masked, seen=seen)
    assert splits.train.rows == sum(1 for _ in splits.train.batches(1)) * CANDIDATES
    for batch in splits.train.batches(10**6):
        undefined = batch.labels["dwell"].isnan()
        assert undefined.sum() == batch.rows // 4
        assert not batch.labels["click"].isnan().any()


def test_null_and_unlisted_ids_are_unknown(tmp_path):
    item = ["item 0", "item 9", None, ""] * REQUESTS
    splits = generate(tmp_path, item=item, items="0")
    assert splits.test.candidate["item"].reshape(-1, 4).unique(dim=0).tolist() == [[1, 0, 0, 0]]


def test_wide_integer_ids_are_hashed_and_listed(tmp_path):
    wide = [2**62 + row % 5 for row in range(ROWS)]
    recent = [[2**62]] * ROWS
    old = 'encoding = { kind = "vocabulary", file = "items.jsonl" }'
    hashed = generate(
        tmp_path / "a",
        schema=(old, 'encoding = { kind = "hash", ids = "int64", buckets = 9 }'),
        item=wide,
        recent=recent,
    )
    encoding = Hashed(ids="int64", buckets=9)
    first = rows_of(encoding, [2**62], {}).tolist()
    assert hashed.test.user["recent"].unique(dim=0).tolist() == [[*first, -1]]
    path = folder(
        tmp_path / "b",
        schema=(old, 'encoding = { kind = "vocabulary", ids = "int64", file = "items.jsonl" }'),
        item=wide,
        recent=recent,
    )
    (tmp_path / "b" / "items.jsonl").write_text(f"{2**62}\n")
    settings = experiment.read(path)
    listed = data.generate(settings.data, settings.tasks)
    assert set(listed.test.candidate["item"].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("changes", "where", "rule"),
    [
        ({"price": [math.nan]}, 0, "column 'price' is not a finite number"),
        ({"price": [0.5, math.inf]}, 1, "column 'price' is not a finite number"),
        ({"age": [None]}, 0, "column 'age' is not a finite number"),
        ({"age": [1e39]}, 0, "column 'age' is not a finite number"),
        ({"click": [0, 2]}, 1, "label 'click' is not 0 or 1"),
        ({"dwell": [-1.0]}, 0, "label 'dwell' is not a duration in seconds"),
        ({"request": [None]}, 0, "column 'request' (request) is empty"),
        ({"user": [None]}, 0, "column 'user' (user) is empty"),
    ],
)
def test_bad_row_is_named_with_file_row_group_and_row(tmp_path, changes, where, rule):
    ((name, front),) = changes.items()
    bad = [0] * 103 + front
    path = tmp_path / "rows.parquet"
    changed = columns()[name]
    changed[103 : 103 + len(front)] = front
    message = refusal(tmp_path, **{name: changed})
    place = f"{path}, row group 1, row {len(bad) - len(front) - 100 + where}"
    assert message == f"1 bad rows, max_bad_rows is 0: {place}: {rule}"


def test_row_keeps_its_number_in_a_row_group_that_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("models.data.files.READ_ROWS", 30)
    price = columns()["price"]
    price[177] = math.nan
    assert "row group 1, row 77: column 'price'" in refusal(tmp_path, price=price)


def test_bad_rows_within_the_limit_are_left_out_and_counted(tmp_path):
    price = columns()["price"]
    price[5] = price[7] = math.nan
    splits = generate(tmp_path, schema=("group =", "max_bad_rows = 2\ngroup ="), price=price)
    assert len(everything(splits)) == ROWS - 2
    assert [note.split(", ")[-1] for note in splits.notes[:2]] == [
        "row 5: column 'price' is not a finite number",
        "row 7: column 'price' is not a finite number",
    ]
    assert splits.notes[-1] == "skipped 2 bad rows in total"


def test_bad_lines_of_csv_are_named_by_file_and_line(tmp_path):
    path = folder(tmp_path, schema=("group =", "max_bad_rows = 9\ngroup ="))
    (tmp_path / "rows.parquet").unlink()
    rows = tmp_path / "rows.csv"
    impressions.write_csv(rows, table())
    lines = rows.read_text().splitlines()
    lines[2] += ",surplus"
    lines[4] = ""
    lines[6] = lines[6].replace('"user-', '"\N{SNOWMAN}user-')
    fields = lines[9].split(",")
    price = table().column_names.index("price")
    lines[9] = ",".join([*fields[:price], "cheap", *fields[price + 1 :]])
    rows.write_text("\n".join(lines) + "\n")
    settings = experiment.read(path)
    splits = data.generate(settings.data, settings.tasks)
    assert [note.removeprefix(f"skipped: {rows}, ") for note in splits.notes] == [
        "line 3: has 10 fields, the header has 9",
        "line 10: column 'price' is not a finite number",
        "skipped 2 bad rows in total",
    ]
    assert len(everything(splits)) == ROWS - 3  # the blank line replaced a row


def test_broken_lines_at_the_end_of_csv_are_bad_rows_too(tmp_path, monkeypatch):
    monkeypatch.setattr("models.data.files.READ_BYTES", 400)
    path = folder(tmp_path)
    (tmp_path / "rows.parquet").unlink()
    rows = tmp_path / "rows.csv"
    impressions.write_csv(rows, table())
    rows.write_text(rows.read_text() + "1,2\n" * 200)
    settings = experiment.read(path)
    with pytest.raises(data.DataInvalid, match=rf"line {ROWS + 2}: has 2 fields"):
        data.generate(settings.data, settings.tasks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"like": None}, 'no column "like" for label "like" (columns: "request", "user"'),
        ({"price": None}, 'no column "price" for feature "quality"'),
        ({"request": None}, 'no column "request" for group'),
        (
            {"schema": ('"price"', '"prize"')},
            'no column "prize" for feature "quality" (columns: "request"',
        ),
        (
            {"price": ["cheap"] * ROWS},
            'column "price" is string, feature "quality" needs numbers',
        ),
        (
            {"item": list(range(ROWS))},
            'column "item" is int64, feature "item" needs strings',
        ),
        (
            {"recent": ["item 1"] * ROWS},
            'column "recent" is string, feature "recent" needs lists of strings',
        ),
        ({"dwell": ["long"] * ROWS}, 'column "dwell" is string, label "dwell" needs numbers'),
        ({"request": [0.5] * ROWS}, 'column "request" is double, group or user needs strings'),
    ],
)
def test_schema_that_does_not_fit_the_file_is_refused(tmp_path, changes, message):
    assert f"{tmp_path / 'rows.parquet'}: {message}" in refusal(tmp_path, **changes)


def test_task_without_a_single_label_is_refused(tmp_path):
    message = "task 'like': no row of the training set has the label where click is 1"
    assert refusal(tmp_path, like=pa.nulls(ROWS, pa.float64())) == message


def test_task_whose_sample_space_is_never_entered_is_refused(tmp_path):
    clicks = columns()["click"]
    like = [None if clicked else 1 for clicked in clicks]
    assert "no row of the training set has the label where click is 1" in refusal(
        tmp_path, like=like
    )


@pytest.mark.parametrize(("label", "value"), [("click", 1), ("like", 0)])
def test_label_that_never_changes_is_refused(tmp_path, label, value):
    message = refusal(tmp_path, **{label: [value] * ROWS})
    assert message.startswith(f"task {label!r}: the label is {value} on every row of the training")


def test_part_without_rows_is_refused(tmp_path):
    message = refusal(tmp_path, schema=("", BY_COLUMN), day=[1] * ROWS)
    assert message == "split: the validation set has no rows"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.parquet", b"", "file is empty"),
        ("rows.parquet", b"no parquet at all", "cannot be read: "),
        ("rows.csv", b"", "file is empty"),
        ("rows.csv", b"request,user\n", "has no rows"),
        (
            "rows.json",
            b"{}",
            "must end in .parquet, .csv, .tsv, .txt, .data, or one",
        ),
    ],
)
def test_file_that_holds_no_table_is_refused(tmp_path, name, content, message):
    path = folder(tmp_path)
    (tmp_path / "rows.parquet").unlink()
    (tmp_path / name).write_bytes(content)
    settings = experiment.read(path)
    with pytest.raises(data.DataInvalid, match=message) as caught:
        data.generate(settings.data, settings.tasks)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_table_of_no_rows_is_refused(tmp_path):
    path = folder(tmp_path)
    impressions.write_parquet(tmp_path / "rows.parquet", table().slice(0, 0))
    settings = experiment.read(path)
    with pytest.raises(data.DataInvalid, match=r"rows.parquet: has no rows$"):
        data.generate(settings.data, settings.tasks)


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = folder(tmp_path)
    twice = table().append_column("click", [columns()["click"]])
    impressions.write_parquet(tmp_path / "rows.parquet", twice)
    settings = experiment.read(path)
    with pytest.raises(
        data.DataInvalid, match=r"rows.parquet: two columns have the same name, 'click'$"
    ):
        data.generate(settings.data, settings.tasks)


def test_pattern_that_matches_nothing_is_refused(tmp_path):
    message = refusal(tmp_path, schema=('"rows.*"', '"absent-*.parquet"'))
    assert message == f"{tmp_path / 'absent-*.parquet'}: no such file"


def test_missing_vocabulary_says_how_to_make_it(tmp_path):
    path = folder(tmp_path)
    (tmp_path / "items.jsonl").unlink()
    with pytest.raises(data.DataInvalid, match="create it with `python -m models vocabulary`"):
        _ = experiment.read(path).features


def test_vocabulary_is_made_of_the_training_set_most_frequent_first(tmp_path, capsys):
    path = folder(tmp_path, item=["item 7", "item 2", "item 7", "rare"] * REQUESTS)
    (tmp_path / "items.jsonl").unlink()
    assert cli.main(["vocabulary", "--config", str(path)]) == 0
    listed = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert listed[0] == "item 7"
    assert set(listed[1:3]) == {"item 2", "rare"}
    assert len(set(listed)) == len(listed)  # with those that users had seen
    assert f"{len(listed)} ids" in capsys.readouterr().out
    assert cli.main(["vocabulary", "--config", str(path)]) == 0  # it is there: nothing to do
    assert capsys.readouterr().out == ""


def test_rare_ids_are_left_to_the_unknown_id(tmp_path, capsys):
    item = ["once", *(f"item {row % 4}" for row in range(1, ROWS))]
    path = folder(tmp_path, item=item, recent=[["item 1"]] * ROWS, schema=("", BY_COLUMN), day=DAYS)
    (tmp_path / "items.jsonl").unlink()
    assert cli.main(["vocabulary", "--config", str(path)]) == 0
    assert "4 ids; 1 rarer ids train the embedding of unknown ids" in capsys.readouterr().out
    (tmp_path / "items.jsonl").unlink()
    schema = (tmp_path / "schema.toml").read_text()
    (tmp_path / "schema.toml").write_text(
        schema.replace('"items.jsonl"', '"items.jsonl", min_count = 1')
    )
    assert cli.main(["vocabulary", "--config", str(path)]) == 0
    assert "5 ids; no training id is unknown" in capsys.readouterr().out


def test_vocabulary_contains_training_ids_only(tmp_path):
    day = [8 if row < 40 else 9 if row < 60 else 1 for row in range(ROWS)]
    item = ["late" if row < 60 else "early" for row in range(ROWS)]
    path = folder(
        tmp_path, schema=("", BY_COLUMN), day=day, item=item, recent=[[]] * 238 + [["x"]] * 2
    )
    (tmp_path / "items.jsonl").unlink()
    settings = experiment.read(path)
    data.make_vocabularies(settings.data)
    assert (tmp_path / "items.jsonl").read_text() == '"early"\n"x"\n'


def test_missing_pyarrow_is_reported_in_one_line(tmp_path, monkeypatch):
    settings = read(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(data.DataInvalid, match=r"pip install -e '\.\[data\]'$"):
        data.generate(settings.data, settings.tasks)


def test_bad_data_is_one_line_and_status_2_and_nothing_is_published(tmp_path, capsys):
    path = folder(tmp_path, click=[1] * ROWS)
    status = cli.main(["train", "--config", str(path), "--store", str(tmp_path / "store")])
    shown = capsys.readouterr()
    assert status == 2
    assert shown.err.startswith("task 'click': the label is 1 on every row")
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_units_are_row_groups(tmp_path):
    settings = read(tmp_path)
    assert isinstance(settings.data, FilesConfig)
    assert [unit.number for unit in scan.units_of(settings.data)] == [0, 1, 2]
