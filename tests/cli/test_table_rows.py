"""Rows of files against the naive encoder of requests, and the messages of wrong values."""

import csv
import gzip
import json
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings, strategies as st

from app.artifacts.encoding import Hashed, Identity
from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.cli.table_files import FileUnreadable, open_file
from app.cli.table_rows import (
    RowEncoder,
    Source,
    column_problem,
    key_column_problem,
    key_type_in,
)
from app.protocol.features import column_by_value
from app.protocol.validation import MISSING, Side, ValidationReport
from tests.support.documents import cases, expected, inputs, listed, sent, values, wrong_values

FORMS = ("json", "parquet", "csv", "csv.gz")


def write(folder, form, columns):
    """Write columns of Python values as a file; None where the form cannot hold them."""
    rows = len(next(iter(columns.values())))
    if form == "json":
        path = folder / "rows.jsonl"
        lines = [{name: column[row] for name, column in columns.items()} for row in range(rows)]
        lines = [{n: v for n, v in line.items() if v is not None} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path
    if form == "parquet":
        path = folder / "rows.parquet"
        try:
            arrays = {name: pa.array(column) for name, column in columns.items()}
            parquet.write_table(pa.table(arrays), path)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return None
        return path
    path = folder / f"rows.{form}"
    cells = [[cell(column[row]) for column in columns.values()] for row in range(rows)]
    if any("\n" in text or "\r" in text or text == '""' for row in cells for text in row):
        return None
    if any(value == "" for column in columns.values() for value in column):
        return None  # in CSV, an empty text is an empty cell
    opener = gzip.open if form.endswith("gz") else open
    with opener(path, "wt", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([list(columns), *cells])
    return path


def cell(value):
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list | tuple):
        return json.dumps([int(e) if isinstance(e, bool) else e for e in value], ensure_ascii=False)
    return str(value)


def is_json(value):
    try:
        orjson.loads(json.dumps(value))
    except orjson.JSONDecodeError:
        return False
    return True


TRUE = [True, 1, 1.0, "true", "True", "TRUE", " t ", "yes", "Y", "1", "1.0"]
FALSE = [False, 0, 0.0, "false", "F", "no", "N", "0", "0.0", None]
UNCLEAR = ["on", "off", "deleted", "x", "-1", "2", "0.5", "nan", "01x", 2, -1, 0.5]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("values_", "is_removed"), [(TRUE, [True]), (FALSE, [False]), (UNCLEAR, [])]
)
def test_deleted_is_true_or_false_or_its_row_is_bad(tmp_path, form, values_, is_removed):
    for value in values_:
        path = write(tmp_path, form, {"KEY": [7], "gone": [value]})
        _, rows = encoded(path, [], deleted="gone")
        assert rows.removed.tolist() == is_removed, value
        assert len(rows.bad) == 1 - len(is_removed), value


def encoded(path, features, vocabularies=None, **more):
    sources = [Source(feature, (feature.name,)) for feature in features]
    encoder = RowEncoder(sources, "KEY", "int64", vocabularies or {}, **more)
    file = open_file(path)
    (rows,) = [encoder.encode(file, chunk) for chunk in file.chunks(encoder.columns)]
    return encoder, rows


@settings(max_examples=150)
@given(cases(fewest_rows=1), st.sampled_from(FORMS))
def test_a_file_gives_the_columns_of_a_request(tmp_path_factory, case, form):
    folder = tmp_path_factory.mktemp("rows")
    for side, features in (
        ("user", case.manifest.user_inputs),
        ("candidate", case.manifest.candidate_inputs),
    ):
        count = 1 if side == "user" else case.rows
        if not features or not count:
            continue
        columns: dict[str, list[Any]] = {"KEY": list(range(5, 5 + count))}
        for feature in features:
            given_values = sent(case, feature)
            columns[feature.name] = [list(v) if isinstance(v, tuple) else v for v in given_values]
        path = write(folder, form, columns)
        if path is None:
            return
        encoder, rows = encoded(path, features, case.vocabularies)
        assert rows.bad == {}
        assert list(rows.keys) == columns["KEY"]
        for feature in features:
            column, unknown = expected(case, feature)
            assert rows.records[feature.name].tolist() == column.tolist()
            assert encoder.unknown_ids.get(feature.name, 0) == unknown


