"""Columns of a file as columns of a table, converted by Arrow and NumPy.

What a column does not say plainly is left to the reader of single values in `table_rows.py`: each
function here returns the values, which cells are empty, and which rows it cannot read. A row that
it cannot read may still be valid.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.encoding import Identity, Vocabulary, rows_of
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.artifacts.tables.keys import Int64
from app.cli.table_files import Array, FileUnreadable, TableFile
from app.protocol.validation import ValidationReport

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

EXACT = 2.0**53
"""float64 holds every integer up to here."""

_SEPARATORS = re.compile(r"[\s,;|]+")
_WHOLE = re.compile(r"([+-]?)([0-9]+)(?:\.0*)?")
_MOST_DIGITS = 30  # a number with as many is beyond int64; `int` takes 4,300
_BOOLEANS = {"true": 1, "t": 1, "yes": 1, "y": 1, "false": 0, "f": 0, "no": 0, "n": 0, "": 0}


class Mixed:
    """A column of JSON values of several types: every value is read by itself."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def to_pylist(self) -> list[Any]:
        """Return the values."""
        return self._values


def to_array(column: Array | list[Any], file: TableFile) -> Array:
    """Return a column as an Arrow array, not dictionary-encoded; JSON of several types as `Mixed`.

    Raises:
        FileUnreadable: text is not UTF-8.
    """
    import pyarrow as pa

    if isinstance(column, list):
        try:
            return pa.array(column)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return Mixed(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if file.kind == "parquet" and is_text(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise FileUnreadable(f"{file.path}: {str(error).splitlines()[0]}") from error
    return column


def read_column(
    feature: Input,
    arrays: list[Array],
    file: TableFile,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> tuple[Column, Flags, Flags]:
    """Read the column of a feature, and encode it.

    Args:
        feature: whose column it is.
        arrays: one, or `dim` of a dense feature.
        file: that they are from.
        vocabulary: of the feature.
        report: counts the unknown ids.

    Returns:
        Float32 `[n, dim]`, int64 `[n]` or int64 `[n, max_length]` as the model takes it; bool `[n]`
        which cells are empty; bool `[n]` which rows cannot be read. The values of both
        mean nothing. A bad cell raises nothing.
    """
    match feature:
        case DenseInput():
            if len(arrays) > 1:
                return _side_by_side(arrays, file)
            if feature.dim == 1 and not is_list_type(arrays[0].type):
                floats, empty, wrong = _read_floats(arrays[0], file)
                return _to_float32(floats[:, None], empty, wrong)
            return _dense_lists(feature, arrays[0], file)
        case IdInput():
            rows, empty, wrong = _read_ids(feature, arrays[0], file, vocabulary)
            is_refused = _outside(feature, rows) & ~empty & (feature.unknown == "reject")
            return _known(feature, rows, ~empty & ~wrong, report), empty, wrong | is_refused
        case IdListInput():
            return _id_lists(feature, arrays[0], file, vocabulary, report)


def _side_by_side(arrays: list[Array], file: TableFile) -> tuple[Column, Flags, Flags]:
    """Return float32 `[n, dim]` from `dim` columns; a row is empty if all its cells are."""
    read = [_read_floats(array, file) for array in arrays]
    floats = np.stack([values for values, _, _ in read], axis=1)  # [n, dim]
    empties = np.stack([empty for _, empty, _ in read], axis=1)  # [n, dim]
    wrong: Flags = np.logical_or.reduce([wrong for _, _, wrong in read])
    empty: Flags = np.logical_and.reduce(empties, axis=1)
    return _to_float32(floats, empty, wrong | (empties.any(axis=1) & ~empty))


def _dense_lists(feature: DenseInput, array: Array, file: TableFile) -> tuple[Column, Flags, Flags]:
    """Return float32 `[n, dim]` from lists."""
    elements, lengths, empty, wrong = _split_lists(array, file)
    floats, is_absent, is_wrong = _read_floats(elements, file)
    owner = np.repeat(np.arange(len(array)), lengths)  # the row of each element
    fits = lengths == feature.dim
    column = np.zeros((len(array), feature.dim))
    column[fits] = floats[fits[owner]].reshape(-1, feature.dim)
    wrong |= ~fits & ~empty
    wrong[owner[is_wrong | is_absent]] = True
    return _to_float32(column, empty, wrong)


def _id_lists(
    feature: IdListInput,
    array: Array,
    file: TableFile,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> tuple[Column, Flags, Flags]:
    """Return int64 `[n, max_length]`, padded."""
    elements, lengths, empty, wrong = _split_lists(array, file)
    rows, is_absent, is_wrong = _read_ids(feature, elements, file, vocabulary)
    owner = np.repeat(np.arange(len(array)), lengths)  # the row of each element
    wrong |= lengths > feature.max_length
    wrong[owner[is_wrong | is_absent]] = True
    if feature.unknown == "reject":
        wrong[owner[_outside(feature, rows)]] = True
    if feature.reserves_padding:
        wrong[owner[rows == feature.padding]] = True
        if feature.unknown == feature.padding:
            wrong[owner[_outside(feature, rows)]] = True
    good = ~wrong[owner]
    rows = _known(feature, rows, good, report)
    at = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if feature.padding_side == "left":
        at += feature.max_length - lengths[owner]
    column = np.full(column_shape(feature, len(array)), feature.padding, column_dtype(feature))
    column[owner[good], at[good]] = rows[good]
    return column, empty, wrong


def _to_float32(floats: Floats, empty: Flags, wrong: Flags) -> tuple[Column, Flags, Flags]:
    """Convert `[n, dim]`; what is not finite in float32 is wrong."""
    with np.errstate(over="ignore", invalid="ignore"):
        column = floats.astype(np.float32)
    return column, empty, wrong | (~np.isfinite(column).all(axis=1) & ~empty)


def _read_ids(
    feature: IdInput | IdListInput, array: Array, file: TableFile, vocabulary: Vocabulary
) -> tuple[Int64, Flags, Flags]:
    """Return rows of the embedding table, known or not, int64 `[n]`."""
    import pyarrow as pa

    if feature.encoding.id_type is int:
        values, empty, wrong = read_integers(array, file)
        if isinstance(feature.encoding, Identity):
            return values, empty, wrong
        distinct, index = np.unique(values, return_inverse=True)
        return rows_of(feature.encoding, distinct.tolist(), vocabulary)[index], empty, wrong
    empty = empty_cells(array)
    assert not isinstance(feature.encoding, Identity)
    if not is_text(array.type):
        return np.zeros(len(array), np.int64), empty, ~empty
    encoded = array.dictionary_encode()
    ids = encoded.dictionary.to_pylist()
    rows = np.append(rows_of(feature.encoding, ids, vocabulary), 0)  # the last is for empty cells
    at = encoded.indices.fill_null(len(ids)).cast(pa.int64())
    rows = rows[np.asarray(at.to_numpy(zero_copy_only=False))]
    return rows, empty, np.zeros(len(array), np.bool_)


def _outside(feature: IdInput | IdListInput, rows: Int64) -> Flags:
    outside: Flags = rows.view(np.uint64) >= feature.vocabulary_size  # a negative row is huge there
    return outside


def _known(
    feature: IdInput | IdListInput, rows: Int64, valid: Flags, report: ValidationReport
) -> Int64:
    """Return rows of ids; an unknown id, where accepted, gets its row and is counted."""
    if feature.unknown == "reject":
        return rows
    outside = _outside(feature, rows) & valid
    if count := int(np.count_nonzero(outside)):
        report.unknown_ids[feature.name] = report.unknown_ids.get(feature.name, 0) + count
        return np.where(outside, feature.unknown, rows)
    return rows


def _read_floats(array: Array, file: TableFile) -> tuple[Floats, Flags, Flags]:
    """Return float64 `[n]`."""
    import pyarrow as pa

    empty = empty_cells(array)
    arrow_type = array.type
    if (
        pa.types.is_integer(arrow_type)
        or pa.types.is_floating(arrow_type)
        or pa.types.is_decimal(arrow_type)
        or pa.types.is_boolean(arrow_type)
        or (file.is_text and is_text(arrow_type))
    ):
        floats = _cast(array, pa.float64())
        if floats is not None:
            return floats, empty, np.zeros(len(array), np.bool_)
    return np.zeros(len(array)), empty, ~empty


def read_integers(array: Array, file: TableFile) -> tuple[Int64, Flags, Flags]:
    """Return int64 `[n]`; see the module for the rest."""
    import pyarrow as pa

    empty = empty_cells(array)
    if isinstance(array, Mixed):
        return np.zeros(len(empty), np.int64), empty, ~empty
    if pa.types.is_floating(array.type) and file.kind != "json":
        floats, empty, _ = _read_floats(array, file)
        empty = empty | np.isnan(floats)  # pandas stores integers with empty cells as floats
        whole = (np.floor(floats) == floats) & (np.abs(floats) <= EXACT)
        values = np.where(whole & ~empty, floats, 0.0).astype(np.int64)
        return values, empty, ~whole & ~empty
    if pa.types.is_integer(array.type) or (file.is_text and is_text(array.type)):
        integers = _cast(array, pa.int64())
        if integers is not None:
            return integers, empty, np.zeros(len(array), np.bool_)
    values = np.zeros(len(array), np.int64)
    wrong = ~empty
    if file.is_text:
        for row, cell in enumerate(array.to_pylist()):
            number = None if cell is None else whole_number(cell)
            if number is not None and -(2**63) <= number < 2**63:
                values[row], wrong[row] = number, False
    return values, empty, wrong


def _cast(array: Array, arrow_type: object) -> npt.NDArray[Any] | None:
    """Convert numbers, or text that says numbers; an empty cell is 0.

    Returns None if Arrow cannot convert a cell.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        trimmed = pc.utf8_trim_whitespace(array) if is_text(array.type) else array
        numbers = pc.fill_null(pc.cast(trimmed, arrow_type), 0)
    except pa.ArrowInvalid:
        return None
    return np.asarray(numbers.to_numpy(zero_copy_only=False))


def _split_lists(array: Array, file: TableFile) -> tuple[Array, Int64, Flags, Flags]:
    """Return the elements of all lists, the length of each, empty cells, and what is not a list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    empty = empty_cells(array)
    if is_list_type(array.type):
        lengths = pc.fill_null(pc.cast(pc.list_value_length(array), pa.int64()), 0)
        counts = np.asarray(lengths.to_numpy(zero_copy_only=False))
        return array.flatten(), counts, empty, np.zeros(len(array), np.bool_)
    if not (file.is_text and is_text(array.type)):
        return pa.array([], pa.int64()), np.zeros(len(array), np.int64), empty, ~empty
    lists = [[] if cell is None else list_elements(cell) for cell in array.to_pylist()]
    broken = np.array([elements is None for elements in lists], np.bool_)
    counts = np.array([len(elements or ()) for elements in lists], np.int64)
    flat = [element for elements in lists for element in elements or ()]
    return pa.array(flat, pa.string()), counts, empty, broken


# What a cell of text says, and what Arrow says of a cell.


def list_elements(cell: str) -> list[str] | None:
    """Return the elements of a list in text; None if it is broken."""
    stripped = cell.strip()
    if not stripped.startswith("["):
        return [element for element in _SEPARATORS.split(stripped) if element]
    try:
        elements = orjson.loads(stripped)
    except orjson.JSONDecodeError:
        return None
    return [
        element if isinstance(element, str) else orjson.dumps(element).decode()
        for element in elements
    ]


def whole_number(cell: str) -> int | None:
    """Return the whole number that text stands for; None if there is none.

    One with very many digits loses some: it is out of the range of every column either way.
    """
    match = _WHOLE.fullmatch(cell.strip())
    if match is None:
        return None
    size = int(match[2].lstrip("0")[:_MOST_DIGITS] or "0")
    return -size if match[1] == "-" else size


def values_of(array: Array) -> list[Any]:
    """Return the values of an array as Python values; None if empty."""
    values: list[Any] = array.to_pylist()
    return values


def empty_cells(array: Array) -> Flags:
    """Return which cells are empty."""
    if isinstance(array, Mixed):
        return np.array([value is None for value in array.to_pylist()], np.bool_)
    if array.null_count == 0:
        return np.zeros(len(array), np.bool_)
    return np.array(array.is_null().to_numpy(zero_copy_only=False), np.bool_)


def read_booleans(array: Array) -> tuple[Flags, Flags]:
    """Return which cells are true, and which are neither true nor false. An empty one is false.

    Booleans, 0 and 1 as any number, and words: true, t, yes, y, false, f, no, n.
    """
    read = [_boolean(value) for value in values_of(array)]
    true = np.array([value is True for value in read], np.bool_)
    return true, np.array([value is None for value in read], np.bool_)


def _boolean(value: object) -> bool | None:
    """Return what a cell says; None if it is neither true nor false."""
    if value is None or value != value:  # pandas stores booleans with empty cells as floats
        return False
    if isinstance(value, str):
        word = value.strip().lower()
        value = _BOOLEANS.get(word, whole_number(word))
    return bool(value) if value in (0, 1) else None


def is_text(arrow_type: object) -> bool:
    """Return whether cells of a type are text."""
    import pyarrow as pa

    return bool(pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type))


def is_list_type(arrow_type: object) -> bool:
    """Return whether cells of a type are lists."""
    import pyarrow as pa

    is_lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(arrow_type) for is_list in is_lists)
