"""Parse JSON bodies: into Python values, and into matrices where a large body has them.

Small bodies are parsed by `orjson`. A large body is mostly matrices of numbers, and making a Python
object of each number takes most of the time: simdjson keeps them in its own form, from which one
copy makes a matrix. A body that simdjson refuses, or would read differently, is parsed by `orjson`
instead, so that both parsers give the same result for any body.
"""

import json
import re
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import simdjson

from app.artifacts.inputs import DenseInput, IdInput, Input
from app.artifacts.manifest import Manifest
from app.errors import MalformedBody, PayloadTooLarge
from app.protocol.duplicate_members import refuse_duplicates
from app.protocol.validation import Matrix

LARGE_BYTES = 32 << 10
"""From this size on, matrices save more time than simdjson costs elsewhere."""

_BLOCK_BYTES = 1 << 18  # fits a core's cache, together with the comparison's result
_SLACK_VALUES = 1 << 16
_CONTAINERS = frozenset((list, dict, np.ndarray))
_MOST_COLUMNS = 512
_MOST_DIGITS = 20
_OBJECTS = re.compile(rb'"candidates"\s*:\s*\[')
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def decode(body: bytes, *, most_values: int | None = None) -> object:
    """Parse JSON into Python values.

    NaN and Infinity are not JSON, but Python and JavaScript write them by mistake; 1e400 is JSON,
    but does not fit a double. Both are accepted here, so that validation can report their place.

    Args:
        body: the text.
        most_values: how many values a large body may contain; None if its size bounds them.

    Raises:
        MalformedBody: the body is not valid JSON.
        PayloadTooLarge: it contains too many values.
        InvalidRequest: an object has two members of one name.
    """
    if most_values is not None and len(body) >= LARGE_BYTES:
        count_containers(body, most_values)
    document = _parsed(body)
    refuse_duplicates(body, document)
    return document