@settings(max_examples=150)
@given(st.data())
def test_wrong_values_get_the_messages_of_a_request(tmp_path_factory, data):
    feature = data.draw(inputs("f"))
    vocabulary = (
        {} if isinstance(feature, DenseInput) else listed(feature.encoding, feature.vocabulary_size)
    )
    wrong = [value for _, value in wrong_values(feature)]
    wrong = [value for value in wrong if value is not None and is_json(value)]
    column = data.draw(st.lists(st.sampled_from(wrong) | values(feature), min_size=1, max_size=6))
    path = write(
        tmp_path_factory.mktemp("rows"), "json", {"KEY": list(range(len(column))), "f": column}
    )
    text = path.read_text()
    _, rows = encoded(path, [feature], {"f": vocabulary})
    good = []
    for row, value in enumerate(orjson.loads(line).get("f", MISSING) for line in text.splitlines()):
        report = ValidationReport()
        twin = column_by_value(feature, [value], Side({}, 1, "columns"), report, vocabulary)
        found = [message.split(": ", 1)[1] for message in rows.bad.get(row + 1, [])]
        assert found == [problem.detail for problem in report.problems]
        if not report.problems:
            good.append(twin[0].tolist())
    assert rows.records["f"].tolist() == good


PRICE = DenseInput(name="price", side="candidate")
VECTOR = DenseInput(name="vector", side="candidate", dim=2)
BRAND = IdInput(name="brand", side="candidate", vocabulary_size=9, unknown="reject")
TAGS = IdListInput(name="tags", side="candidate", vocabulary_size=9, max_length=2, unknown="reject")
SHOP = IdInput(name="shop", side="candidate", vocabulary_size=9, encoding=Hashed(buckets=8))


