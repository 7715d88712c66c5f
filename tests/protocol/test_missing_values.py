"""Missing values in requests: what a feature declares, in every form of a request."""

import json
import math
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.api.openapi.request_schema import request_schema
from app.api.openapi.score_schemas import ScoreRequest
from app.artifacts.encoding import Hashed
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.engine.request import RequestFeatures
from app.errors import InvalidRequest
from app.protocol.features import column_by_value, encode
from app.protocol.json_body import decode, decode_request
from app.protocol.open_inference.inputs import read_heads, read_tensors
from app.protocol.tensors import encode_tensors
from app.protocol.validation import Side, ValidationReport
from tests.protocol.open_inference.tensors import Sent
from tests.support.builders import manifest

NAN = math.nan
DECLARED = (
    DenseInput(name="filled", side="candidate", dim=2, default=(5.0, 6.0), missing="default"),
    DenseInput(name="own", side="candidate", dim=2, default=(1.0, 2.0), missing="nan"),
    DenseInput(name="price", side="candidate", default=(7.0,), missing="default"),
    DenseInput(name="age", side="candidate", default=(8.0,), missing="nan"),
)
STRICT = (
    DenseInput(name="filled", side="candidate", dim=2, default=(5.0, 6.0)),
    DenseInput(name="price", side="candidate", default=(7.0,)),
)
ITEM = IdInput(name="item", side="candidate", vocabulary_size=9, unknown=4, missing="unknown")
NAMED = IdInput(
    name="named",
    side="candidate",
    vocabulary_size=9,
    missing="unknown",
    encoding=Hashed(ids="string", buckets=8),
)
TAGS = IdListInput(
    name="tags", side="candidate", vocabulary_size=9, max_length=3, unknown=4, missing="unknown"
)


def encoded(inputs: tuple[Input, ...], document: dict[str, Any]) -> RequestFeatures:
    report = ValidationReport()
    found = encode(
        manifest(inputs=inputs),
        document.get("user", {}),
        document["candidates"],
        report,
        max_candidates=9999,
    )
    report.raise_any()
    return found


def by_tensors(inputs: tuple[Input, ...], sent: list[Sent], *, binary: bool) -> RequestFeatures:
    """The features of V2 inputs; the data is in JSON or follows it."""
    report = ValidationReport()
    content = b""
    heads = []
    for tensor in sent:
        head, data = tensor.as_binary() if binary else (tensor.as_json(), b"")
        heads.append(head)
        content += data
    of = manifest(inputs=inputs)
    found, rows = read_heads(heads, len(content), of, report, max_candidates=9999)
    tensors = read_tensors(found, rows, memoryview(content), report)
    features = encode_tensors(of, tensors, report, rows=rows)
    report.raise_any()
    return features


def expected(feature: DenseInput, rows: list[Any]) -> Any:
    """The column as a plain loop makes it; null rows and numbers are missing."""
    assert feature.default is not None
    fill = feature.default if feature.missing == "default" else (NAN,) * feature.dim
    column = []
    for row in rows:
        numbers = [row] * feature.dim if row is None or feature.dim == 1 else row
        column.append(
            [
                fill[i] if value is None or value != value else value
                for i, value in enumerate(numbers)
            ]
        )
    return np.array(column, np.float32).reshape(len(rows), feature.dim)


number = st.one_of(st.none(), st.just(NAN), st.floats(-9, 9, width=32))
vector = st.one_of(st.none(), st.lists(number, min_size=2, max_size=2))


