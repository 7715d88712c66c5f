"""Large documents: both parsers give the same tensors, or the same problems."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import example, given, strategies as st

from app.artifacts.inputs import DenseInput
from app.errors import MalformedBody, PayloadTooLarge
from app.protocol.json_body import LARGE_BYTES, decode
from app.protocol.open_inference.document import decode_document, read_arrays
from app.protocol.open_inference.tensor_data import elements_from_json
from tests.support.builders import manifest

NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**64 - 1),
)
JUNK = st.sampled_from(({}, [], [1], [[1.5]], "x", None, True, {"a": 1}, 2**70, -0.0, 1e39))
WIDE = manifest(inputs=(DenseInput(name="x", side="candidate", dim=100),))


@st.composite
def documents(draw):
    """A document of one tensor, its rows and its width; most of its data is numbers."""
    rows, width = draw(st.integers(0, 4)), draw(st.integers(1, 3))
    value = draw(st.sampled_from((NUMBERS, NUMBERS, NUMBERS | JUNK)))
    if draw(st.booleans()):
        data = draw(st.lists(value, min_size=rows * width, max_size=rows * width))
    else:
        lengths = st.just(width) if draw(st.booleans()) else st.integers(0, 3)
        row = lengths.flatmap(lambda length: st.lists(value, min_size=length, max_size=length))
        data = draw(st.lists(row, min_size=rows, max_size=rows))
    tensor = {
        "name": "x",
        "datatype": draw(st.sampled_from(("FP32", "BF16", "INT64"))),
        "data": data,
    }
    return {"inputs": [tensor], "id": draw(st.text(max_size=3))}, rows, width


def outcome(document, rows, width):
    """Return the tensor's content, its problems and its other members."""
    problems: list[tuple[str, str]] = []
    (tensor,) = document["inputs"]

    def add_problem(*problem):
        problems.append(problem)

    found = elements_from_json(tensor["data"], tensor["datatype"], rows, width, add_problem)
    content = found.tobytes() if isinstance(found, np.ndarray) else found
    return content, problems, {name: tensor[name] for name in tensor if name != "data"}


def counted(body):
    return body.count(b"[") + body.count(b"{")


@given(documents())
@example(({"inputs": [{"datatype": "FP32", "data": [1, [2], 3]}]}, 3, 1))
@example(({"inputs": [{"datatype": "FP32", "data": [[1, [2]], [3, 4]]}]}, 2, 2))
@example(({"inputs": [{"datatype": "FP32", "data": [[1], [2, 3, 4]]}]}, 2, 2))
def test_both_parsers_give_the_same_tensors_and_problems(drawn):
    document, rows, width = drawn
    body = json.dumps(document).encode()
    fast = read_arrays(body, counted(body))
    if fast is not None:
        assert fast.keys() == document.keys()
        assert outcome(fast, rows, width) == outcome(decode(body), rows, width)


@pytest.mark.parametrize("nested", [False, True])
def test_floats_of_a_large_document_become_an_array(nested):
    x = np.random.default_rng(0).random((50, 100))
    data = x if nested else x.ravel()
    document = {"inputs": [{"name": "x", "datatype": "FP32", "data": data.tolist()}], "id": "a"}
    body = orjson.dumps(document)
    assert len(body) > LARGE_BYTES
    found = decode_document(body, WIDE, max_candidates=50)
    assert isinstance(found, dict)
    assert found["id"] == "a"
    assert np.array_equal(found["inputs"][0]["data"], data)


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"inputs": []}',
        b'{"inputs": [], "inputs": []}',
        b'{"inputs": [{"name": "x", "name": "y"}]}',
        b'{"inputs": 1}',
        b'{"inputs": [1]}',
        b"[]",
        b"{",
        b'{"id": 1}',
    ],
)
def test_unusual_documents_are_left_to_orjson(body):
    assert read_arrays(body, counted(body)) is None


def test_wrong_documents_of_any_size_are_refused():
    padding = b" " * LARGE_BYTES
    with pytest.raises(MalformedBody):
        decode_document(b"{" + padding, WIDE, max_candidates=9)
    with pytest.raises(PayloadTooLarge):
        decode_document(b'{"inputs": [' + b"0," * 10**6, WIDE, max_candidates=9)


@pytest.mark.parametrize("is_inside", [False, True])
def test_object_with_many_members_is_parsed_by_orjson(is_inside):
    """simdjson finds a member by scanning all before it."""
    tensor: dict[str, object] = {"name": "x", "datatype": "FP32", "data": [1.5]}
    document: dict[str, object] = {"inputs": [tensor]}
    (tensor if is_inside else document).update({f"k{number}": 0 for number in range(1000)})
    body = orjson.dumps(document)
    assert read_arrays(body, counted(body)) is None
