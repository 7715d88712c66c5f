"""JSON bodies: what is accepted, and that both parsers give the same result."""

import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, strategies as st

from app.artifacts.inputs import DenseInput
from app.artifacts.manifest import Manifest
from app.engine.request import RequestFeatures
from app.errors import MalformedBody, PayloadTooLarge
from app.protocol.features import encode
from app.protocol.json_body import LARGE_BYTES, decode, decode_request, most_values, read_matrices
from app.protocol.validation import ValidationReport
from tests.support.builders import manifest
from tests.support.documents import Case, cases, damaged

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=10,
)


@given(JSON)
def test_json_survives_a_round_trip(document):
    assert decode(json.dumps(document).encode()) == document


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity"])
def test_nan_and_infinity_are_read_for_validation_to_refuse(text):
    document = decode(b'{"candidates": {"quality": [1.5, ' + text + b"]}}")
    assert isinstance(document, dict)
    first, second = document["candidates"]["quality"]
    assert first == 1.5
    assert not math.isfinite(second)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"user": {"age": 3',
        b'{"a": 1,}',
        b"{'a': 1}",
        b"[1] [2]",
        b"\xff\xfe",
        b'{"a": "\xc3\x28"}',
        b'{"a": "\xed\xa0\x80"}',
        '{"a": 1}'.encode("utf-16"),
        b"nan",
        b"NaN NaN",
        b"[NaN",
        b"[" * 100_000,
        b"[NaN, " + b"[" * 100_000,
        b"[" * 5_000 + b"]" * 5_000,
        b"[" * 5_000 + b"NaN" + b"]" * 5_000,
        b"[NaN, " + b"9" * 10_000 + b"]",
    ],
    ids=lambda body: str(body[:20]),
)
def test_what_is_not_json_is_malformed(body):
    with pytest.raises(MalformedBody, match="invalid JSON"):
        decode(body)


def test_syntax_error_is_reported_by_place_without_text():
    with pytest.raises(MalformedBody) as caught:
        decode(b'{"user":\n  {"age": secret}}')
    assert str(caught.value).endswith("at line 2 column 11")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"candidate_keys": ["\ud800"], "user": NaN}',
        rb'{"\udfff": NaN}',
        b'{"candidate_keys": [1, 36893488147419103232], "note": NaN}',
    ],
)
def test_unwritable_values_are_refused_beside_nan(body):
    with pytest.raises(MalformedBody):
        decode(body)


def test_integer_of_many_digits_is_refused_unparsed(monkeypatch):
    """The time grows with the square of the digits, of which Python accepts 4300."""
    made: list[str] = []

    def integer(text: str) -> int:
        made.append(text)
        return 0

    monkeypatch.setattr("app.protocol.json_body.int", integer, raising=False)
    with pytest.raises(MalformedBody):
        decode(b"[NaN, 7, " + b"9" * 4000 + b"]")
    assert made == ["7"]


@given(st.binary(max_size=30) | JSON.map(lambda document: json.dumps(document).encode()[:-1]))
def test_arbitrary_bytes_are_read_or_malformed(body):
    try:
        document = decode(body + b"NaN")
    except MalformedBody:
        return
    orjson.dumps(document)


def test_number_beyond_double_is_read_as_infinity():
    assert decode(b'{"a": [1e400, -1e400]}') == {"a": [math.inf, -math.inf]}


# Names of dense features in the tests of matrices.
DENSE = frozenset(("a", "b"))
NAMES = st.sampled_from(("a", "b", "id", "[", ""))
CELLS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**64), 2**65),
    st.sampled_from((0, 1, -0.0, 1e39, 5e-324, 2**63, 2**64 - 1)),
)


@st.composite
def matrices(draw: st.DrawFn) -> list[Any]:
    width = draw(st.integers(0, 3))
    row_of_cells = st.lists(CELLS, min_size=width, max_size=width)
    rows: list[Any] = draw(st.lists(row_of_cells, max_size=4))
    is_odd = draw(st.booleans())
    if rows and is_odd:  # something that is not one of its numbers
        odd = draw(CELLS | JSON | st.lists(CELLS, max_size=4))
        row = draw(st.integers(0, len(rows) - 1))
        if rows[row] and draw(st.booleans()):
            rows[row][draw(st.integers(0, len(rows[row]) - 1))] = odd
        else:
            rows[row] = odd
    return rows


DOCUMENTS = st.fixed_dictionaries(
    {"candidates": st.dictionaries(NAMES, matrices() | JSON)},
    optional={"user": JSON, "ranking": JSON, "[{": JSON},
)


