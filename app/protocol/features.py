"""A JSON document's user and candidates become feature columns, checked against the manifest.

Numbers go from Python objects into column bytes through `struct`: on 500 rows of 100 floats that
takes 0.4 of the time of `numpy.array`, refuses strings and null, which NumPy would take for
numbers, and notices ragged rows by itself. Where it fails, the column is read again value by value
(`app.protocol.slow_encode`), which says where and why.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.encoding import NO_VOCABULARY, Identity, Vocabularies, Vocabulary, rows_of
from app.artifacts.manifest import DenseInput, IdInput, IdListInput, Input, Manifest
from app.engine.request import RequestFeatures
from app.protocol.slow_encode import slow_column
from app.protocol.validation import Matrix, Side, ValidationReport, candidate_side, user_side


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
    vocabulary is *unknown*: it becomes the manifest's `unknown` row and is counted.

    Args:
        manifest: which features there are.
        user: an object, feature name to value.
        candidates: an object of columns, feature name to list of values; or a list of objects, one
            a candidate.
        report: takes every problem; where it has any, the columns are not fit for use.
        max_candidates: the most candidates that are let in.
        vocabularies: of the features whose encoding has one.

    Raises:
        PayloadTooLarge: there are more than `max_candidates` candidates.
    """
    user_names = frozenset(feature.name for feature in manifest.user_inputs)
    names = frozenset(feature.name for feature in manifest.candidate_inputs)
    one = user_side(user, user_names, report)
    many = candidate_side(candidates, names, report, max_rows=max_candidates)
    return RequestFeatures(
        user=_encode_side(one, manifest.user_inputs, vocabularies, report),
        candidate=_encode_side(many, manifest.candidate_inputs, vocabularies, report),
        rows=many.rows,
        unknown_ids=report.unknown_ids,
    )


def default_column(
    feature: Input, rows: int, vocabulary: Vocabulary, report: ValidationReport
) -> Column:
    """Return a column of a feature's default, which it must have."""
    return _fast_column(feature, [feature.default] * rows, vocabulary, report)


def _encode_side(
    side: Side,
    features: Sequence[Input],
    vocabularies: Vocabularies,
    report: ValidationReport,
) -> dict[str, Column]:
    encoded: dict[str, Column] = {}
    for feature in features:
        values = side.columns.get(feature.name)
        if values is None:
            if feature.default is None:
                if feature.name not in side.refused:
                    report.add(side.pointer(feature.name), "is missing and has no default")
                continue
            values = [feature.default] * side.rows
        vocabulary = vocabularies.get(feature.name, NO_VOCABULARY)
        try:
            encoded[feature.name] = _fast_column(feature, values, vocabulary, report)
        except (struct.error, TypeError, ValueError, OverflowError):
            sent = values.tolist() if isinstance(values, np.ndarray) else values
            encoded[feature.name] = slow_column(feature, sent, side, report, vocabulary)
    return encoded


def _fast_column(
    feature: Input, values: Sequence[Any] | Matrix, vocabulary: Vocabulary, report: ValidationReport
) -> Column:
    """Return a column, or raise anything where some value is not as it should be."""
    if isinstance(values, np.ndarray):
        return _dense_matrix(column_shape(feature, len(values)), values)
    if not values:
        return np.zeros(column_shape(feature, 0), column_dtype(feature))
    match feature:
        case DenseInput():
            return _dense(feature, values)
        case IdInput():
            return _id(feature, values, vocabulary, report)
        case IdListInput():
            return _id_list(feature, values, vocabulary, report)


def _dense_matrix(shape: tuple[int, ...], numbers: Matrix) -> Column:
    if numbers.shape != shape:
        raise ValueError
    with np.errstate(over="ignore"):
        column = numbers.astype(np.float32)  # [n, dim]
    if not np.isfinite(column).all():
        raise ValueError
    return column


def _dense(feature: DenseInput, values: Sequence[Any]) -> Column:
    if feature.dim == 1 and isinstance(values[0], int | float):
        packed = _format(f"{len(values)}f").pack(*values)
    else:
        if not set(map(type, values)) <= {list, tuple}:  # a long string would unpack as well
            raise TypeError
        pack_row = _format(f"{feature.dim}f").pack
        packed = b"".join([pack_row(*row) for row in values])
    column = np.frombuffer(bytearray(packed), np.float32).reshape(len(values), feature.dim)
    if not np.isfinite(column).all():
        raise ValueError
    return column


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
    return _known(feature, column, None, report)


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
        return _known(feature, filled, real, report)
    if is_right:
        rows = [pack_row(*row, *[padding] * (width - len(row))) for row in values]
    else:
        rows = [pack_row(*[padding] * (width - len(row)), *row) for row in values]
    column = np.frombuffer(bytearray(b"".join(rows)), np.int64).reshape(len(values), width)
    return _known(feature, column, real, report)


def _known(
    feature: IdInput | IdListInput,
    ids: Column,
    real: npt.NDArray[np.bool_] | None,
    report: ValidationReport,
) -> Column:
    """Map ids outside the vocabulary to the unknown row, and count them.

    Where `real` is given, it says which ids are no padding; padding stays.
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