def test_every_wrong_cell_of_csv_is_named(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text(
        "KEY,price,vector,brand,tags,shop\n"
        "1,0.5,1 2,3,1|2,x\n"
        "\n"
        "2,cheap,1 2 3,3.5,1|2|3,x\n"
        "3,inf,1 z,9,1|10,\n"
        "4,1e99,[1,4,,\n"
        "5,, ,,,\n"
        "6,1,[1.5;2],-1,1;a,x\n"
        "7,1\n"
        "x,7,1 2,3,,x\n"
        ',7,"[1, 2]",12345678901234567890,,x\n'
    )
    _, rows = encoded(path, [PRICE, VECTOR, BRAND, TAGS, SHOP])
    assert list(rows.keys) == [1]
    assert rows.numbers.tolist() == [2]
    assert {number: list(why) for number, why in rows.bad.items()} == {
        4: [
            'column "price": must be a number',
            'column "vector": must have 2 numbers, has 3',
            'column "brand": must be an integer',
            'column "tags": must have at most 2 ids, has 3',
        ],
        5: [
            'column "price": must be finite and within the range of float32',
            'column "vector", element 2: must be a number',
            'column "brand": must be an id between 0 and 8',
            'column "tags", element 2: must be an id between 0 and 8',
            'column "shop": required feature is missing',
        ],
        6: [
            'column "price": must be finite and within the range of float32',
            'column "vector": must be a list of 2 numbers',
            'column "shop": required feature is missing',
        ],
        7: [
            'column "price": required feature is missing',
            'column "vector": must have 2 numbers, has 0',
            'column "brand": required feature is missing',
            'column "shop": required feature is missing',
        ],
        8: [
            'column "vector": must be a list of 2 numbers',
            'column "brand": must be an id between 0 and 8',
            'column "tags", element 2: must be an integer',
        ],
        9: ["has 2 columns, the header has 6"],
        10: ['column "KEY": must be an integer that fits in int64'],
        11: ['column "KEY": is empty, but it is the key', 'column "brand": must fit in int64'],
    }


def test_integers_of_thousands_of_digits_are_out_of_range(tmp_path):
    path = tmp_path / "items.csv"
    long = "9" * 5000
    path.write_text(
        "KEY,brand,tags\n"
        f"{'0' * 5000}1,3,1\n"
        f"{long},3,1\n"
        f"3,-{long}.0,1\n"
        f"4,3,1|{long}\n"
        f'5,3,"[1, {long}]"\n'
        f"-{'0' * 5000}6,+{'0' * 5000}4,1|{'0' * 5000}2\n"
    )
    _, rows = encoded(path, [BRAND, TAGS])
    assert list(rows.keys) == [1, -6]
    assert rows.records["brand"].tolist() == [3, 4]
    assert rows.records["tags"].tolist()[1] == [1, 2]
    assert {number: list(why) for number, why in rows.bad.items()} == {
        3: ['column "KEY": must be an integer that fits in int64'],
        4: ['column "brand": must fit in int64'],
        5: ['column "tags", element 2: must fit in int64'],
        6: ['column "tags": must be a list of at most 2 integers'],
    }


def test_a_column_that_is_twice_in_a_line_is_an_error(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"KEY": 1, "brand": 1, "note": {"KEY": 2, "brand": 3}, "other": "KEY"}\n'
        '{"KEY": 2, "brand": 1, "KEY": 3}\n'
        '{"KEY": 4, "brand": 1, "\\u0062rand": 2}\n'
        '{"KEY": 5, "brand": 1, "note": "\\n", "note": 2}\n'
        f'{{"KEY": 6, "brand": 1, "note": "\\n", "size": {"9" * 300}}}\n'
        f'{{"KEY": 7, "brand": 1, "deep": {"[" * 1000}"KEY"{"]" * 1000}}}\n'
    )
    _, rows = encoded(path, [BRAND])
    assert list(rows.keys) == [1, 5, 6, 7]
    assert rows.records["brand"].tolist() == [1, 1, 1, 1]
    assert dict(rows.bad) == {
        2: ['has the column "KEY" twice'],
        3: ['has the column "brand" twice'],
    }


def test_pandas_numbers_with_gaps_and_categories_are_read(tmp_path):
    path = tmp_path / "items.parquet"
    category = pa.array(["a", "b", None, "a"]).dictionary_encode()
    brand = IdInput(name="brand", side="candidate", vocabulary_size=9, default=4)
    shop = SHOP.model_copy(update={"default": "b"})
    prices = pa.array([True, False, True, True])
    table = {"KEY": [1.0, 2.0, 3.0, 4.0], "brand": [1.0, None, float("nan"), 2.5], "shop": category}
    parquet.write_table(pa.table({**table, "price": prices}), path)
    _, rows = encoded(path, [brand, shop, PRICE])
    assert rows.records["brand"].tolist() == [1, 4, 4]
    assert rows.records["shop"][0] != rows.records["shop"][1] == rows.records["shop"][2]
    assert rows.records["price"].tolist() == [[1.0], [0.0], [1.0]]
    assert rows.bad == {4: ['column "brand": must be an integer']}
    file = open_file(path)
    assert key_type_in(file, "KEY") == "int64"
    assert key_type_in(file, "shop") == "string"


