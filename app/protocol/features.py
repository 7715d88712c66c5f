"""JSON values to feature columns, checked against the manifest.

There are two encoders. The fast one packs Python numbers into a column's bytes through `struct`: on
500 rows of 100 floats it takes 0.4 of the time of `numpy.array`, refuses strings and null (NumPy
would take them for numbers), and notices ragged rows by itself. If it fails, the second encoder
reads the column again value by value, and reports the place and the rule of each wrong value. Both
return the same column for correct values.
"""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.encoding import (
    NO_VOCABULARY,
    NOT_KNOWN,
    Identity,
    Vocabularies,
    Vocabulary,
    rows_of,
)
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.artifacts.manifest import Manifest
from app.engine.request import RequestFeatures
from app.protocol.validation import (
    MISSING,
    MISSING_FEATURE,
    Matrix,
    Missing,
    Side,
    TableKey,
    ValidationReport,
    candidate_side,
    is_huge_integer,
    user_side,
)

BEYOND_FLOAT32 = float(2**128 - 2**103)
"""The least number that rounds to infinity; between it and the largest float32, all round down."""

NOT_FINITE = "must be finite and within the range of float32"
_NUMBER_OR_NULL = frozenset((int, float, bool, type(None)))

AddProblem = Callable[[int | None, str], None]  # (element of the value or None, what is wrong)


def encode(
    manifest: Manifest,
    user: object,
    candidates: object,
    report: ValidationReport,
    *,
    max_candidates: int,
    vocabularies: Vocabularies = MappingProxyType({}),
) -> RequestFeatures:
    """Check a request's features and turn them into columns.

    A dense value may be a boolean, which counts as 0 or 1; an id may not. An id outside the
    vocabulary is *unknown*: it becomes the manifest's `unknown` row and is counted. Null, and NaN
    in a dense feature, are missing values: the manifest's `missing` says what they become.

    Args:
        manifest: lists the features.
        user: an object that maps feature names to values; `MISSING` if there is none.
        candidates: an object of columns, feature name to list of values; or a list of objects, one
            per candidate.
        report: takes every problem; if it has any, the columns are not fit for use.
        max_candidates: the most candidates that are accepted.
        vocabularies: of the features whose encoding has one.

    Raises:
        PayloadTooLarge: there are more than `max_candidates` candidates.
    """
    if isinstance(user, dict) and isinstance(candidates, dict):
        plain = encode_plain(manifest, user, candidates, report, max_candidates, vocabularies)
        if plain is not None:
            return plain
        report.unknown_ids.clear()  # they are counted again
    one = user_side(user, manifest.user_names, report, required(manifest.user_inputs))
    many = candidate_side(candidates, manifest.candidate_names, report, max_rows=max_candidates)
    return RequestFeatures(
        user=encode_side(one, manifest.user_inputs, vocabularies, report),
        candidate=encode_side(many, manifest.candidate_inputs, vocabularies, report),
        rows=many.rows,
        unknown_ids=report.unknown_ids,
    )


def encode_plain(
    manifest: Manifest,
    user: dict[str, Any],
    candidates: dict[str, Any],
    report: ValidationReport,
    max_candidates: int,
    vocabularies: Vocabularies,
) -> RequestFeatures | None:
    """Encode a request with exactly the model's features, all correct; None for any other.

    Most requests are like this, and it takes half the time of the general path in `encode`.
    """
    if user.keys() != manifest.user_names or candidates.keys() != manifest.candidate_names:
        return None
    rows = -1
    encoded: dict[str, Column] = {}
    try:
        for feature in manifest.candidate_inputs:
            values = candidates[feature.name]
            if not isinstance(values, list | np.ndarray) or len(values) != rows >= 0:
                return None
            rows = len(values)
            if rows > max_candidates:
                return None
            vocabulary = vocabularies.get(feature.name, NO_VOCABULARY)
            encoded[feature.name] = _fast_column(feature, values, vocabulary, report)
        if rows < 0:
            return None
        user_columns: dict[str, Column] = {}
        for feature in manifest.user_inputs:
            vocabulary = vocabularies.get(feature.name, NO_VOCABULARY)
            values = [user[feature.name]]
            user_columns[feature.name] = _fast_column(feature, values, vocabulary, report)
    except (struct.error, TypeError, ValueError, OverflowError):
        return None
    return RequestFeatures(user_columns, encoded, rows, report.unknown_ids)


def default_column(
    feature: Input, rows: int, vocabulary: Vocabulary, report: ValidationReport
) -> Column:
    """Return a column of a feature's default, which it must have."""
    return _fast_column(feature, [feature.absent] * rows, vocabulary, report)


