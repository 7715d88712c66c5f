"""Tensors in JSON: flat and nested alike, and each wrong value with its place."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.protocol.open_inference.data import elements

FLOATS = st.floats(width=32, allow_nan=False) | st.integers(-(2**70), 2**70) | st.booleans()
VALUES = st.one_of(
    FLOATS,
    st.floats(),
    st.integers(),
    st.none(),
    st.text(max_size=2),
    st.lists(st.integers(0, 3), max_size=2),
    st.just({}),
)


def read(data, datatype, rows, width):
    """What `elements` returns, and its problems."""
    problems: list[tuple[str, str]] = []
    found = elements(data, datatype, rows, width, lambda *each: problems.append(each))
    return found, problems


def rule_of(value, datatype):
    """The naive twin: the rule that one value breaks, or none."""
    if datatype == "BYTES":
        return None if isinstance(value, str) else "must be a string"
    if datatype == "FP32":
        if not isinstance(value, int | float):
            return "must be a number"
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        return "must be an integer"
    limit = 2**31 if datatype == "INT32" else 2**63
    return None if -limit <= value < limit else f"must fit {datatype}"


@pytest.mark.parametrize("datatype", ["FP32", "INT32", "INT64", "BYTES"])
@given(st.data())
def test_whatever_stands_there_is_read_or_named(datatype, data):
    rows, width = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
    flat = data.draw(st.lists(VALUES, min_size=rows * width, max_size=rows * width))
    is_nested = bool(rows) and data.draw(st.booleans())
    # A row of one value that is itself a list would be nested: there is nothing to tell them by.
    if not is_nested and rows and width == 1 and all(isinstance(each, list) for each in flat):
        return
    document = (
        [flat[row * width : row * width + width] for row in range(rows)] if is_nested else flat
    )
    found, problems = read(document, datatype, rows, width)
    wrong = {place for place, value in enumerate(flat) if rule_of(value, datatype)}
    named = {}
    for pointer, rule in problems:
        *_, last = pointer.removeprefix("/data/").split("/")
        place = int(last)
        if is_nested:
            place += width * int(pointer.split("/")[2])
        named[place] = rule
    if wrong:
        assert found is None
        assert wrong <= named.keys()
        assert all(named[place] == rule_of(flat[place], datatype) for place in wrong)
    elif problems:  # a number that float32 cannot hold
        beyond = [flat[place] for place in named]
        assert all(not abs(each) < 2**128 - 2**103 for each in beyond)
    elif datatype == "BYTES":
        assert found == flat
    else:
        assert found.shape == (rows, width)
        if datatype == "FP32":
            with np.errstate(over="ignore"):
                expected = np.array([float(each) for each in flat]).astype(np.float32)
            np.testing.assert_array_equal(found.ravel(), expected)
        else:
            assert found.ravel().tolist() == flat


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_are_read_as_float32(datatype):
    found, problems = read([0.1, 1e-3], datatype, 2, 1)
    assert problems == []
    assert found.ravel().tolist() == np.array([0.1, 1e-3], np.float32).tolist()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("abcdef", ("/data", "must be a list")),
        ([1, 2, 3, 4, 5], ("/data", "must have 6 values, has 5")),
        ([], ("/data", "must have 6 values, has 0")),
        ([[1, 2], [3], [5, 6]], ("/data/1", "must have 2 values, has 1")),
        ([[1, 2], [3, 4]], ("/data", "must have 6 values, has 2")),
        ([[1, 2], [3, 4], 5], ("/data", "must have 6 values, has 3")),
        ([[1, 2], [3, [4]], [5, 6]], ("/data/1/1", "must be a number")),
    ],
)
def test_data_of_another_form_is_named(data, problem):
    assert read(data, "FP32", 3, 2) == (None, [problem])


def test_the_first_wrong_values_are_named_and_no_more():
    _, problems = read([None] * 1000, "FP32", 1000, 1)
    assert len(problems) == 20


def test_a_list_of_no_ids_is_read():
    found, problems = read([], "INT64", 1, 0)
    assert (found.shape, problems) == ((1, 0), [])
    found, problems = read([[], []], "INT64", 2, 0)
    assert (found.shape, problems) == ((2, 0), [])


def test_infinities_are_left_to_the_features_check():
    found, problems = read([math.inf, math.nan], "FP32", 2, 1)
    assert problems == []
    assert not np.isfinite(found).any()
