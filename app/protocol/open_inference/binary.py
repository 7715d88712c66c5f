"""Tensors as bytes: Triton's binary tensor data extension.

Little-endian, row after row, without gaps; an element of BYTES is its length in four bytes and then
its content. BF16 is the upper half of a float32.
"""

from struct import unpack_from

import numpy as np
import numpy.typing as npt

from app.protocol.tensors import Numbers

_STORED = {"FP32": "<f4", "FP16": "<f2", "BF16": "<u2", "INT64": "<i8", "INT32": "<i4"}
_LENGTH = 4  # bytes


def numbers(datatype: str, content: memoryview, rows: int, width: int) -> Numbers:
    """Return float32 or int64 `[rows, width]`; of FP32 and INT64, a view of `content`.

    Args:
        datatype: any but BYTES.
        content: as long as the datatype and the shape say.
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


def strings(content: memoryview, count: int) -> list[str]:
    """Return the elements of a BYTES tensor.

    Raises:
        ValueError: they are not `count`, or one of them is no UTF-8; it says which.
    """
    found: list[str] = []
    offset = 0
    for element in range(count):
        start = offset + _LENGTH
        if start > len(content):
            raise ValueError(f"has {element} elements, its shape says {count}")
        offset = start + unpack_from("<I", content, offset)[0]
        if offset > len(content):
            raise ValueError(f"ends within element {element}")
        try:
            found.append(str(content[start:offset], "utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"must be UTF-8 text (element {element})") from None
    if offset < len(content):
        raise ValueError(f"goes on after its {count} elements")
    return found
