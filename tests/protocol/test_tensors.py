"""Tensors to columns: equal to the naive encoder's, and problems with their places."""

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.artifacts.encoding import Hashed, Listed
from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.protocol.tensors import Tensor, encode_tensors, rows_and_width, shape_rule
from app.protocol.validation import ValidationReport
from tests.support.builders import manifest
from tests.support.documents import Case, cases, expected


def without_padding(feature, ids):
    """Return a list without the padding at its end (or its beginning)."""
    padding = "" if feature.encoding.id_type is str else feature.padding
    kept = list(ids)
    end = -1 if feature.padding_side == "right" else 0
    while kept and kept[end] == padding:
        del kept[end]
    return kept


def values_of(feature, value):
    """Return a row of a tensor as plain Python."""
    if isinstance(feature, DenseInput):
        numbers = value if isinstance(value, list | tuple) else [value]
        return [float(np.float32(float(number))) for number in numbers]
    return [value] if isinstance(feature, IdInput) else without_padding(feature, value)


def tensor_of(draw, feature, rows):
    """Return a tensor of rows that may differ in length; its width is drawn."""
    width = max(map(len, rows), default=1)
    if isinstance(feature, IdListInput):
        width = draw(st.integers(max(map(len, rows), default=0), feature.max_length))
        padding = "" if feature.encoding.id_type is str else feature.padding
        pads = [[padding] * (width - len(row)) for row in rows]
        is_right = feature.padding_side == "right"
        rows = [
            [*row, *pad] if is_right else [*pad, *row] for row, pad in zip(rows, pads, strict=True)
        ]
    elif isinstance(feature, DenseInput):
        width = feature.dim
    if not isinstance(feature, DenseInput) and feature.encoding.id_type is str:
        return Tensor("/x", [value for row in rows for value in row], len(rows), width)
    dtype = np.float32 if isinstance(feature, DenseInput) else np.int64
    array: Any = np.array(rows, dtype).reshape(len(rows), width)
    if draw(st.booleans()):  # as in a body: read-only and unaligned
        stored = b"?" + array.tobytes()
        array = np.frombuffer(stored, dtype, offset=1).reshape(array.shape)
    return Tensor("/x", array, len(rows), width)


@given(st.data(), cases().filter(lambda case: isinstance(case.candidates, dict)))
def test_columns_equal_those_of_the_naive_encoder(data, case):
    tensors = {}
    plain = Case(case.manifest, dict(case.user), dict(case.candidates), case.rows)
    for feature in case.manifest.inputs:
        is_of_user = feature.side == "user"
        side = case.user if is_of_user else case.candidates
        if feature.name not in side:
            continue
        sent = [side[feature.name]] if is_of_user else side[feature.name]
        rows = [values_of(feature, value) for value in sent]
        kept = rows if isinstance(feature, IdListInput | DenseInput) else sent
        if is_of_user:
            plain.user[feature.name] = kept[0]
            if case.rows and data.draw(st.booleans()):
                rows = rows * case.rows
        else:
            plain.candidates[feature.name] = kept
        tensors[feature.name] = tensor_of(data.draw, feature, rows)
    report = ValidationReport()
    found = encode_tensors(
        case.manifest, tensors, report, rows=case.rows, vocabularies=case.vocabularies
    )
    assert report.problems == []
    for feature in case.manifest.inputs:
        column = (found.user if feature.side == "user" else found.candidate)[feature.name]
        want, unknown = expected(plain, feature)
        np.testing.assert_array_equal(column, np.array(want, column.dtype).reshape(column.shape))
        assert found.unknown_ids.get(feature.name, 0) == unknown
        assert len(column) == (1 if feature.side == "user" else case.rows)


X = DenseInput(name="x", side="candidate", dim=2)
ID = IdInput(name="id", side="candidate", vocabulary_size=5, unknown="reject")
LIST = IdListInput(name="ids", side="user", vocabulary_size=5, max_length=3, unknown="reject")


def encoded(feature, values, rows, width, **changes):
    report = ValidationReport()
    tensor = Tensor("/inputs/0", values, rows, width)
    described = manifest(inputs=(feature,))
    result = encode_tensors(described, {feature.name: tensor}, report, rows=3, **changes)
    return result, [(problem.pointer, problem.detail) for problem in report.problems]


def test_every_nonfinite_number_is_reported():
    values = np.array([[0, np.nan], [1, 2], [np.inf, 3]], np.float32)
    _, problems = encoded(X, values, 3, 2)
    rule = "x must be finite and within the range of float32"
    assert problems == [
        ("/inputs/0", f"{rule} (row 0, element 1)"),
        ("/inputs/0", f"{rule} (row 2, element 0)"),
    ]


def test_rejected_ids_are_reported_with_their_rows():
    _, problems = encoded(ID, np.array([[0], [5], [-1]]), 3, 1)
    rule = "id must be an id between 0 and 4"
    assert problems == [("/inputs/0", f"{rule} (row 1)"), ("/inputs/0", f"{rule} (row 2)")]


