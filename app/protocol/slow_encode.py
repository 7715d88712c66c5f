"""A column encoded value by value: says where each wrong value stands and which rule it breaks.

What is right it encodes exactly as `app.protocol.features` does, which calls it only for columns that
its own fast path will not take.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.encoding import NO_VOCABULARY, Identity, Vocabulary, rows_of
from app.artifacts.manifest import DenseInput, IdInput, IdListInput, Input
from app.protocol.validation import Missing, Side, ValidationReport

Complain = Callable[[int | None, str], None]  # (element or None, detail)

BEYOND_FLOAT32 = float(2**128 - 2**103)
"""The least number that rounds to infinity; between it and the largest float32, all round down."""


def slow_column(
    feature: Input,
    values: Sequence[Any],
    side: Side,
    report: ValidationReport,
    vocabulary: Vocabulary = NO_VOCABULARY,
) -> Column:
    """Encode a column, and note every wrong value; a row with a wrong value is left at zero."""
    column = np.zeros(column_shape(feature, len(values)), column_dtype(feature))
    for row, value in enumerate(values):
        if report.full:
            break
        before = len(report.problems)

        def complain(element: int | None, detail: str, row: int = row) -> None:
            report.add(side.pointer(feature.name, row, element), detail)

        read = _read(feature, value, complain, vocabulary, report)
        if len(report.problems) == before:
            column[row] = np.asarray(read, dtype=column.dtype)
    return column


def _read(
    feature: Input,
    value: object,
    complain: Complain,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> float | Sequence[float] | None:
    if isinstance(value, Missing):
        if feature.default is None:
            complain(None, "is missing and has no default")
            return None
        value = feature.default
    match feature:
        case DenseInput():
            return _read_dense(feature, value, complain)
        case IdInput():
            return _read_id(feature, value, None, complain, vocabulary, report)
        case IdListInput():
            return _read_id_list(feature, value, complain, vocabulary, report)


def _read_dense(feature: DenseInput, value: object, complain: Complain) -> list[float]:
    if feature.dim == 1 and not isinstance(value, list | tuple):
        return [_read_number(value, None, complain)]
    if not isinstance(value, list | tuple):
        complain(None, f"must be a list of {feature.dim} numbers")
    elif len(value) != feature.dim:
        complain(None, f"must have {feature.dim} numbers, has {len(value)}")
    else:
        return [_read_number(number, element, complain) for element, number in enumerate(value)]
    return []


def _read_number(number: object, element: int | None, complain: Complain) -> float:
    if not isinstance(number, int | float):
        complain(element, "must be a number")
    elif not abs(number) < BEYOND_FLOAT32:  # also where it is NaN
        complain(element, "must be finite and fit float32")
    else:
        return float(number)
    return 0.0


def _read_id(
    feature: IdInput | IdListInput,
    value: object,
    element: int | None,
    complain: Complain,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> int:
    row = _row(feature, value, element, complain, vocabulary)
    if row is None or 0 <= row < feature.vocabulary_size:
        return row or 0
    if feature.unknown == "reject":
        is_row = isinstance(feature.encoding, Identity)
        range_ = f", 0 to {feature.vocabulary_size - 1}" if is_row else ""
        complain(element, f"must lie in the vocabulary{range_}")
    else:
        report.unknown_ids[feature.name] = report.unknown_ids.get(feature.name, 0) + 1
        return feature.unknown
    return 0


def _row(
    feature: IdInput | IdListInput,
    value: object,
    element: int | None,
    complain: Complain,
    vocabulary: Vocabulary,
) -> int | None:
    """The row that an id stands for, in the table or not; None where it is no id."""
    if feature.encoding.id_type is str:
        if not isinstance(value, str):
            complain(element, "must be a string id")
            return None
    elif not isinstance(value, int) or isinstance(value, bool):
        complain(element, "must be an integer id")
        return None
    elif not -(2**63) <= value < 2**63:
        complain(element, "must fit int64")
        return None
    if isinstance(feature.encoding, Identity):
        return int(value)
    try:
        return int(rows_of(feature.encoding, [value], vocabulary)[0])
    except UnicodeEncodeError:
        complain(element, "must be Unicode text")
        return None


def _read_id_list(
    feature: IdListInput,
    value: object,
    complain: Complain,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> list[int]:
    if not isinstance(value, list | tuple):
        what = "string" if feature.encoding.id_type is str else "integer"
        complain(None, f"must be a list of at most {feature.max_length} {what} ids")
        return []
    if len(value) > feature.max_length:
        complain(None, f"must have at most {feature.max_length} ids, has {len(value)}")
        return []
    ids = [_read_id(feature, each, i, complain, vocabulary, report) for i, each in enumerate(value)]
    padding = [feature.padding] * (feature.max_length - len(ids))
    return ids + padding if feature.padding_side == "right" else padding + ids
