"""Datatypes of the Open Inference Protocol, and which of them a feature takes."""

from app.artifacts.manifest import DenseInput, Input

FLOATS = ("FP32", "FP16", "BF16")
INTEGERS = ("INT64", "INT32")
STRINGS = ("BYTES",)
NEVER_TAKEN = frozenset(("BOOL", "FP64", "INT8", "INT16", "UINT8", "UINT16", "UINT32", "UINT64"))
"""The protocol's other datatypes, which are refused by name."""

SIZES = {"FP32": 4, "FP16": 2, "BF16": 2, "INT64": 8, "INT32": 4}
"""Bytes of one element; those of BYTES differ."""


def datatypes_of(feature: Input) -> tuple[str, ...]:
    """Return the datatypes that a feature takes; the first is the one that metadata names."""
    if isinstance(feature, DenseInput):
        return (*FLOATS, *INTEGERS)
    return STRINGS if feature.encoding.id_type is str else INTEGERS
