"""Tensor data: binary survives a round trip, and each wrong JSON value is reported."""

import io
import math
import struct

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from app.protocol.open_inference.tensor_data import (
    elements_from_json,
    numbers_from_bytes,
    strings_from_bytes,
)
from tests.protocol.open_inference.tensors import to_bytes

TEXTS = st.lists(st.text(max_size=5), max_size=6)
INTEGERS = {"INT32": st.integers(-(2**31), 2**31 - 1), "INT64": st.integers(-(2**63), 2**63 - 1)}


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "INT32", "INT64"])
@given(st.data())
def test_binary_numbers_survive_a_round_trip(datatype, data):
    rows, width = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 3))
    element = INTEGERS.get(datatype, st.floats(width=16 if datatype == "FP16" else 32))
    flat = data.draw(st.lists(element, min_size=rows * width, max_size=rows * width))
    if datatype == "BF16":  # only what it can hold
        flat = [struct.unpack("<f", b"\0\0" + struct.pack("<f", number)[2:])[0] for number in flat]
    before = data.draw(st.binary(max_size=3))  # a tensor may begin at any offset
    content = memoryview(before + to_bytes(datatype, flat))[len(before) :]
    found = numbers_from_bytes(datatype, content, rows, width)
    assert found.shape == (rows, width)
    assert found.dtype == (np.int64 if datatype in INTEGERS else np.float32)
    np.testing.assert_array_equal(found.ravel(), np.array(flat, found.dtype))


@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
def test_fp32_and_int64_are_views_of_the_body(datatype):
    body = bytes(64)
    found = numbers_from_bytes(
        datatype, memoryview(body)[16:48], 2, 2 if datatype == "INT64" else 4
    )
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))


@given(TEXTS)
def test_binary_strings_survive_a_round_trip(texts):
    assert strings_from_bytes(memoryview(to_bytes("BYTES", texts)), len(texts)) == texts


@given(TEXTS.filter(bool), st.data())
def test_truncated_strings_are_refused(texts, data):
    content = to_bytes("BYTES", texts)
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError, match=r"has \d+$|ends within"):
        strings_from_bytes(memoryview(content[:cut]), len(texts))


@given(TEXTS, st.binary(min_size=1, max_size=9))
def test_strings_with_trailing_bytes_are_refused(texts, more):
    with pytest.raises(ValueError, match="has more data after"):
        strings_from_bytes(memoryview(to_bytes("BYTES", texts) + more), len(texts))


@given(st.binary(max_size=40), st.integers(0, 5))
@example(b"\xff\xff\xff\xff", 1)
@example(b"\x01\0\0\0\xff", 1)
def test_arbitrary_bytes_are_strings_or_refused(content, count):
    """Compared with a twin that reads a stream."""
    stream = io.BytesIO(content)
    found: list[str] = []
    expected: list[str] | None = found
    try:
        for _ in range(count):
            (length,) = struct.unpack("<I", stream.read(4))
            element = stream.read(length)
            assert len(element) == length
            found.append(element.decode())
        assert not stream.read()
    except (struct.error, AssertionError, UnicodeDecodeError):
        expected = None
    if expected is None:
        with pytest.raises(ValueError, match=r"elements|ends within|UTF-8"):
            strings_from_bytes(memoryview(content), count)
    else:
        assert strings_from_bytes(memoryview(content), count) == expected


def test_string_that_is_not_utf8_is_reported():
    content = to_bytes("BYTES", ["a"]) + b"\x02\0\0\0\xc3\x28"
    with pytest.raises(ValueError, match=r"must be UTF-8 text \(element 1\)"):
        strings_from_bytes(memoryview(content), 2)


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
    """Return what `elements_from_json` returns, and its problems."""
    problems: list[tuple[str, str]] = []
    found = elements_from_json(
        data, datatype, rows, width, lambda *problem: problems.append(problem)
    )
    return found, problems


def rule_of(value, datatype):
    """Return the rule that a value breaks, or None (the naive twin)."""
    if datatype == "BYTES":
        return None if isinstance(value, str) else "must be a string"
    if datatype == "FP32":
        if not isinstance(value, int | float):
            return "must be a number"
        return None
    if isinstance(value, float) and math.isfinite(value) and abs(value) >= 2**63:
        return f"must fit in {datatype}"  # JSON's reader makes floats of such integers
    if not isinstance(value, int) or isinstance(value, bool):
        return "must be an integer"
    limit = 2**31 if datatype == "INT32" else 2**63
    return None if -limit <= value < limit else f"must fit in {datatype}"


@pytest.mark.no_cover
@pytest.mark.parametrize("datatype", ["FP32", "INT32", "INT64", "BYTES"])
@given(st.data())
def test_every_json_value_is_read_or_reported(datatype, data):
    rows, width = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
    flat = data.draw(st.lists(VALUES, min_size=rows * width, max_size=rows * width))
    is_nested = bool(rows) and data.draw(st.booleans())
    # Rows of one value that is a list look like nested data.
    if not is_nested and rows and width == 1 and all(isinstance(value, list) for value in flat):
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
        assert all(not abs(number) < 2**128 - 2**103 for number in beyond)
    elif datatype == "BYTES":
        assert found == flat
    else:
        assert found.shape == (rows, width)
        if datatype == "FP32":
            with np.errstate(over="ignore"):
                expected = np.array([float(number) for number in flat]).astype(np.float32)
            np.testing.assert_array_equal(found.ravel(), expected)
        else:
            assert found.ravel().tolist() == flat


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_fp16_and_bf16_in_json_are_read_as_float32(datatype):
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
def test_data_of_a_wrong_form_is_reported(data, problem):
    assert read(data, "FP32", 3, 2) == (None, [problem])


def test_only_the_first_wrong_values_are_reported():
    _, problems = read([None] * 1000, "FP32", 1000, 1)
    assert len(problems) == 20


def test_empty_id_list_is_read():
    found, problems = read([], "INT64", 1, 0)
    assert (found.shape, problems) == ((1, 0), [])
    found, problems = read([[], []], "INT64", 2, 0)
    assert (found.shape, problems) == ((2, 0), [])


def test_infinities_are_left_to_feature_validation():
    found, problems = read([math.inf, math.nan], "FP32", 2, 1)
    assert problems == []
    assert not np.isfinite(found).any()
