"""Tensors as JSON: `data`, flat or nested as the shape is.

Numbers become bytes through `struct`, as in `app.protocol.features`; what it refuses is read again one
by one, to say where the first wrong values stand.
"""

import struct
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from app.protocol.open_inference.datatypes import FLOATS, STRINGS
from app.protocol.slow_encode import BEYOND_FLOAT32
from app.protocol.tensors import Numbers
from app.protocol.validation import MOST_PROBLEMS

Complain = Callable[[str, str], None]  # (pointer within the tensor, rule)


def elements(
    data: object, datatype: str, rows: int, width: int, complain: Complain
) -> Numbers | list[str] | None:
    """Return float32 or int64 `[rows, width]`, or `rows · width` strings; None where any is wrong.

    FP16 and BF16 say how a number is stored, which JSON does not: they are read as float32.

    Args:
        data: what stands in the JSON document; floats may be a float64 array.
        datatype: one that is known.
        rows: of the tensor's shape.
        width: of the tensor's shape.
        complain: takes every problem.
    """
    if isinstance(data, np.ndarray):
        if data.shape in ((rows * width,), (rows, width)):
            with np.errstate(over="ignore"):
                return data.astype(np.float32).reshape(rows, width)
        data = data.tolist()
    if not isinstance(data, list):
        complain("/data", "must be a list")
        return None
    is_nested = len(data) == rows and bool(data) and all(type(each) is list for each in data)
    if is_nested:
        if set(map(len, data)) != {width}:
            for row, values in enumerate(data):
                if len(values) != width:
                    complain(f"/data/{row}", f"must have {width} values, has {len(values)}")
            return None
        flat = data[0] if rows == 1 else list(chain.from_iterable(data))
    else:
        flat = data
        if len(data) != rows * width:
            complain("/data", f"must have {rows * width} values, has {len(data)}")
            return None
    if datatype in STRINGS:
        found: Numbers | list[str] | None = flat if set(map(type, flat)) <= {str} else None
    else:
        found = _numbers(flat, datatype, rows, width)
    if found is None:
        return _slowly(flat, datatype, rows, width, is_nested, complain)
    return found


def _numbers(flat: Sequence[Any], datatype: str, rows: int, width: int) -> Numbers | None:
    is_float = datatype in FLOATS
    if not is_float and not set(map(type, flat)) <= {int}:  # a bool packs as an integer
        return None
    letter = "f" if is_float else "q" if datatype == "INT64" else "i"
    try:
        packed = bytearray(struct.pack(f"{len(flat)}{letter}", *flat))
    except (struct.error, OverflowError):
        return None
    if is_float:
        return np.frombuffer(packed, np.float32).reshape(rows, width)
    stored = np.frombuffer(packed, f"={letter}").reshape(rows, width)
    return stored.astype(np.int64, copy=False)


def _slowly(
    flat: Sequence[Any], datatype: str, rows: int, width: int, is_nested: bool, complain: Complain
) -> Numbers | None:
    """Complain about the first wrong values; return the numbers if there is none."""
    wrong = ((place, rule) for place, value in enumerate(flat) if (rule := _rule(value, datatype)))
    problems = list(islice(wrong, MOST_PROBLEMS))
    for place, rule in problems:
        row, element = divmod(place, width)
        complain(f"/data/{row}/{element}" if is_nested else f"/data/{place}", rule)
    return None if problems else np.array(list(map(float, flat)), np.float32).reshape(rows, width)


def _rule(value: object, datatype: str) -> str | None:
    """Return the rule that a value breaks."""
    if datatype in STRINGS:
        return None if isinstance(value, str) else "must be a string"
    if datatype in FLOATS:
        if not isinstance(value, int | float):
            return "must be a number"
        is_finite = abs(value) < BEYOND_FLOAT32  # not where it is NaN
        return None if is_finite else "must be finite and fit float32"
    if not isinstance(value, int) or isinstance(value, bool):
        return "must be an integer"
    bits = 31 if datatype == "INT32" else 63
    return None if -(1 << bits) <= value < 1 << bits else f"must fit {datatype}"
