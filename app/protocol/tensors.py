"""Tensors to feature columns, checked against the manifest.

This does for arrays what `app.protocol.features` does for JSON values. It reads single values only
to report wrong ones, and copies no array that it can use as it is. A row with fewer ids than the
tensor is wide is padded: at its end if the model pads on the right, else at its beginning. The
padding is the manifest's `padding` for integers and the empty string for strings. Between ids, a
padding that is reserved is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from app.artifacts.model_tables import NO_TABLES, BoundTable, ModelTables
from app.engine.request import RequestFeatures, TableRows
from app.protocol.features import (
    NOT_FINITE,
    default_column,
    fill_missing,
    outside_vocabulary,
    row_of_padding,
)
from app.protocol.table_features import EncodedSide, join_sides, refuse_or_drop, refuses
from app.protocol.validation import MOST_PROBLEMS, ValidationReport

Numbers = npt.NDArray[np.float32] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input as sent.

    Attributes:
        pointer: its place in the request (RFC 6901).
        values: float32 or int64 `[rows, width]`; or `rows · width` strings, row after row.
        rows: one per candidate; a user feature may have a single row.
        width: values per row.
    """

    pointer: str
    values: Numbers | list[str]
    rows: int
    width: int


def rows_and_width(feature: Input, shape: Sequence[int]) -> tuple[int, int] | None:
    """Return the rows and the width of a tensor's shape, or None if it does not fit a feature."""
    match feature:
        case DenseInput():
            narrowest = widest = feature.dim
        case IdInput():
            narrowest = widest = 1
        case IdListInput():
            narrowest, widest = 0, feature.max_length
    if len(shape) == 1 and isinstance(feature, DenseInput | IdInput) and widest == 1:
        return shape[0], 1
    if len(shape) == 2 and narrowest <= shape[1] <= widest:
        return shape[0], shape[1]
    return None


def shape_rule(feature: Input) -> str:
    """Return the message about the shapes that fit a feature; n is the number of candidates."""
    n = "n" if feature.side == "candidate" else "1"
    match feature:
        case DenseInput(dim=1) | IdInput():
            return f"must have shape [{n}, 1] or [{n}]"
        case DenseInput():
            return f"must have shape [{n}, {feature.dim}]"
        case IdListInput():
            return f"must have shape [{n}, k] with k at most {feature.max_length}"


def encode_tensors(
    manifest: Manifest,
    tensors: Mapping[str, Tensor],
    report: ValidationReport,
    *,
    rows: int,
    vocabularies: Vocabularies = MappingProxyType({}),
    tables: ModelTables = NO_TABLES,
) -> RequestFeatures:
    """Check a request's tensors and turn them into columns.

    Args:
        manifest: lists the features.
        tensors: by feature, each of a type and shape that fits; also the keys of tables. If one is
            absent, its feature has a default or comes from a table, or the report has the problem
            already.
        report: takes every problem; if it has any, the columns are not fit for use.
        rows: n, the number of candidates.
        vocabularies: of the features whose encoding has one.
        tables: of the model version.
    """
    if tables is not NO_TABLES:
        users, items = manifest.user_inputs, manifest.candidate_inputs
        sent_user = _encode_side(users, tables.users, tensors, 1, vocabularies, report)
        sent_candidates = _encode_side(items, tables.items, tensors, rows, vocabularies, report)
        return join_sides(sent_user, sent_candidates, report)
    user: dict[str, Column] = {}
    candidate: dict[str, Column] = {}
    for feature in manifest.inputs:
        vocabulary = vocabularies.get(feature.name, NO_VOCABULARY)
        is_of_user = feature.side == "user"
        tensor = tensors.get(feature.name)
        if tensor is not None:
            column = _column(feature, tensor, report, vocabulary)
        elif feature.default is not None:
            column = default_column(feature, 1 if is_of_user else rows, vocabulary, report)
        else:
            continue
        (user if is_of_user else candidate)[feature.name] = column
    return RequestFeatures(user, candidate, rows, report.unknown_ids)