def test_a_dense_feature_may_be_in_several_columns(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("KEY,a,b\n1,1,2\n2,3,\n3,x,4\n4,,\n")
    for default, expected_rows in ((None, [1]), ((7.0, 8.0), [1, 4])):
        feature = VECTOR.model_copy(update={"default": default})
        encoder = RowEncoder([Source(feature, ("a", "b"))], "KEY", "int64", {})
        file = open_file(path)
        (chunk,) = file.chunks(encoder.columns)
        rows = encoder.encode(file, chunk)
        assert list(rows.keys) == expected_rows
        assert rows.records["vector"].tolist() == [[1, 2], [7, 8]][: len(expected_rows)]
        assert rows.bad[3] == ['column "b": must be a number']
        assert rows.bad[4] == ['column "a": must be a number']


@pytest.mark.parametrize("form", FORMS)
def test_padding_of_a_measured_list_is_no_id_of_a_table(tmp_path, form):
    feature = IdListInput(
        name="tags",
        side="candidate",
        vocabulary_size=9,
        max_length=3,
        padding=0,
        unknown="reject",
    )
    lists = [[3, 0, 7], [3, 7], [], [3, 7, 0], [9]]
    path = write(tmp_path, form, {"KEY": [1, 2, 3, 4, 5], "tags": lists})
    _, rows = encoded(path, [feature.measured()])
    rule = "must be an id between 1 and 8: 0 is the padding of this feature"
    assert list(rows.bad.values()) == [
        [f'column "tags", element 2: {rule}'],
        [f'column "tags", element 3: {rule}'],
        ['column "tags", element 1: must be an id between 1 and 8'],
    ]
    assert rows.records["tags"].tolist() == [[3, 7, 0], [0, 0, 0]]
    lost = feature.model_copy(update={"unknown": 0}).measured()
    encoder, rows = encoded(path, [lost])
    assert len(rows.bad) == 3
    assert encoder.unknown_ids == {}


def test_string_keys_and_removed_rows(tmp_path):
    path = tmp_path / "items.jsonl"
    lines = [
        {"sku": "a", "price": 1},
        {"sku": "x" * 257, "price": 1},
        {"sku": 5, "price": 1},
        {"sku": None, "price": 1},
        {"sku": "b", "gone": True},
        {"sku": "c", "price": "1", "gone": False},
    ]
    path.write_text("[]\n" + "\n".join(map(json.dumps, lines)) + "\n{\n")
    file = open_file(path)
    encoder = RowEncoder([Source(PRICE, ("price",))], "sku", key_type_in(file, "sku"), {}, "gone")
    (chunk,) = file.chunks(encoder.columns)
    rows = encoder.encode(file, chunk)
    assert (rows.keys, rows.removed.tolist()) == (["a", "b"], [False, True])
    assert {number: list(why) for number, why in rows.bad.items()} == {
        1: ["must be an object that maps column names to values"],
        3: ['column "sku": must be a string of at most 256 characters'],
        4: ['column "sku": must be a string of at most 256 characters'],
        5: ['column "sku": is empty, but it is the key'],
        7: ['column "price": must be a number'],
        8: [rows.bad[8][0]],
    }
    assert rows.bad[8][0].startswith("is not JSON: ")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("1\n-5\n0", "int64"), ("007\n8", "string"), ("1\na", "string"), ("9" * 25, "string")],
)
def test_a_key_of_csv_is_an_integer_if_it_is_written_as_one(tmp_path, text, kind):
    path = tmp_path / "items.csv"
    path.write_text("sku,price\n" + "".join(f"{key},1\n" for key in text.split("\n")))
    assert key_type_in(open_file(path), "sku") == kind


@pytest.mark.parametrize(
    ("column", "feature", "problem"),
    [
        (["a"], PRICE, 'column "f" is string, feature "price" needs numbers'),
        ([[1.0]], PRICE, 'column "f" is list<'),
        ([1.0], VECTOR, "needs lists of numbers"),
        ([["a"]], TAGS, "needs lists of integers"),
        ([1], SHOP, 'column "f" is int64, feature "shop" needs strings'),
        (["a"], BRAND, "needs integers"),
        ([[1.0]], VECTOR, ""),
        ([None], PRICE, ""),
    ],
)
def test_a_column_of_a_wrong_type_is_named_at_once(tmp_path, column, feature, problem):
    path = tmp_path / "items.parquet"
    parquet.write_table(pa.table({"f": column}), path)
    found = column_problem(Source(feature, ("f",)), open_file(path))
    assert bool(found) == bool(problem)
    assert problem in found