def parsed(body: bytes) -> dict[str, Any] | None:
    return read_matrices(body, DENSE, body.count(b"[") + body.count(b"{"))


@pytest.mark.parametrize("where", ["", "candidates"])
def test_object_with_many_members_is_parsed_by_orjson(where):
    """simdjson finds a member by scanning all before it."""
    document: dict[str, Any] = {"candidates": {"a": [[1.5]]}}
    (document[where] if where else document).update({f"k{number}": 0 for number in range(1000)})
    assert parsed(orjson.dumps(document)) is None


def as_lists(document: Any) -> Any:
    """Return a document with its matrices as lists of lists."""
    columns = {
        name: values.tolist() if isinstance(values, np.ndarray) else values
        for name, values in document["candidates"].items()
    }
    return document | {"candidates": columns}


def as_floats(document: Any, found: Any) -> Any:
    """Return a document with its numbers as floats wherever `found` has a matrix."""
    columns = {
        name: [list(map(float, row)) for row in values]
        if isinstance(found["candidates"][name], np.ndarray)
        else values
        for name, values in document["candidates"].items()
    }
    return document | {"candidates": columns}


def assert_alike(body: bytes) -> bool:
    """Return whether there was anything to compare; fail if it differs."""
    found = parsed(body)
    if found is None:
        return False
    document = decode(body)
    assert repr(as_lists(found)) == repr(as_floats(document, found))  # -0.0 is not 0.0 there
    return True


@given(DOCUMENTS, st.booleans())
def test_both_parsers_read_the_same_document(document, ascii_only):
    assert_alike(json.dumps(document, ensure_ascii=ascii_only).encode())


@pytest.mark.no_cover
@given(DOCUMENTS, st.data())
def test_both_parsers_agree_on_damaged_bytes(document, data):
    body = bytearray(json.dumps(document).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body)))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from(
                (b"[", b"]", b"[]", b",", b"1", b"-", b".", b"e9", b'"', b"\\", b"\xff")
            )
        )
    assert_alike(bytes(body))


def test_dense_columns_become_matrices():
    body = b'{"user":{"a":[[1]]},"candidates":{"id":[[1]],"b":[1,2],"a":[[1,2.5],[-3,1e39]]}}'
    found = parsed(body)
    assert found is not None
    matrix = found["candidates"].pop("a")
    np.testing.assert_array_equal(matrix, np.array([[1, 2.5], [-3, 1e39]]), strict=True)
    assert found == {"user": {"a": [[1]]}, "candidates": {"id": [[1]], "b": [1, 2]}}


@pytest.mark.parametrize(
    "column",
    [
        b"[[1,2],[3]]",
        b"[[1,2],[3],[4,5,6]]",
        b"[[1,2],[3,null]]",
        b"[[1,2],[3,true]]",
        b'[[1,2],"34"]',
        b"[[1,2],3]",
        b'[[1,2],{"3":4,"5":6}]',
        b"[1,[2]]",
        b"[]",
        b"null",
        b'"ab"',
        b"{}",
    ],
    ids=bytes.decode,
)
def test_column_that_is_not_a_matrix_is_unchanged(column):
    body = b'{"candidates":{"a":' + column + b',"b":[[1,2],[3,4]]}}'
    found = parsed(body)
    assert found is not None
    assert found["candidates"]["a"] == json.loads(column)
    assert isinstance(found["candidates"]["b"], np.ndarray)


@pytest.mark.parametrize(
    "body",
    [
        b'{"candidates":{"a":[[[1,2],[]],[3,4]]}}',  # flattened, it would be a matrix
        b'{"candidates":{"a":[[[1],2],[3,4]]}}',
        b'{"candidates":{"a":[[1,2]],"a":[[3,4]]}}',
        b'{"candidates":{"a":[[1]]},"candidates":{"a":[[2]]}}',
        b'{"candidates":{"a":[[1]]},"\\u0063andidates":{"a":[[2]]}}',
        b'{"candidates":{"a":[[1]]},"user":{"b":[1],"b":2}}',
        b'{"candidates":{"a":[[1]]},"user":1,"user":2}',
        b'{"candidates":{"a":[[1]],"id":1,"id":2}}',
        b'{"candidates":{"a":[[18446744073709551616]]}}',
        b'{"candidates":{"a":[[-9223372036854775809]]}}',
        b'{"candidates":{"a":[[1e400]]}}',
        b'{"candidates":{"a":[[NaN]]}}',
        b'{"candidates":{"a":[[1]]},"candidate_keys":["["]}',
        b'\xef\xbb\xbf{"candidates":{"a":[[1]]}}',
        b'{"candidates":{"a":[[1]]},"user":' + b"[" * 1100 + b"]" * 1100 + b"}",
        b'{"candidates":[{"a":[1]}]}',
        b'{"candidates":null}',
        b'{"user":{}}',
        b"[]",
        b"1",
        b"",
    ],
    ids=lambda body: body[:60].decode("latin-1"),
)
def test_bodies_that_simdjson_reads_differently_are_parsed_by_orjson(body):
    assert parsed(body) is None