def _encode_side(
    features: Sequence[Input],
    bound: BoundTable | None,
    tensors: Mapping[str, Tensor],
    rows: int,
    vocabularies: Vocabularies,
    report: ValidationReport,
) -> EncodedSide:
    """Encode a side whose features may come from a table."""
    key = None if bound is None else tensors.get(bound.table.key)
    gathered: frozenset[str] = frozenset()
    if bound is not None and key is not None:
        gathered = frozenset([name for name in bound.names if name not in tensors])
    if not gathered:
        columns = _columns(features, tensors, rows, vocabularies, report)
        return EncodedSide(columns, rows, rows)
    assert key is not None
    assert bound is not None
    return _from_table(features, bound, key, gathered, tensors, rows, vocabularies, report)


def _from_table(
    features: Sequence[Input],
    bound: BoundTable,
    key: Tensor,
    gathered: frozenset[str],
    tensors: Mapping[str, Tensor],
    rows: int,
    vocabularies: Vocabularies,
    report: ValidationReport,
) -> EncodedSide:
    """Look up the keys of a side, and apply the table's policy to unknown ones."""
    if bound.kind == "users" and key.rows > 1:
        key = _only_row(bound.key_input, key, report)
        tensors = {**tensors, bound.table.key: key}
    values = key.values
    keys = values if isinstance(values, list) else values.reshape(-1).astype(np.int64, copy=False)
    positions = bound.table.find(keys)
    unknown = np.flatnonzero(positions < 0)
    kept = None
    if unknown.size:
        report.unknown_keys[bound.kind] = len(unknown)
        kept = refuse_or_drop(bound, unknown, rows, key.pointer, report)
        if refuses(bound):  # one problem for a key is enough
            features = [feature for feature in features if feature.name != bound.table.key]
    features = [feature for feature in features if feature.name not in gathered]
    columns = _columns(features, tensors, rows, vocabularies, report)
    sent = rows
    if kept is not None and not report.problems:
        positions, rows = positions[kept], len(kept)
        columns = {name: column[kept] for name, column in columns.items()}
    folded_for = bound.folded_by(gathered, positions)
    table = TableRows(bound.table, positions, frozenset(gathered), folded_for)
    return EncodedSide(columns, rows, sent, bound, table, unknown if unknown.size else None, kept)


def _columns(
    features: Sequence[Input],
    tensors: Mapping[str, Tensor],
    rows: int,
    vocabularies: Vocabularies,
    report: ValidationReport,
) -> dict[str, Column]:
    """Return the columns of features that were sent or have a default."""
    columns: dict[str, Column] = {}
    for feature in features:
        vocabulary = vocabularies.get(feature.name, NO_VOCABULARY)
        tensor = tensors.get(feature.name)
        if tensor is not None:
            columns[feature.name] = _column(feature, tensor, report, vocabulary)
        elif feature.default is not None:
            columns[feature.name] = default_column(feature, rows, vocabulary, report)
    return columns


def _column(
    feature: Input, tensor: Tensor, report: ValidationReport, vocabulary: Vocabulary
) -> Column:
    if isinstance(feature, DenseInput):
        tensor = _finite(feature, tensor, report)
    if feature.side == "user":
        if tensor.rows == 0:  # there are no candidates either, so the column is never read
            return np.zeros(column_shape(feature, 1), column_dtype(feature))
        if tensor.rows > 1:
            tensor = _only_row(feature, tensor, report)
    match feature:
        case DenseInput():
            assert not isinstance(tensor.values, list)
            return tensor.values
        case IdInput():
            ids = _rows(feature, tensor, vocabulary).reshape(tensor.rows)  # [n]
            return _replace_unknown(feature, tensor, ids, None, report)
        case IdListInput():
            return _id_list(feature, tensor, report, vocabulary)


def _finite(feature: DenseInput, tensor: Tensor, report: ValidationReport) -> Tensor:
    assert not isinstance(tensor.values, list)
    numbers = tensor.values
    if numbers.dtype != np.float32:
        # Through float64, as Python integers go: the same number gives the same float32.
        numbers = numbers.astype(np.float64).astype(np.float32)
    is_finite = np.isfinite(numbers)
    if not is_finite.all():
        wrong = ~is_finite if feature.missing == "refuse" else np.isinf(numbers)
        if wrong.any():
            _add_problems(feature, tensor, wrong, NOT_FINITE, report)
        else:
            numbers = fill_missing(feature, numbers)
    return Tensor(tensor.pointer, numbers, tensor.rows, tensor.width)