def test_large_files_are_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("app.cli.table_files.READ_BYTES", 64)
    monkeypatch.setattr("app.cli.table_files.READ_ROWS", 7)
    csv_path, json_path, parquet_path = (tmp_path / f"i.{e}" for e in ("tsv", "ndjson", "parquet"))
    csv_path.write_text("KEY\tprice\n" + "".join(f"{n}\t{n / 2}\n\n" for n in range(50)))
    json_path.write_text("".join(f'{{"KEY": {n}, "price": {n / 2}}}\n\n' for n in range(50)))
    numbers = np.arange(50)
    parquet.write_table(
        pa.table({"KEY": numbers, "price": numbers / 2}), parquet_path, row_group_size=9
    )
    for path, first, step in ((csv_path, 2, 2), (json_path, 1, 2), (parquet_path, 1, 1)):
        file = open_file(path)
        encoder = RowEncoder([Source(PRICE, ("price",))], "KEY", "int64", {})
        chunks = list(file.chunks(encoder.columns))
        assert len(chunks) > 3
        parts = [encoder.encode(file, chunk) for chunk in chunks]
        assert np.concatenate([part.keys for part in parts]).tolist() == list(range(50))
        found = np.concatenate([part.records["price"][:, 0] for part in parts])
        assert found.tolist() == [n / 2 for n in range(50)]
        places = np.concatenate([part.numbers for part in parts])
        assert places.tolist() == list(range(first, first + 50 * step, step))
        assert chunks[-1].read == file.size


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.xlsx", b"1", "unknown kind of file; its name must end in .parquet, .csv"),
        ("a.csv", b"a,b,a\n1,2,3\n", 'two columns have the name "a"'),
        ("a.csv", b"a\xff,b\n1,2\n", "cannot be read"),
        ("a.csv", b'KEY,price\n1,"a\nb"\n', "cannot be read|line ends inside quotes"),
        ("a.csv", b"KEY,price\n1,\xff\n", "cannot be read"),
        ("a.csv.gz", b"not compressed", "cannot be read"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.jsonl", b"\n\n", "line 1: the file has only blank lines"),
        ("a.jsonl", b"{\n", "line 1: is not JSON"),
        ("a.jsonl", b"\xff\n", "line 1: is not JSON"),
    ],
)
def test_a_file_that_is_no_table_is_told_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileUnreadable, match=message) as refused:
        list(open_file(path).chunks(["KEY", "price"]))
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


FIT = 'column "KEY": must be an integer that fits in int64'
INEXACT = 'column "KEY": is a float beyond 2^{}, where floats are not exact: store it as an integer'


@pytest.mark.parametrize(
    ("keys", "good", "bad"),
    [
        (pa.array([1, 2**63, 2**63 - 1], pa.uint64()), [1, 2**63 - 1], {2: FIT}),
        (
            pa.array([1.0, 2.0**53, 2.0**53 + 2, -(2.0**60), 2.5, 2.0**63]),
            [1, 2**53],
            {3: INEXACT.format(53), 4: INEXACT.format(53), 5: FIT, 6: FIT},
        ),
        (pa.array([2.0**24, 2.0**24 + 2], pa.float32()), [2**24], {2: INEXACT.format(24)}),
        (pa.array([2048, 2050], pa.float16()), [2048], {2: INEXACT.format(11)}),
    ],
)
def test_only_the_keys_that_are_wrong_are_refused_with_the_reason(tmp_path, keys, good, bad):
    path = tmp_path / "items.parquet"
    parquet.write_table(pa.table({"KEY": keys}), path)
    _, rows = encoded(path, [])
    assert list(rows.keys) == good
    assert dict(rows.bad) == {number: [why] for number, why in bad.items()}


