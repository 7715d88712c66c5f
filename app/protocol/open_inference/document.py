"""Parse the JSON document of an inference request.

A large document is mostly `data`. If that is floats, simdjson keeps it in its own form and one copy
makes an array of it, as `app.protocol.json_body` does for the native API.
"""

from contextlib import suppress
from typing import Any

import numpy as np
import simdjson

from app.artifacts.manifest import Manifest
from app.protocol.json_body import (
    BYTE_ORDER_MARK,
    LARGE_BYTES,
    containers_in,
    count_containers,
    decode,
    members,
    most_values,
    plain,
)
from app.protocol.open_inference.tensor_data import FLOATS


def decode_document(body: bytes, manifest: Manifest, *, max_candidates: int) -> object:
    """Parse a request's document; the `data` of a float tensor may come as a float64 array.

    Raises:
        MalformedBody: the body is not valid JSON.
        PayloadTooLarge: it contains more values than a request of `max_candidates` can have.
        InvalidRequest: an object has two members of one name.
    """
    if len(body) < LARGE_BYTES:
        return decode(body)
    most = most_values(manifest, max_candidates, is_user_tiled=True)
    document = read_arrays(body, count_containers(body, most))
    return decode(body) if document is None else document


def read_arrays(body: bytes, containers: int) -> dict[str, Any] | None:
    """Parse a document with simdjson, or return None if `decode` must parse it.

    Args:
        body: the text.
        containers: as counted by `count_containers`.
    """
    if body.startswith(BYTE_ORDER_MARK):  # simdjson skips it, orjson refuses it
        return None
    try:
        document = members(simdjson.Parser().parse(body))
        tensors = [members(tensor) for tensor in document["inputs"]]
        for tensor in tensors:
            is_float = tensor.get("datatype") in FLOATS
            for name, value in tensor.items():
                tensor[name] = _array(value) if is_float and name == "data" else plain(value)
        for name, value in document.items():
            document[name] = tensors if name == "inputs" else plain(value)
    except (ValueError, TypeError, KeyError, RuntimeError):  # Runtime: an integer beyond 64 bits
        return None
    # simdjson flattens lists within rows; then the counts differ.
    return document if containers_in(document) == containers else None


def _array(data: object) -> object:
    """Return numbers, flat or in rows of one length, as an array; anything else unchanged."""
    if isinstance(data, simdjson.Array) and len(data):
        with suppress(TypeError, ValueError):  # not all are numbers, or rows differ in length
            shape: tuple[int, ...] = (len(data),)
            if isinstance(data[0], simdjson.Array):
                (width,) = set(map(len, data))  # type: ignore[arg-type]  # numbers have no length
                shape = (len(data), width)
            return np.frombuffer(data.as_buffer(of_type="d"), np.float64).reshape(shape)
    return plain(data)
