"""Tensors as bytes: there and back, and nothing that is cut, too long or no text gets through."""

import io
import struct

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from app.protocol.open_inference.binary import numbers, strings
from tests.protocol.open_inference.tensors import to_bytes

TEXTS = st.lists(st.text(max_size=5), max_size=6)
INTEGERS = {"INT32": st.integers(-(2**31), 2**31 - 1), "INT64": st.integers(-(2**63), 2**63 - 1)}


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "INT32", "INT64"])
@given(st.data())
def test_numbers_come_back(datatype, data):
    rows, width = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 3))
    element = INTEGERS.get(datatype, st.floats(width=16 if datatype == "FP16" else 32))
    flat = data.draw(st.lists(element, min_size=rows * width, max_size=rows * width))
    if datatype == "BF16":  # only what it can hold
        flat = [struct.unpack("<f", b"\0\0" + struct.pack("<f", each)[2:])[0] for each in flat]
    before = data.draw(st.binary(max_size=3))  # a tensor begins wherever the one before it ends
    content = memoryview(before + to_bytes(datatype, flat))[len(before) :]
    found = numbers(datatype, content, rows, width)
    assert found.shape == (rows, width)
    assert found.dtype == (np.int64 if datatype in INTEGERS else np.float32)
    np.testing.assert_array_equal(found.ravel(), np.array(flat, found.dtype))


@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
def test_numbers_of_the_models_own_types_are_a_view_of_the_body(datatype):
    body = bytes(64)
    found = numbers(datatype, memoryview(body)[16:48], 2, 2 if datatype == "INT64" else 4)
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))


@given(TEXTS)
def test_strings_come_back(texts):
    assert strings(memoryview(to_bytes("BYTES", texts)), len(texts)) == texts


@given(TEXTS.filter(bool), st.data())
def test_strings_that_are_cut_are_refused(texts, data):
    content = to_bytes("BYTES", texts)
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError, match=r"has \d+ elements|ends within"):
        strings(memoryview(content[:cut]), len(texts))


@given(TEXTS, st.binary(min_size=1, max_size=9))
def test_strings_that_go_on_are_refused(texts, more):
    with pytest.raises(ValueError, match="goes on after"):
        strings(memoryview(to_bytes("BYTES", texts) + more), len(texts))


@given(st.binary(max_size=40), st.integers(0, 5))
@example(b"\xff\xff\xff\xff", 1)
@example(b"\x01\0\0\0\xff", 1)
def test_any_bytes_are_strings_or_refused(content, count):
    """Held against a twin that reads a stream."""
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
        with pytest.raises(ValueError, match=r"elements|ends within|goes on|UTF-8"):
            strings(memoryview(content), count)
    else:
        assert strings(memoryview(content), count) == expected


def test_a_string_that_is_no_text_is_named():
    content = to_bytes("BYTES", ["a"]) + b"\x02\0\0\0\xc3\x28"
    with pytest.raises(ValueError, match=r"must be UTF-8 text \(element 1\)"):
        strings(memoryview(content), 2)