def test_floats_that_are_no_exact_ids_are_told(tmp_path):
    hashed = Hashed(ids="int64", buckets=8)
    shop = IdInput(name="shop", side="candidate", vocabulary_size=9, encoding=hashed)
    tags = IdListInput(
        name="tags", side="candidate", vocabulary_size=9, encoding=hashed, max_length=2
    )
    path = tmp_path / "items.parquet"
    large = 2.0**53 + 2
    columns = {"KEY": [1, 2, 3], "shop": [1.0, large, 2.0], "tags": [[1.0], [1.0], [1.0, large]]}
    parquet.write_table(pa.table(columns), path)
    _, rows = encoded(path, [shop, tags])
    assert dict(rows.bad) == {
        2: [INEXACT.format(53).replace("KEY", "shop")],
        3: [INEXACT.format(53).replace("KEY", "tags")],
    }


def test_string_views_are_strings(tmp_path):
    path = tmp_path / "items.parquet"
    tags = IdListInput(
        name="tags",
        side="candidate",
        vocabulary_size=9,
        encoding=Hashed(buckets=8),
        max_length=2,
    )
    texts, lists = ["a", None, "long " * 9], [["a"], ["b", "a"], []]
    for view, plain in ((pa.string_view(), pa.string()), (pa.large_string(), pa.string())):
        records = []
        for kind in (view, plain):
            table = pa.table(
                {
                    "KEY": [1, 2, 3],
                    "sku": pa.array(texts, kind),
                    "shop": pa.array(["a", "b", "a"], kind),
                    "tags": pa.array(lists, pa.list_(kind)),
                }
            )
            parquet.write_table(table, path)
            file = open_file(path)
            assert key_type_in(file, "sku") == "string"
            assert not any(
                column_problem(Source(feature, (feature.name,)), file) for feature in (SHOP, tags)
            )
            _, rows = encoded(path, [SHOP, tags])
            assert not rows.bad
            records.append(rows.records.tobytes())
            encoder = RowEncoder([], "sku", "string", {})
            (chunk,) = file.chunks(encoder.columns)
            assert encoder.encode(file, chunk).keys == [texts[0], texts[2]]
        assert records[0] == records[1]


@pytest.mark.parametrize(
    ("column", "needed", "what"),
    [
        (pa.array([b"a"]), None, "binary, the key needs integers or strings"),
        (pa.array([b"a"]), "string", "binary, the key needs strings"),
        (pa.array([True]), None, "bool, the key needs integers or strings"),
        (pa.array([1]), "string", "int64, the key needs strings"),
        (pa.array(["a"]), "int64", "string, the key needs integers"),
        (pa.array(["a"]).dictionary_encode(), "string", None),
        (pa.array([1.0]), "int64", None),
        (pa.array([None]), "int64", None),
        (pa.array([1], pa.uint8()), None, None),
    ],
)
def test_a_column_that_cannot_be_the_key_is_named_at_once(tmp_path, column, needed, what):
    path = tmp_path / "items.parquet"
    parquet.write_table(pa.table({"sku": column}), path)
    problem = "" if what is None else f'{path}: column "sku" is {what}'
    assert key_column_problem(open_file(path), "sku", needed) == problem


def test_identity_ids_and_int64_hashes_of_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"KEY": [1, 2], "f": pa.array([2**64 - 1, 3], pa.uint64())}), path)
    hashed = IdInput(
        name="f", side="user", vocabulary_size=9, encoding=Hashed(ids="int64", buckets=8)
    )
    for encoding in (Identity(), hashed.encoding):
        feature = hashed.model_copy(update={"encoding": encoding})
        _, rows = encoded(path, [feature])
        assert rows.bad == {1: ['column "f": must fit in int64']}
        assert len(rows.records) == 1
