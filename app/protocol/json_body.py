"""The bytes of a JSON body become a document: Python values, and matrices where there are any.

Small bodies go through `orjson`. In large ones nearly everything is matrices of numbers, and a
Python object for each would be what costs: simdjson leaves them in its own form, from which a
matrix is one copy. Whatever simdjson does not take, and whatever it takes differently, goes through
`orjson` again, so that both ways say the same of any body.
"""

import json
import re
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import simdjson

from app.artifacts.manifest import DenseInput, IdInput, Input, Manifest
from app.errors import MalformedBody, PayloadTooLarge
from app.protocol.validation import Matrix

LARGE_BYTES = 32 << 10
"""From this size on matrices pay for what simdjson costs more elsewhere."""

_BLOCK_BYTES = 1 << 18  # a core's cache holds it, and what is compared with it
_SLACK_VALUES = 1 << 16
_CONTAINERS = frozenset((list, dict, np.ndarray))
_MOST_COLUMNS = 512
_MOST_DIGITS = 20
_OBJECTS = re.compile(rb'"candidates"\s*:\s*\[')
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def decode(body: bytes, *, most_values: int | None = None) -> object:
    """Parse JSON into Python values.

    NaN and Infinity are no JSON, but what Python and JavaScript write by mistake, and 1e400 is, but
    no number that fits: they are read, so that the check of the features can say where they stand.

    Args:
        body: the text.
        most_values: how many values a large body may hold; None where its size bounds them.

    Raises:
        MalformedBody: the body is not JSON.
        PayloadTooLarge: it holds too many values.
    """
    if most_values is not None and len(body) >= LARGE_BYTES:
        count_containers(body, most_values)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" in body or b"Infinity" in body or "infinity" in error.msg:
            with suppress(ValueError, TypeError, RecursionError):
                document: object = json.loads(body, parse_int=_integer)
                orjson.dumps(document)  # a name or a key that it cannot write cannot be answered
                return document
        at = f"line {error.lineno} column {error.colno}"
        raise MalformedBody(f"the body is not JSON: {error.msg.split(':')[0]}, {at}") from None


def _integer(text: str) -> int:
    """Read an integer that 64 bits could hold: of thousands of digits, each takes far longer."""
    if len(text) > _MOST_DIGITS:
        raise ValueError
    return int(text)


def decode_request(body: bytes, manifest: Manifest, *, max_candidates: int) -> object:
    """Parse the JSON of a request to a model; `read_request` and `encode` take what it returns.

    Where `candidates` is an object of columns, a dense feature's column may come as a `Matrix`.

    Raises:
        MalformedBody: the body is not JSON.
        PayloadTooLarge: it holds more values than a request of `max_candidates` could have.
    """
    if len(body) < LARGE_BYTES:
        return decode(body)
    containers = count_containers(body, most_values(manifest, max_candidates))
    if not _OBJECTS.match(body, body.find(b'"candidates"')):
        dense = frozenset(each.name for each in manifest.inputs if isinstance(each, DenseInput))
        document = read_matrices(body, dense, containers)
        if document is not None:
            return document
    return decode(body)


def most_values(manifest: Manifest, max_candidates: int, *, is_user_tiled: bool = False) -> int:
    """Return how many values a large body may hold: parsing takes time and memory for each.

    It is more than twice what the largest request has, because commas and brackets within strings
    are counted too.
    """
    user = sum(1 + _width(feature) for feature in manifest.user_inputs)
    candidate = 2 + sum(1 + _width(feature) for feature in manifest.candidate_inputs)
    users = max_candidates if is_user_tiled else 1
    return 2 * (users * user + max_candidates * candidate) + _SLACK_VALUES


def count_containers(body: bytes, most_values: int) -> int:
    """Return how many [ and { there are, after making sure that parsing them costs little.

    Every value stands behind a comma or at the beginning of a container. Within strings, too, each
    is counted.

    Raises:
        PayloadTooLarge: there are more values than `most_values`.
    """
    text = np.frombuffer(body, np.uint8)
    containers = commas = 0
    for start in range(0, len(text), _BLOCK_BYTES):
        block = text[start : start + _BLOCK_BYTES]
        containers += int(np.count_nonzero((block | 0x20) == ord("{")))  # this bit alone is [ or {
        commas += int(np.count_nonzero(block == ord(",")))
        if containers + commas > most_values:
            raise PayloadTooLarge(f"the body holds more than {most_values} values")
    return containers


def read_matrices(body: bytes, dense: frozenset[str], containers: int) -> dict[str, Any] | None:
    """Parse a request's body, or return None where `decode` has to.

    Args:
        body: of the request.
        dense: the features whose columns become matrices, where they are such.
        containers: as counted by `count_containers`.
    """
    if body.startswith(BYTE_ORDER_MARK):  # which simdjson skips
        return None
    try:
        root = simdjson.Parser().parse(body)  # a new one: it costs as much, and keeps no memory
        document = members(root)
        columns = members(document["candidates"], most=_MOST_COLUMNS)
    except (ValueError, TypeError, KeyError, RuntimeError):  # Runtime: an integer beyond 64 bits
        return None
    for name, values in columns.items():
        columns[name] = _matrix(values) if name in dense else plain(values)
    for name, value in document.items():
        document[name] = columns if name == "candidates" else plain(value)
    # simdjson makes [[1, 2], []] out of [[[1, 2], []]] as gladly: then a bracket is left over.
    return document if containers_in(document) == containers else None


def members(value: object, *, most: int = 16) -> dict[str, Any]:
    """Return an object's members as they are.

    simdjson finds each by looking through those before it: of 100 000 that would take half a
    minute, where `orjson` takes milliseconds.

    Raises:
        TypeError: it is no object.
        ValueError: it has more members than `most`, or names one twice: the last one counts, and
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
    """Return rows of numbers, all of one length, as a matrix, and anything else as Python values.

    Rows within rows are flattened.
    """
    if isinstance(column, simdjson.Array) and len(column) and isinstance(column[0], simdjson.Array):
        with suppress(TypeError, ValueError):  # something is no number; rows differ in length
            (width,) = set(map(len, column))  # type: ignore[arg-type]  # numbers have none
            numbers = np.frombuffer(column.as_buffer(of_type="d"), np.float64)
            return numbers.reshape(len(column), width)
    return plain(column)


def plain(value: object) -> object:
    """Return a value of simdjson's as Python's own."""
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def containers_in(document: dict[str, Any]) -> int:
    """Return how many objects and lists there are, the rows of matrices included."""
    count = 0
    todo: list[Any] = [document]
    while todo:
        each = todo.pop()
        count += 1
        if isinstance(each, np.ndarray):
            count += len(each) if each.ndim > 1 else 0
        else:
            inside = each.values() if isinstance(each, dict) else each
            todo += [value for value in inside if type(value) in _CONTAINERS]
    return count


def _width(feature: Input) -> int:
    if isinstance(feature, DenseInput):
        return feature.dim
    return 1 if isinstance(feature, IdInput) else feature.max_length
