"""Two members of one name in an object are refused with their place, whatever the parser."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, strategies as st

from app.artifacts.inputs import DenseInput, IdInput
from app.errors import FieldError, InvalidRequest
from app.protocol.dialect import ParseContext
from app.protocol.duplicate_members import refuse_duplicates
from app.protocol.json_body import LARGE_BYTES
from app.protocol.native import Native
from app.protocol.open_inference.infer import OpenInference
from tests.support.builders import manifest, own_policies
from tests.support.fakes import sums_model

NAMES = st.sampled_from(["user", "candidates", "weights", "a", "", ":", 'q":', "a : b", "\\", "é"])
SPACE = st.sampled_from(["", "", " ", "\n", "\t ", "\r"])
SCALARS = st.sampled_from(["1", "-2.5e3", "null", "true", "[]", "{}", '""']) | NAMES.map(json.dumps)


@st.composite
def texts(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    """An object or a list as text; names may occur twice, and be written with escapes."""
    if draw(st.booleans()):
        return f"[{', '.join(draw(st.lists(inner, max_size=3)))}]"
    pairs = draw(st.lists(st.tuples(NAMES, st.booleans(), SPACE, SPACE, inner), max_size=3))
    members = [
        f"{json.dumps(name, ensure_ascii=escaped)}{before}:{after}{value}"
        for name, escaped, before, after, value in pairs
    ]
    return f"{{{draw(SPACE)}{','.join(members)}}}"


def naive_places(text: str) -> set[str]:
    """The pointers of the names that occur twice; an object becomes a list of its pairs."""

    def walk(value: Any, pointer: str) -> set[str]:
        found: set[str] = set()
        if isinstance(value, tuple):
            names = [name for name, _ in value]
            for name, member in value:
                place = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
                found |= {place} if names.count(name) > 1 else set()
                if names.count(name) == 1 or member is dict(value)[name]:  # the last one counts
                    found |= walk(member, place)
        elif isinstance(value, list):
            for position, element in enumerate(value):
                found |= walk(element, f"{pointer}/{position}")
        return found

    return walk(json.loads(text, object_pairs_hook=tuple), "")


@pytest.mark.no_cover
@given(st.recursive(SCALARS, texts, max_leaves=12))
def test_check_equals_a_parser_that_keeps_every_member(text):
    expected = naive_places(text)
    body = text.encode()
    try:
        refuse_duplicates(body, orjson.loads(body))
        found: set[str] = set()
    except InvalidRequest as error:
        found = {problem.pointer for problem in error.problems}
        assert found
    assert found == expected


MODEL = manifest(
    inputs=(
        DenseInput(name="age", side="user"),
        IdInput(name="item", side="candidate", vocabulary_size=10),
        DenseInput(name="quality", side="candidate", dim=20),
    )
)


def problems(subject: Native | OpenInference, body: bytes) -> list[FieldError]:
    model = replace(sums_model(), manifest=MODEL)
    context = ParseContext(model, own_policies(MODEL), headers={}, max_candidates=4096)
    with pytest.raises(InvalidRequest) as caught:
        subject.parse(body, context)
    return caught.value.problems


def twice(name: str) -> str:
    return f'duplicate member "{name}": names in an object must be different'


QUALITY = orjson.dumps([[0.5] * 20] * 500)
ITEMS = orjson.dumps([1] * 500)
OBJECTS = orjson.dumps([{"item": 1, "quality": [0.5] * 20}] * 500)[1:]
LARGE = b'{"user":{"age":3},"candidates":{"item":%b,"quality":%b}}' % (ITEMS, QUALITY)
assert len(LARGE) > LARGE_BYTES


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"user":{"age":3},"user":{"age":4},"candidates":{}}', "/user"),
        (b'{"user":{"age":3,"age":3},"candidates":{}}', "/user/age"),
        (b'{"user":{"age":3},"candidates":[{"item":1},{"item":1,"item":2}]}', "/candidates/1/item"),
        (LARGE.replace(b'"user"', b'"user":{"age":4},"user"', 1), "/user"),
        (LARGE.replace(b'"age":3', b'"age":3,"age":3', 1), "/user/age"),
        (LARGE.replace(b'"item"', b'"item":[],"item"', 1), "/candidates/item"),
        (
            b'{"user":{"age":3},"candidates":[{"item":1,"item":1},%b}' % OBJECTS,
            "/candidates/0/item",
        ),
        (LARGE.replace(b"0.5", b'NaN]],"quality":[[0.5', 1), "/candidates/quality"),
        (
            LARGE.replace(b'"user"', b'"ranking":{"weights":{"click":1,"click":2}},"user"', 1),
            "/ranking/weights/click",
        ),
    ],
    ids=[
        "user",
        "feature",
        "candidate",
        "large: user",
        "large: feature",
        "large: column",
        "large: candidate",
        "large: NaN",
        "large: weight",
    ],
)
def test_native_request_with_a_duplicate_is_refused(body, place):
    assert problems(Native(), body) == [FieldError(place, twice(place.rpartition("/")[2]))]


V2 = {
    "inputs": [
        {"name": "age", "datatype": "FP32", "shape": [1, 1], "data": [3]},
        {"name": "item", "datatype": "INT64", "shape": [500], "data": [1] * 500},
        {"name": "quality", "datatype": "FP32", "shape": [500, 20], "data": [0.5] * 10_000},
    ]
}
DATA = b'"data":[0.5'


@pytest.mark.parametrize("is_large", [True, False], ids=["large", "small"])
@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        (b'"inputs"', b'"inputs":[],"inputs"', "/inputs"),
        (b'"shape":[1,1]', b'"shape":[1,1],"shape":[1,1]', "/inputs/0/shape"),
        (b'"inputs"', b'"parameters":{"policy":"a","policy":"b"},"inputs"', "/parameters/policy"),
    ],
    ids=["inputs", "input", "parameters"],
)
def test_v2_request_with_a_duplicate_is_refused(is_large, old, new, place):
    document = V2 if is_large else {"inputs": V2["inputs"][:1]}
    body = orjson.dumps(document).replace(old, new, 1)
    assert (len(body) > LARGE_BYTES) == is_large
    assert problems(OpenInference(), body) == [FieldError(place, twice(place.rpartition("/")[2]))]


def test_at_most_twenty_duplicates_are_listed():
    body = b'{"user":{%b}}' % b",".join(b'"x%d":1,"x%d":1' % (n, n) for n in range(100))
    found = problems(Native(), body)
    assert len(found) == 20
    assert found[0] == FieldError("/user/x0", twice("x0"))


@pytest.mark.parametrize(
    "body",
    [
        b'{"user":1,"user":%b1%b}' % (b"[" * 900, b"]" * 900),
        b'{"user":1,"user":[%b1]}' % (b"1," * 600_000),
    ],
    ids=["deep", "large"],
)
def test_duplicate_is_refused_where_its_place_is_not_searched(body):
    with pytest.raises(InvalidRequest) as caught:
        refuse_duplicates(body, orjson.loads(body))
    assert caught.value.problems[0].pointer in ("", "/user")


def test_strings_with_colons_are_no_members():
    keys = [f"sku:{number}" for number in range(100)] + [" : ", '":', "\\", '\\":']
    document = {"user": ":", "candidates": keys}
    for text in (orjson.dumps(document), json.dumps(document, indent=1).encode()):
        refuse_duplicates(text, document)


@pytest.mark.parametrize("size", [7_000, 9_000, 600_000])
def test_members_are_counted_to_the_end_of_a_body_of_any_size(size):
    body = b'{"user":1,"text":"%b","last":2}' % (b"1" * size)
    refuse_duplicates(body, orjson.loads(body))
    body = body.replace(b"last", b"user")
    with pytest.raises(InvalidRequest):
        refuse_duplicates(body, orjson.loads(body))


def test_arrays_of_a_large_document_are_not_counted():
    document = {"user": {"a": np.zeros(3)}}
    refuse_duplicates(b'{"user":{"a":[0,0,0]}}', document)
