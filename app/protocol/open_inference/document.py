"""The JSON document of an inference request, parsed.

In a large one nearly everything is `data`. Where that is floats, simdjson leaves it in its own
form, from which an array is one copy, as `app.protocol.json_body` does for the native API.
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
from app.protocol.open_inference.datatypes import FLOATS


def decode_document(body: bytes, manifest: Manifest, *, max_candidates: int) -> object:
    """Parse a request's document; the `data` of a float tensor may come as a float64 array.

    Raises:
        MalformedBody: the body is not JSON.
        PayloadTooLarge: it holds more values than a request of `max_candidates` could have.
    """
    if len(body) < LARGE_BYTES:
        return decode(body)
    most = most_values(manifest, max_candidates, is_user_tiled=True)
    document = read_arrays(body, count_containers(body, most))
    return decode(body) if document is None else document


def read_arrays(body: bytes, containers: int) -> dict[str, Any] | None:
    """Parse a document, or return None where `decode` has to.

    Args:
        body: the text.
        containers: as counted by `count_containers`.
    """
    if body.startswith(BYTE_ORDER_MARK):  # which simdjson skips
        return None
    try:
        document = members(simdjson.Parser().parse(body))
        tensors = [members(each) for each in document["inputs"]]
    except (ValueError, TypeError, KeyError, RuntimeError):  # Runtime: an integer beyond 64 bits
        return None
    for tensor in tensors:
        is_float = tensor.get("datatype") in FLOATS
        for name, value in tensor.items():
            tensor[name] = _array(value) if is_float and name == "data" else plain(value)
    for name, value in document.items():
        document[name] = tensors if name == "inputs" else plain(value)
    # simdjson flattens lists within rows as gladly: then a bracket is left over.
    return document if containers_in(document) == containers else None


def _array(data: object) -> object:
    """Return numbers, flat or in rows of one length, as an array, and anything else as it is."""
    if isinstance(data, simdjson.Array) and len(data):
        with suppress(TypeError, ValueError):  # something is no number; rows differ in length
            shape: tuple[int, ...] = (len(data),)
            if isinstance(data[0], simdjson.Array):
                (width,) = set(map(len, data))  # type: ignore[arg-type]  # numbers have none
                shape = (len(data), width)
            return np.frombuffer(data.as_buffer(of_type="d"), np.float64).reshape(shape)
    return plain(data)