def outside_vocabulary(feature: IdInput | IdListInput) -> str:
    """Return the message for an id outside the vocabulary of a feature that accepts no such id."""
    if isinstance(feature.encoding, Identity):
        return f"must be an id {_range(feature)}"
    return "must be an id of the feature's vocabulary"


def row_of_padding(feature: IdListInput, row: int) -> str:
    """Return the message for an id that has the row of the padding, which is reserved.

    Args:
        feature: the list.
        row: what the id stands for, in the table or not.
    """
    padding = f"{feature.padding} is the padding of this feature"
    if row != feature.padding:
        return f"must be a known id: unknown ids are row {feature.padding}, and {padding}"
    if isinstance(feature.encoding, Identity):
        return f"must be an id {_range(feature)}: {padding}"
    return f"must be an id with another row than {feature.padding}: {padding}"


def _range(feature: IdInput | IdListInput) -> str:
    low, high, other = 0, feature.vocabulary_size - 1, ""
    if isinstance(feature, IdListInput) and feature.reserves_padding:
        if feature.padding == low < high:
            low += 1
        elif feature.padding == high > low:
            high -= 1
        else:
            other = f" other than {feature.padding}"
    return f"between {low} and {high}{other}"


def required(features: Sequence[Input]) -> list[str]:
    """Return the names of the features without a default."""
    return [feature.name for feature in features if feature.default is None]


def encode_side(
    side: Side, features: Sequence[Input], vocabularies: Vocabularies, report: ValidationReport
) -> dict[str, Column]:
    """Encode the features of one side."""
    encoded: dict[str, Column] = {}
    for feature in features:
        column = encode_feature(side, feature, vocabularies, report)
        if column is not None:
            encoded[feature.name] = column
    return encoded


def encode_feature(
    side: Side,
    feature: Input,
    vocabularies: Vocabularies,
    report: ValidationReport,
    key: TableKey | None = None,
) -> Column | None:
    """Encode a feature as sent, or its default; None if it is required and not there.

    `key` could have been sent in its place.
    """
    values = side.columns.get(feature.name)
    if values is None:
        if feature.default is None:
            if feature.name not in side.refused:
                report.add_missing(side.parent(), feature.name, key)
            return None
        values = [feature.absent] * side.rows
    vocabulary = vocabularies.get(feature.name, NO_VOCABULARY)
    try:
        return _fast_column(feature, values, vocabulary, report)
    except (struct.error, TypeError, ValueError, OverflowError):
        sent = values.tolist() if isinstance(values, np.ndarray) else values
        return column_by_value(feature, sent, side, report, vocabulary, key=key)


# The fast encoder: returns a column, or raises any exception if some value is wrong.


def _fast_column(
    feature: Input, values: Sequence[Any] | Matrix, vocabulary: Vocabulary, report: ValidationReport
) -> Column:
    if isinstance(values, np.ndarray):
        return _dense_matrix(feature, values)
    if not values:
        return np.zeros(column_shape(feature, 0), column_dtype(feature))
    match feature:
        case DenseInput():
            return _dense(feature, values)
        case IdInput():
            return _id(feature, values, vocabulary, report)
        case IdListInput():
            return _id_list(feature, values, vocabulary, report)


def _dense_matrix(feature: Input, numbers: Matrix) -> Column:
    if not isinstance(feature, DenseInput) or numbers.shape != column_shape(feature, len(numbers)):
        raise ValueError
    with np.errstate(over="ignore"):
        column = numbers.astype(np.float32)  # [n, dim]
    return column if np.isfinite(column).all() else fill_missing(feature, column)


def _dense(feature: DenseInput, values: Sequence[Any]) -> Column:
    try:
        column = _packed(feature, values)
    except (struct.error, TypeError):
        if feature.missing == "refuse":
            raise
        column = _packed(feature, _nan_for_null(feature, values))
    return column if np.isfinite(column).all() else fill_missing(feature, column)


def fill_missing(feature: DenseInput, column: Column) -> Column:
    """Return a column `[n, dim]` that contains NaN as the feature declares it.

    Raises:
        ValueError: a number is infinite, or the feature is never missing.
    """
    missing = np.isnan(column)
    if feature.missing == "refuse" or np.isinf(column).any():
        raise ValueError
    if feature.missing == "nan":
        return column
    return np.where(missing, np.asarray(feature.default, np.float32), column)


def _nan_for_null(feature: DenseInput, values: Sequence[Any]) -> Sequence[Any]:
    nan = math.nan
    if feature.dim == 1 and type(values[0]) in _NUMBER_OR_NULL:
        return [nan if value is None else value for value in values]
    return [
        (nan,) * feature.dim
        if row is None
        else [nan if value is None else value for value in row]
        if type(row) is list
        else row
        for row in values
    ]