@given(
    st.lists(st.tuples(vector, vector, number, number), min_size=1, max_size=4),
    st.booleans(),
)
def test_missing_numbers_become_what_the_feature_declares(rows, as_objects):
    names = [feature.name for feature in DECLARED]
    columns = {
        name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    candidates: Any = columns
    if as_objects:
        candidates = [dict(zip(names, row, strict=True)) for row in rows]
    found = encoded(DECLARED, {"candidates": candidates}).candidate
    for feature in DECLARED:
        want = expected(feature, columns[feature.name])
        np.testing.assert_array_equal(found[feature.name], want, strict=True)
        report = ValidationReport()
        side = Side({}, len(rows), "columns")
        slow = column_by_value(feature, columns[feature.name], side, report)
        np.testing.assert_array_equal(slow, want, strict=True)
        assert report.problems == []


@given(st.lists(st.tuples(number, number), min_size=1, max_size=4), st.booleans())
def test_tensors_give_the_columns_of_json(rows, binary):
    values = [[NAN if binary and value is None else value for value in row] for row in rows]
    sent = [
        Sent(feature.name, "FP32", (len(rows), 2), values)
        if feature.dim == 2
        else Sent(feature.name, "FP32", (len(rows),), [row[0] for row in values])
        for feature in DECLARED
    ]
    found = by_tensors(DECLARED, sent, binary=binary).candidate
    for feature in DECLARED:
        column = rows if feature.dim == 2 else [row[0] for row in rows]
        want = expected(feature, [list(value) if feature.dim == 2 else value for value in column])
        np.testing.assert_array_equal(found[feature.name], want, strict=True)


def test_a_feature_that_is_left_out_is_missing_or_has_its_default():
    full = {"filled": [[0, 0]], "price": [0]}
    found = encoded(DECLARED, {"candidates": full}).candidate
    np.testing.assert_array_equal(found["own"], [[NAN, NAN]])
    np.testing.assert_array_equal(found["age"], [[NAN]])
    some = [full | {"filled": [1, 2], "price": 3}, {"price": 4}]
    found = encoded(DECLARED, {"candidates": some}).candidate
    np.testing.assert_array_equal(found["filled"], [[1, 2], [5, 6]])
    np.testing.assert_array_equal(found["own"], [[NAN, NAN]] * 2)
    tensors = by_tensors(DECLARED, [Sent("price", "FP32", (1,), [3.0])], binary=True).candidate
    np.testing.assert_array_equal(tensors["own"], [[NAN, NAN]])
    np.testing.assert_array_equal(tensors["filled"], [[5, 6]])


@pytest.mark.parametrize("value", [None, NAN])
@pytest.mark.parametrize("rows", [1, 600])
def test_undeclared_missing_values_are_refused_at_their_place(value, rows):
    """The large body is read by another parser."""
    numbers: list[Any] = [[1.0, 2.0] for _ in range(rows)]
    numbers[-1][1] = value
    prices: list[Any] = [1.0] * (rows - 1) + [value]
    body = json.dumps({"candidates": {"filled": numbers, "price": prices}, "pad": " " * 40_000})
    of = manifest(inputs=STRICT)
    document = (
        decode_request(body.encode(), of, max_candidates=9999)
        if rows > 1
        else decode(body.encode())
    )
    assert isinstance(document, dict)
    with pytest.raises(InvalidRequest) as caught:
        encoded(STRICT, document)
    assert [problem.pointer for problem in caught.value.problems] == [
        f"/candidates/filled/{rows - 1}/1",
        f"/candidates/price/{rows - 1}",
    ]
    sent = [Sent("filled", "FP32", (rows, 2), numbers), Sent("price", "FP32", (rows,), prices)]
    with pytest.raises(InvalidRequest) as caught:
        by_tensors(STRICT, sent, binary=value is not None)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("value", [math.inf, 1e39, "a", [1], {}])
def test_other_wrong_values_stay_errors(value):
    candidates = {"filled": [[None, value]], "own": [[value, None]], "price": [value]}
    if value == [1]:
        candidates["price"] = [[1, 2]]
    with pytest.raises(InvalidRequest) as caught:
        encoded(DECLARED, {"candidates": candidates | {"age": [None]}})
    assert [problem.pointer for problem in caught.value.problems] == [
        "/candidates/filled/0/1",
        "/candidates/own/0/0",
        "/candidates/price/0",
    ]


def test_a_user_feature_that_is_nan_in_every_row_has_one_value():
    age = DenseInput(name="age", side="user", default=(8.0,), missing="nan")
    sent = [Sent("age", "FP32", (3, 1), [[NAN]] * 3), Sent("item", "INT64", (3,), [1, 2, 3])]
    found = by_tensors((age, ITEM), sent, binary=True)
    np.testing.assert_array_equal(found.user["age"], [[NAN]])
    sent[0] = Sent("age", "FP32", (3, 1), [[NAN], [NAN], [1.0]])
    with pytest.raises(InvalidRequest):
        by_tensors((age, ITEM), sent, binary=True)


def test_null_in_place_of_an_id_is_an_unknown_id_and_of_a_list_an_empty_one():
    columns = {
        "item": [None, 2],
        "named": [None, None],
        "tags": [None, [3, None]],
    }
    found = encoded((ITEM, NAMED, TAGS), {"candidates": columns})
    assert found.candidate["item"].tolist() == [4, 2]
    assert found.candidate["named"].tolist() == [0, 0]
    assert found.candidate["tags"].tolist() == [[-1, -1, -1], [3, 4, -1]]
    assert found.unknown_ids == {"item": 1, "named": 2, "tags": 1}


@pytest.mark.parametrize(
    ("name", "value"), [("item", None), ("named", None), ("tags", None), ("tags", [None])]
)
def test_undeclared_null_ids_are_refused(name, value):
    inputs = tuple(
        feature.model_copy(update={"missing": "refuse"}) for feature in (ITEM, NAMED, TAGS)
    )
    columns: dict[str, Any] = {"item": [1], "named": ["a"], "tags": [[]]}
    with pytest.raises(InvalidRequest) as caught:
        encoded(inputs, {"candidates": columns | {name: [value]}})
    place = f"/candidates/{name}/0" + ("/0" if value else "")
    assert [problem.pointer for problem in caught.value.problems] == [place]


def test_the_schema_of_a_request_allows_null_where_it_is_declared():
    def accepts(inputs: tuple[Input, ...], columns: dict[str, Any]) -> bool:
        schema = request_schema(manifest(inputs=inputs), ScoreRequest.model_json_schema())
        return bool(jsonschema_rs.validator_for(schema).is_valid({"candidates": columns}))

    numbers = {"filled": [[None, 1], None], "price": [None, 1]}
    assert accepts(DECLARED, numbers)
    assert not accepts(STRICT, numbers)
    assert not accepts(STRICT, {"filled": [None], "price": [1]})
    ids = {"item": [None], "named": [None], "tags": [[None]]}
    assert accepts((ITEM, NAMED, TAGS), ids)
    assert accepts((ITEM, NAMED, TAGS), ids | {"tags": [None]})
    strict = tuple(
        feature.model_copy(update={"missing": "refuse"}) for feature in (ITEM, NAMED, TAGS)
    )
    assert not accepts(strict, ids)
    assert not accepts(strict, {"item": [1], "named": ["a"], "tags": [None]})