def _only_row(feature: Input, tensor: Tensor, report: ValidationReport) -> Tensor:
    """Return the first row of a user feature; the others must be copies of it."""
    values = tensor.values
    first = values[: tensor.width] if isinstance(values, list) else values[:1]
    if isinstance(values, list):
        is_same = values == first * tensor.rows
    else:
        is_same = bool(((values == first) | ((values != values) & (first != first))).all())  # NaN
    if not is_same:
        detail = f"{feature.name} is a user feature: send one row, or n equal rows"
        report.add(tensor.pointer, detail)
    return Tensor(tensor.pointer, first, 1, tensor.width)


def _rows(
    feature: IdInput | IdListInput, tensor: Tensor, vocabulary: Vocabulary
) -> npt.NDArray[np.int64]:
    """Return the rows that ids stand for, in the table or not; int64 `[n, k]`."""
    values = tensor.values
    if isinstance(feature.encoding, Identity):
        assert not isinstance(values, list)
        return values.astype(np.int64, copy=False)
    ids: Sequence[Any] = values if isinstance(values, list) else values.ravel().tolist()
    return rows_of(feature.encoding, ids, vocabulary).reshape(tensor.rows, tensor.width)


def _id_list(
    feature: IdListInput, tensor: Tensor, report: ValidationReport, vocabulary: Vocabulary
) -> Column:
    real = _real(feature, tensor)  # [n, k]
    rows = _rows(feature, tensor, vocabulary)  # [n, k]
    ids = _replace_unknown(feature, tensor, rows, real, report)  # [n, k]
    if feature.reserves_padding and (reserved := real & (ids == feature.padding)).any():
        for unknown in (False, True):
            wrong = reserved & ((rows != feature.padding) == unknown)
            row = NOT_KNOWN if unknown else feature.padding
            _add_problems(feature, tensor, wrong, row_of_padding(feature, row), report)
    if tensor.width == feature.max_length and isinstance(feature.encoding, Identity):
        return ids  # padded exactly as the column is
    column = np.full(column_shape(feature, tensor.rows), feature.padding)  # [n, max_length]
    is_right = feature.padding_side == "right"
    start = 0 if is_right else feature.max_length - tensor.width
    taken = column[:, start : start + tensor.width]  # a view, [n, k]
    taken[real] = ids[real]
    return column


def _real(feature: IdListInput, tensor: Tensor) -> npt.NDArray[np.bool_]:
    """Return which of `[n, k]` values are ids rather than padding."""
    values = tensor.values
    if isinstance(values, list):
        flat = np.fromiter(map(bool, values), np.bool_, len(values))
        real = flat.reshape(tensor.rows, tensor.width)
    else:
        real = values != feature.padding
    if real.all():
        return real
    if feature.padding_side == "right":  # up to the last one that is not padding
        return np.logical_or.accumulate(real[:, ::-1], axis=1)[:, ::-1]
    return np.logical_or.accumulate(real, axis=1)


def _replace_unknown(
    feature: IdInput | IdListInput,
    tensor: Tensor,
    ids: npt.NDArray[np.int64],
    real: npt.NDArray[np.bool_] | None,
    report: ValidationReport,
) -> npt.NDArray[np.int64]:
    """Map ids outside the vocabulary to the unknown row and count them; padding is unchanged."""
    unknown = ids.view(np.uint64) >= feature.vocabulary_size  # a negative id is a huge one there
    if real is not None:
        unknown &= real
    count = int(np.count_nonzero(unknown))
    if count == 0:
        return ids
    if feature.unknown == "reject":
        wrong = unknown.reshape(tensor.rows, tensor.width)
        _add_problems(feature, tensor, wrong, outside_vocabulary(feature), report)
        return ids
    report.unknown_ids[feature.name] = count
    return np.where(unknown, feature.unknown, ids)


def _add_problems(
    feature: Input,
    tensor: Tensor,
    wrong: npt.NDArray[np.bool_],
    rule: str,
    report: ValidationReport,
) -> None:
    """Report the first places in `[n, k]` whose values break a rule."""
    for row, element in np.argwhere(wrong)[:MOST_PROBLEMS].tolist():
        inside = "" if tensor.width == 1 else f", element {element}"
        report.add(tensor.pointer, f"{feature.name} {rule} (row {row}{inside})")