def encoded(case: Case, document: Any) -> tuple[RequestFeatures, ValidationReport]:
    report = ValidationReport()
    request = encode(
        case.manifest,
        document["user"],
        document["candidates"],
        report,
        max_candidates=1000,
        vocabularies=case.vocabularies,
    )
    return request, report


@pytest.mark.no_cover
@given(cases() | damaged().map(lambda drawn: drawn[0]))
def test_both_parsers_give_equal_features(case):
    body = json.dumps({"user": case.user, "candidates": case.candidates}).encode()
    dense = frozenset(
        feature.name for feature in case.manifest.inputs if isinstance(feature, DenseInput)
    )
    found = read_matrices(body, dense, body.count(b"[") + body.count(b"{"))
    if found is None:
        return
    one, its_findings = encoded(case, found)
    other, others = encoded(case, decode(body))
    assert its_findings == others
    assert one.rows == other.rows
    for side, columns in ((one.user, other.user), (one.candidate, other.candidate)):
        assert list(side) == list(columns)
        for name, column in columns.items():
            np.testing.assert_array_equal(side[name], column, strict=True)


WIDE: Manifest = manifest(inputs=(DenseInput(name="a", side="candidate", dim=100),))


def body_of(rows: int, columns: int = 100) -> bytes:
    return orjson.dumps({"candidates": {"a": [[i / 7] * columns for i in range(rows)]}})


@pytest.mark.parametrize("rows", [1, 50, 500])
def test_only_large_bodies_have_matrices(rows):
    body = body_of(rows)
    document = decode_request(body, WIDE, max_candidates=500)
    assert isinstance(document, dict)
    is_large = isinstance(document["candidates"]["a"], np.ndarray)
    assert is_large == (len(body) >= LARGE_BYTES) == (rows > 1)


def test_large_bodies_of_objects_and_broken_ones_are_handled():
    objects = [{"a": [0.25] * 100}] * 200
    for body in (b'{"candidates" : %b}', b'{"note":"\\"candidates\\":[","candidates":%b}'):
        document = decode_request(body % orjson.dumps(objects), WIDE, max_candidates=200)
        assert isinstance(document, dict)
        assert document["candidates"] == objects
    with pytest.raises(MalformedBody, match="line 1 column"):
        decode_request(body_of(200)[:-1], WIDE, max_candidates=200)
    document = decode_request(body_of(200).replace(b"0.0", b"NaN", 1), WIDE, max_candidates=200)
    assert isinstance(document, dict)
    assert math.isnan(document["candidates"]["a"][0][0])


@pytest.mark.parametrize("filler", [b"1,", b"[],", b'{"":0},', b'"",'], ids=bytes.decode)
def test_body_with_too_many_values_is_refused_before_parsing(filler):
    most = most_values(WIDE, 10)
    few = b"[" + filler * (most // 3) + b"1]"
    assert isinstance(decode_request(few, WIDE, max_candidates=10), list)
    for end in (b"1]", b"no JSON"):
        with pytest.raises(PayloadTooLarge, match=f"more than {most} values"):
            decode_request(b"[" + filler * (most + 1) + end, WIDE, max_candidates=10)


def test_decode_counts_values_if_given_a_limit():
    body = b"[" + b"1," * LARGE_BYTES + b"1]"
    assert decode(body) == decode(body, most_values=len(body))
    assert decode(b"[1,2,3]", most_values=1) == [1, 2, 3]
    with pytest.raises(PayloadTooLarge, match="more than 1000 values"):
        decode(body, most_values=1000)


def test_largest_request_is_within_the_value_limit():
    objects = orjson.dumps({"candidates": [{"a": [0.5] * 100}] * 4096})
    for body in (body_of(4096), objects):
        values = sum(body.count(mark) for mark in (b",", b"[", b"{"))
        assert values < most_values(WIDE, 4096) / 2
        assert decode_request(body, WIDE, max_candidates=4096)


def test_value_limit_has_room_for_a_repeated_user():
    inputs = (DenseInput(name="u", side="user", dim=50), DenseInput(name="c", side="candidate"))
    once, tiled = (
        most_values(manifest(inputs=inputs), 4000, is_user_tiled=is_tiled)
        for is_tiled in (False, True)
    )
    assert once < 4000 * 51 < tiled
