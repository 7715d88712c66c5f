"""The data of tensors: datatypes, and their elements in JSON or in binary."""

import math
import struct
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from app.artifacts.inputs import DenseInput, Input
from app.protocol.features import BEYOND_FLOAT32, NOT_FINITE
from app.protocol.tensors import Numbers
from app.protocol.validation import MOST_PROBLEMS, is_huge_integer

FLOATS = ("FP32", "FP16", "BF16")
INTEGERS = ("INT64", "INT32")
STRINGS = ("BYTES",)
UNSUPPORTED = frozenset(("BOOL", "FP64", "INT8", "INT16", "UINT8", "UINT16", "UINT32", "UINT64"))
"""The protocol's other datatypes: no feature accepts them."""

SIZES = {"FP32": 4, "FP16": 2, "BF16": 2, "INT64": 8, "INT32": 4}
"""Bytes per element; elements of BYTES differ in length."""

_STORED = {"FP32": "<f4", "FP16": "<f2", "BF16": "<u2", "INT64": "<i8", "INT32": "<i4"}
_LENGTH = 4  # bytes before an element of BYTES

AddProblem = Callable[[str, str], None]  # (pointer within the tensor, what is wrong)


def datatypes_of(feature: Input) -> tuple[str, ...]:
    """Return the datatypes that a feature accepts; metadata shows the first."""
    if isinstance(feature, DenseInput):
        return (*FLOATS, *INTEGERS)
    return STRINGS if feature.encoding.id_type is str else INTEGERS


# Binary: Triton's binary tensor data extension. Little-endian, row after row, without gaps. An
# element of BYTES is its length in four bytes, then its content; BF16 is a float32's upper half.


def numbers_from_bytes(datatype: str, content: memoryview, rows: int, width: int) -> Numbers:
    """Return float32 or int64 `[rows, width]`; for FP32 and INT64, a view of `content`.

    Args:
        datatype: any but BYTES.
        content: as long as the datatype and the shape require.
        rows: of the tensor.
        width: of the tensor.
    """
    stored = np.frombuffer(content, _STORED[datatype]).reshape(rows, width)
    if datatype == "BF16":
        widened: npt.NDArray[np.float32] = (stored.astype(np.uint32) << 16).view(np.float32)
        return widened
    if datatype == "FP16":
        return stored.astype(np.float32)
    if datatype == "INT32":
        return stored.astype(np.int64)
    return stored


def strings_from_bytes(content: memoryview, count: int) -> list[str]:
    """Return the elements of a BYTES tensor.

    Raises:
        ValueError: there are not exactly `count`, or one is not UTF-8; the message says which.
    """
    texts: list[str] = []
    offset = 0
    for element in range(count):
        start = offset + _LENGTH
        if start > len(content):
            raise ValueError(f"must have {count} elements for its shape, has {element}")
        offset = start + struct.unpack_from("<I", content, offset)[0]
        if offset > len(content):
            raise ValueError(f"ends within element {element}")
        try:
            texts.append(str(content[start:offset], "utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"must be UTF-8 text (element {element})") from None
    if offset < len(content):
        raise ValueError(f"has more data after its {count} elements")
    return texts


# JSON: flat, or nested as the shape is. Numbers are packed through `struct`, as in
# `app.protocol.features`; data that it refuses is read again one element at a time, to report where
# the first wrong ones stand.


def elements_from_json(
    data: object,
    datatype: str,
    rows: int,
    width: int,
    add_problem: AddProblem,
    *,
    may_miss: bool = False,
) -> Numbers | list[str] | None:
    """Return float32 or int64 `[rows, width]`, or `rows · width` strings; None if any is wrong.

    FP16 and BF16 are storage formats, which JSON does not have: they are read as float32.

    Args:
        data: from the JSON document; floats may be a float64 array.
        datatype: a supported one.
        rows: of the tensor's shape.
        width: of the tensor's shape.
        add_problem: takes every problem.
        may_miss: whether null may stand for a float; it becomes NaN.
    """
    if isinstance(data, np.ndarray):
        if data.shape in ((rows * width,), (rows, width)):
            with np.errstate(over="ignore"):
                return data.astype(np.float32).reshape(rows, width)
        data = data.tolist()
    if not isinstance(data, list):
        add_problem("/data", "must be a list")
        return None
    is_nested = len(data) == rows and bool(data) and all(type(row) is list for row in data)
    if is_nested:
        if set(map(len, data)) != {width}:
            for row, values in enumerate(data):
                if len(values) != width:
                    add_problem(f"/data/{row}", f"must have {width} values, has {len(values)}")
            return None
        flat = data[0] if rows == 1 else list(chain.from_iterable(data))
    else:
        flat = data
        if len(data) != rows * width:
            add_problem("/data", f"must have {rows * width} values, has {len(data)}")
            return None
    if datatype in STRINGS:
        packed: Numbers | list[str] | None = flat if set(map(type, flat)) <= {str} else None
    else:
        if may_miss and datatype in FLOATS and None in flat:
            flat = [math.nan if value is None else value for value in flat]
        packed = _pack(flat, datatype, rows, width)
    if packed is None:
        return _read_by_element(flat, datatype, rows, width, is_nested, add_problem)
    return packed


def _pack(flat: Sequence[Any], datatype: str, rows: int, width: int) -> Numbers | None:
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


def _read_by_element(
    flat: Sequence[Any],
    datatype: str,
    rows: int,
    width: int,
    is_nested: bool,
    add_problem: AddProblem,
) -> Numbers | None:
    """Report the first wrong elements; return the numbers if there is none."""
    wrong = ((place, rule) for place, value in enumerate(flat) if (rule := _rule(value, datatype)))
    problems = list(islice(wrong, MOST_PROBLEMS))
    for place, rule in problems:
        row, element = divmod(place, width)
        add_problem(f"/data/{row}/{element}" if is_nested else f"/data/{place}", rule)
    return None if problems else np.array(list(map(float, flat)), np.float32).reshape(rows, width)


def _rule(value: object, datatype: str) -> str | None:
    """Return the rule that a value breaks, if it breaks one."""
    if datatype in STRINGS:
        return None if isinstance(value, str) else "must be a string"
    if datatype in FLOATS:
        if not isinstance(value, int | float):
            return "must be a number"
        return None if abs(value) < BEYOND_FLOAT32 else NOT_FINITE  # NaN is not less
    if is_huge_integer(value):
        return f"must fit in {datatype}"
    if not isinstance(value, int) or isinstance(value, bool):
        return "must be an integer"
    bits = 31 if datatype == "INT32" else 63
    return None if -(1 << bits) <= value < 1 << bits else f"must fit in {datatype}"