def _packed(feature: DenseInput, values: Sequence[Any]) -> Column:
    if feature.dim == 1 and isinstance(values[0], int | float):
        packed = _format(f"{len(values)}f").pack(*values)
    else:
        if not set(map(type, values)) <= {list, tuple}:  # a long string would unpack as well
            raise TypeError
        pack_row = _format(f"{feature.dim}f").pack
        packed = b"".join([pack_row(*row) for row in values])
    return np.frombuffer(bytearray(packed), np.float32).reshape(len(values), feature.dim)


def _id(
    feature: IdInput, values: Sequence[Any], vocabulary: Vocabulary, report: ValidationReport
) -> Column:
    if set(map(type, values)) != {feature.encoding.id_type}:  # a bool packs as an integer
        raise TypeError
    if isinstance(feature.encoding, Identity):
        packed = _format(f"{len(values)}q").pack(*values)
        column = np.frombuffer(bytearray(packed), np.int64)  # [n]
    else:
        column = rows_of(feature.encoding, values, vocabulary)  # [n]
    return _replace_unknown(feature, column, None, report)


def _id_list(
    feature: IdListInput, values: Sequence[Any], vocabulary: Vocabulary, report: ValidationReport
) -> Column:
    if not set(map(type, values)) <= {list, tuple}:
        raise TypeError
    if not set(map(type, chain.from_iterable(values))) <= {feature.encoding.id_type}:
        raise TypeError
    width, padding = feature.max_length, feature.padding
    pack_row = _format(f"{width}q").pack
    lengths = np.fromiter(map(len, values), np.int64, len(values))[:, None]  # [n, 1]
    is_right = feature.padding_side == "right"
    position = np.arange(width)
    real = position < lengths if is_right else position >= width - lengths  # [n, max_length]
    if not isinstance(feature.encoding, Identity):
        if lengths.max() > width:
            raise ValueError
        filled = np.full(real.shape, padding)  # [n, max_length]
        ids = list(chain.from_iterable(values))
        filled[real] = rows_of(feature.encoding, ids, vocabulary)
        return _without_padding(feature, filled, real, report)
    if is_right:
        rows = [pack_row(*row, *[padding] * (width - len(row))) for row in values]
    else:
        rows = [pack_row(*[padding] * (width - len(row)), *row) for row in values]
    column = np.frombuffer(bytearray(b"".join(rows)), np.int64).reshape(len(values), width)
    return _without_padding(feature, column, real, report)


def _without_padding(
    feature: IdListInput, column: Column, real: npt.NDArray[np.bool_], report: ValidationReport
) -> Column:
    """Map unknown ids, and make sure that no id has a row that is reserved for padding."""
    column = _replace_unknown(feature, column, real, report)
    if feature.reserves_padding and (real & (column == feature.padding)).any():
        raise ValueError
    return column


def _replace_unknown(
    feature: IdInput | IdListInput,
    ids: Column,
    real: npt.NDArray[np.bool_] | None,
    report: ValidationReport,
) -> Column:
    """Map ids outside the vocabulary to the unknown row, in place, and count them.

    `real` says which ids are not padding, where a column has padding; padding stays as it is.
    """
    unknown = ids.view(np.uint64) >= feature.vocabulary_size  # a negative id is a huge one there
    if real is not None:
        unknown &= real
    count = int(np.count_nonzero(unknown))
    if count:
        if feature.unknown == "reject":
            raise ValueError
        ids[unknown] = feature.unknown
        report.unknown_ids[feature.name] = count
    return ids


@lru_cache(maxsize=1024)
def _format(layout: str) -> struct.Struct:
    return struct.Struct(layout)


# The encoder that reads value by value: it runs only for columns that the fast encoder refused.


def column_by_value(
    feature: Input,
    values: Sequence[Any],
    side: Side,
    report: ValidationReport,
    vocabulary: Vocabulary = NO_VOCABULARY,
    *,
    rows: Iterable[int] | None = None,
    key: TableKey | None = None,
) -> Column:
    """Encode a column and report every wrong value; a row with a wrong value stays zero.

    Only `rows` are encoded, by default all of them. `key` could have been sent in place of a
    missing value.
    """
    column = np.zeros(column_shape(feature, len(values)), column_dtype(feature))
    for row in range(len(values)) if rows is None else rows:
        if report.full:
            break
        value = values[row]
        if value is MISSING and feature.default is None and side.written_as == "objects":
            report.add_missing(side.parent(row), feature.name, key)
            continue
        before = len(report.problems)

        def add_problem(element: int | None, detail: str, row: int = row) -> None:
            report.add(side.pointer(feature.name, row, element), detail)

        read = _read(feature, value, add_problem, vocabulary, report)
        if len(report.problems) == before:
            column[row] = np.asarray(read, dtype=column.dtype)
    return column