def _parsed(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" in body or b"Infinity" in body or "infinity" in error.msg:
            with suppress(ValueError, TypeError, RecursionError):
                document = json.loads(body, parse_int=_integer)
                orjson.dumps(document)  # keys come back in the response: it must be writable
                return document
        at = f"line {error.lineno} column {error.colno}"
        raise MalformedBody(f"invalid JSON: {error.msg.split(':')[0]} at {at}") from None


def _integer(text: str) -> int:
    """Read an integer of at most 20 digits: the time grows with the square of their number."""
    if len(text) > _MOST_DIGITS:
        raise ValueError
    return int(text)


def decode_request(body: bytes, manifest: Manifest, *, max_candidates: int) -> object:
    """Parse the JSON of a native score request; `encode` accepts the result.

    If `candidates` is an object of columns, a dense feature's column may come as a `Matrix`.

    Raises:
        MalformedBody: the body is not valid JSON.
        PayloadTooLarge: it contains more values than a request of `max_candidates` can have.
        InvalidRequest: an object has two members of one name.
    """
    if len(body) < LARGE_BYTES:
        return decode(body)
    containers = count_containers(body, most_values(manifest, max_candidates))
    if not _OBJECTS.match(body, body.find(b'"candidates"')):
        dense = frozenset(
            feature.name for feature in manifest.inputs if isinstance(feature, DenseInput)
        )
        document = read_matrices(body, dense, containers)
        if document is not None:
            refuse_duplicates(body, document)
            return document
    return decode(body)


def most_values(manifest: Manifest, max_candidates: int, *, is_user_tiled: bool = False) -> int:
    """Return how many values a large body may contain: parsing takes time and memory for each.

    The limit is more than twice what the largest request has, because commas and brackets within
    strings count too.

    Args:
        manifest: lists the features.
        max_candidates: the most candidates of a request.
        is_user_tiled: whether the user features may be repeated for each candidate.
    """
    user = sum(1 + _width(feature) for feature in manifest.user_inputs)
    candidate = 2 + sum(1 + _width(feature) for feature in manifest.candidate_inputs)
    users = max_candidates if is_user_tiled else 1
    return 2 * (users * user + max_candidates * candidate) + _SLACK_VALUES


def count_containers(body: bytes, most_values: int) -> int:
    """Return the number of [ and { in a body, after checking that it has few enough values.

    Every value follows a comma or begins a container. Characters within strings count too.

    Raises:
        PayloadTooLarge: the body contains more than `most_values` values.
    """
    text = np.frombuffer(body, np.uint8)
    containers = commas = 0
    for start in range(0, len(text), _BLOCK_BYTES):
        block = text[start : start + _BLOCK_BYTES]
        containers += int(np.count_nonzero((block | 0x20) == ord("{")))  # [ and { differ by 0x20
        commas += int(np.count_nonzero(block == ord(",")))
        if containers + commas > most_values:
            raise PayloadTooLarge(f"the body contains more than {most_values} values")
    return containers


def read_matrices(body: bytes, dense: frozenset[str], containers: int) -> dict[str, Any] | None:
    """Parse a request's body with simdjson, or return None if `decode` must parse it.

    Args:
        body: of the request.
        dense: the features whose columns become matrices, if they are lists of equal rows.
        containers: as counted by `count_containers`.
    """
    if body.startswith(BYTE_ORDER_MARK):  # simdjson skips it, orjson refuses it
        return None
    try:
        root = simdjson.Parser().parse(body)  # a reused one is no faster and keeps memory
        document = members(root)
        columns = members(document["candidates"], most=_MOST_COLUMNS)
        for name, values in columns.items():
            columns[name] = _matrix(values) if name in dense else plain(values)
        for name, value in document.items():
            document[name] = columns if name == "candidates" else plain(value)
    except (ValueError, TypeError, KeyError, RuntimeError):  # Runtime: an integer beyond 64 bits
        return None
    # simdjson flattens rows: it reads [[[1, 2], []]] as [[1, 2], []]; then the counts differ.
    return document if containers_in(document) == containers else None


def members(value: object, *, most: int = 16) -> dict[str, Any]:
    """Return an object's members, unconverted.

    simdjson finds a member by scanning those before it: 100 000 would take half a minute, where
    `orjson` takes milliseconds.

    Raises:
        TypeError: the value is not an object.
        ValueError: it has more members than `most`, or a duplicate name: the last one counts, and
            simdjson finds the first.
    """
    if not isinstance(value, simdjson.Object):
        raise TypeError
    if len(value) > most:
        raise ValueError
    names = list(value.keys())
    members = {name: value[name] for name in names}
    if len(members) < len(names):
        raise ValueError
    return members


def _matrix(column: object) -> Matrix | list[Any] | object:
    """Return rows of numbers of one length as a matrix, and anything else as Python values.

    Rows within rows are flattened; `read_matrices` notices that.
    """
    if isinstance(column, simdjson.Array) and len(column) and isinstance(column[0], simdjson.Array):
        with suppress(TypeError, ValueError):  # not all are numbers, or rows differ in length
            (width,) = set(map(len, column))  # type: ignore[arg-type]  # numbers have no length
            numbers = np.frombuffer(column.as_buffer(of_type="d"), np.float64)
            return numbers.reshape(len(column), width)
    return plain(column)


def plain(value: object) -> object:
    """Convert a simdjson value to a Python value.

    Raises:
        ValueError: it is an object with a duplicate name.
    """
    if isinstance(value, simdjson.Array):
        return value.as_list()
    if not isinstance(value, simdjson.Object):
        return value
    document = value.as_dict()
    if len(document) < len(value):
        raise ValueError
    return document


def containers_in(document: dict[str, Any]) -> int:
    """Return the number of objects and lists in a document, including the rows of matrices."""
    count = 0
    todo: list[Any] = [document]
    while todo:
        value = todo.pop()
        count += 1
        if isinstance(value, np.ndarray):
            count += len(value) if value.ndim > 1 else 0
        else:
            inside = value.values() if isinstance(value, dict) else value
            todo += [value for value in inside if type(value) in _CONTAINERS]
    return count


def _width(feature: Input) -> int:
    if isinstance(feature, DenseInput):
        return feature.dim
    return 1 if isinstance(feature, IdInput) else feature.max_length