def test_padding_value_within_a_list_is_an_id():
    result, problems = encoded(LIST, np.array([[3, -1, -1]]), 1, 3)
    assert problems == []
    assert result.user["ids"].tolist() == [[3, -1, -1]]
    _, problems = encoded(LIST, np.array([[-1, 3, -1]]), 1, 3)
    rule = "ids must be an id between 0 and 4 (row 0, element 0)"
    assert problems == [("/inputs/0", rule)]


def test_empty_string_within_a_list_is_an_id():
    feature = IdListInput(
        name="ids", side="user", vocabulary_size=9, max_length=3, encoding=Hashed(buckets=8)
    )
    result, _ = encoded(feature, ["a", "", ""], 1, 3)
    assert result.unknown_ids == {}
    assert result.user["ids"][0, 1:].tolist() == [-1, -1]
    result, _ = encoded(feature, ["", "a", ""], 1, 3)
    assert result.unknown_ids == {"ids": 1}
    assert result.user["ids"][0, 0] == 0


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_a_measured_list_pads_at_one_end_only(width, side):
    feature = LIST.model_copy(update={"padding": 0, "padding_side": side})
    ends = [[0] * width, [*[0] * (width - 1), 3], [4, *[0] * (width - 1)]]
    wrong = ends[2] if side == "left" else ends[1]
    rule = "ids must be an id between 1 and 4: 0 is the padding of this feature (row 0, element "
    for row in ends:
        result, found = encoded(feature.measured(), np.array([row]), 1, width)
        if row == wrong:
            places = [place for place, value in enumerate(row) if not value]
            assert found == [("/inputs/0", f"{rule}{place})") for place in places]
        else:
            assert found == []
            plain, _ = encoded(feature, np.array([row]), 1, width)
            np.testing.assert_array_equal(result.user["ids"], plain.user["ids"])


def test_ids_that_become_the_padding_of_a_measured_list_are_refused():
    feature = IdListInput(
        name="ids",
        side="user",
        vocabulary_size=5,
        max_length=3,
        padding=0,
        encoding=Listed(file="vocabulary.ids.jsonl"),
    ).measured()
    known = {"ids": {"a": 1}}
    result, found = encoded(feature, ["a", "", ""], 1, 3, vocabularies=known)
    assert (found, result.user["ids"].tolist()) == ([], [[1, 0, 0]])
    _, found = encoded(feature, ["z", "a", ""], 1, 3, vocabularies=known)
    rule = "must be a known id: unknown ids are row 0, and 0 is the padding of this feature"
    assert found == [("/inputs/0", f"ids {rule} (row 0, element 0)")]


def test_differing_user_rows_are_reported_once():
    age = DenseInput(name="age", side="user")
    _, problems = encoded(age, np.array([[1], [1], [2]], np.float32), 3, 1)
    assert problems == [("/inputs/0", "age is a user feature: send one row, or n equal rows")]
    _, problems = encoded(age, np.full((3, 1), np.nan, np.float32), 3, 1)
    assert [detail for _, detail in problems] == [
        f"age must be finite and within the range of float32 (row {row})" for row in range(3)
    ]


def test_differing_user_strings_are_reported():
    brand = IdInput(
        name="brand",
        side="user",
        vocabulary_size=9,
        encoding=Listed(file="vocabulary.brand.jsonl"),
    )
    known = {"vocabularies": MappingProxyType({"brand": {"a": 1}})}
    result, problems = encoded(brand, ["a", "a", "a"], 3, 1, **known)
    assert (problems, result.user["brand"].tolist()) == ([], [1])
    _, problems = encoded(brand, ["a", "a", "b"], 3, 1, **known)
    assert len(problems) == 1


def test_encoding_does_not_change_the_tensors():
    unknown = IdInput(name="id", side="candidate", vocabulary_size=5)
    sent = np.array([[9], [1], [7]])
    result, _ = encoded(unknown, sent, 3, 1)
    assert result.candidate["id"].tolist() == [0, 1, 0]
    assert sent.tolist() == [[9], [1], [7]]


def test_usable_arrays_are_not_copied():
    sent = np.ones((3, 2), np.float32)
    result, _ = encoded(X, sent, 3, 2)
    assert np.shares_memory(result.candidate["x"], sent)


def test_integers_are_rounded_as_python_integers_are():
    large = [[2**62 + 2**38 + 1, -(2**53) - 1]] * 3
    result, _ = encoded(X, np.array(large), 3, 2)
    assert result.candidate["x"].tolist() == [[float(np.float32(float(n))) for n in large[0]]] * 3


@pytest.mark.parametrize(
    ("feature", "shape", "found"),
    [
        (X, [3, 2], (3, 2)),
        (X, [6], None),
        (X, [3, 3], None),
        (X, [3, 2, 1], None),
        (X, [], None),
        (DenseInput(name="y", side="user"), [1], (1, 1)),
        (DenseInput(name="y", side="user"), [1, 1], (1, 1)),
        (ID, [4], (4, 1)),
        (ID, [4, 1], (4, 1)),
        (ID, [4, 2], None),
        (LIST, [1, 0], (1, 0)),
        (LIST, [1, 3], (1, 3)),
        (LIST, [1, 4], None),
        (LIST, [3], None),
    ],
)
def test_shape_gives_rows_and_width(feature, shape, found):
    assert rows_and_width(feature, shape) == found
    assert shape_rule(feature).startswith("must have shape [")