def _read(
    feature: Input,
    value: object,
    add_problem: AddProblem,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> float | Sequence[float] | None:
    if isinstance(value, Missing):
        if feature.default is None:
            add_problem(None, MISSING_FEATURE)
            return None
        value = feature.absent
    match feature:
        case DenseInput():
            return _read_dense(feature, value, add_problem)
        case IdInput():
            return _read_id(feature, value, None, add_problem, vocabulary, report)
        case IdListInput():
            return _read_id_list(feature, value, add_problem, vocabulary, report)


def _read_dense(feature: DenseInput, value: object, add_problem: AddProblem) -> list[float]:
    if feature.missing != "refuse":
        value = _without_missing(feature, value)
    if feature.dim == 1 and not isinstance(value, list | tuple):
        return [_read_number(value, None, add_problem, feature.missing)]
    if not isinstance(value, list | tuple):
        add_problem(None, f"must be a list of {feature.dim} numbers")
    elif len(value) != feature.dim:
        add_problem(None, f"must have {feature.dim} numbers, has {len(value)}")
    else:
        return [
            _read_number(number, element, add_problem, feature.missing)
            for element, number in enumerate(value)
        ]
    return []


def _without_missing(feature: DenseInput, value: object) -> object:
    """Return a value in which null and NaN are NaN, or the default's numbers."""
    fill = (math.nan,) * feature.dim if feature.missing == "nan" else feature.default
    assert fill is not None
    if isinstance(value, list | tuple) and len(value) == feature.dim:
        return [fill[i] if _is_missing(part) else part for i, part in enumerate(value)]
    if not _is_missing(value):
        return value
    return fill if value is None or feature.dim == 1 else value


def _is_missing(number: object) -> bool:
    return number is None or (isinstance(number, float) and math.isnan(number))


def _read_number(
    number: object, element: int | None, add_problem: AddProblem, missing: str
) -> float:
    if missing == "nan" and _is_missing(number):
        return math.nan
    if not isinstance(number, int | float):
        add_problem(element, "must be a number")
    elif not abs(number) < BEYOND_FLOAT32:  # NaN is not less than anything
        add_problem(element, NOT_FINITE)
    else:
        return float(number)
    return 0.0


def _read_id(
    feature: IdInput | IdListInput,
    value: object,
    element: int | None,
    add_problem: AddProblem,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> int:
    row = _row(feature, value, element, add_problem, vocabulary)
    if (
        row is not None
        and isinstance(feature, IdListInput)
        and feature.reserves_padding
        and feature.known(row) == feature.padding
    ):
        add_problem(element, row_of_padding(feature, row))
        return 0
    if row is None or 0 <= row < feature.vocabulary_size:
        return row or 0
    if feature.unknown == "reject":
        add_problem(element, outside_vocabulary(feature))
    else:
        report.unknown_ids[feature.name] = report.unknown_ids.get(feature.name, 0) + 1
        return feature.unknown
    return 0


def _row(
    feature: IdInput | IdListInput,
    value: object,
    element: int | None,
    add_problem: AddProblem,
    vocabulary: Vocabulary,
) -> int | None:
    """Return the row that an id stands for, in the table or not; None if it is not an id."""
    if value is None and feature.missing == "unknown":
        return NOT_KNOWN
    if feature.encoding.id_type is str:
        if not isinstance(value, str):
            add_problem(element, "must be a string")
            return None
    elif is_huge_integer(value):
        add_problem(element, "must fit in int64")
        return None
    elif not isinstance(value, int) or isinstance(value, bool):
        add_problem(element, "must be an integer")
        return None
    elif not -(2**63) <= value < 2**63:
        add_problem(element, "must fit in int64")
        return None
    if isinstance(feature.encoding, Identity):
        return int(value)
    try:
        return int(rows_of(feature.encoding, [value], vocabulary)[0])
    except UnicodeEncodeError:
        add_problem(element, "must be valid Unicode")
        return None


def _read_id_list(
    feature: IdListInput,
    value: object,
    add_problem: AddProblem,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> list[int]:
    if value is None and feature.missing == "unknown":
        value = ()
    if not isinstance(value, list | tuple):
        what = "strings" if feature.encoding.id_type is str else "integers"
        add_problem(None, f"must be a list of at most {feature.max_length} {what}")
        return []
    if len(value) > feature.max_length:
        add_problem(None, f"must have at most {feature.max_length} ids, has {len(value)}")
        return []
    ids = [
        _read_id(feature, part, element, add_problem, vocabulary, report)
        for element, part in enumerate(value)
    ]
    padding = [feature.padding] * (feature.max_length - len(ids))
    return ids + padding if feature.padding_side == "right" else padding + ids
