"""Rows of a file as the records of a table, with the rules and messages of a request.

Columns are converted by Arrow and NumPy. A value that they do not take is read again by the encoder
of requests that reads value by value (`app.protocol.features`), which says what is wrong with it or
returns what it stands for. A file may say the same in other forms than a request: see
`RowEncoder.encode`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.encoding import NO_VOCABULARY, Identity, Vocabularies, Vocabulary, rows_of
from app.artifacts.manifest import DenseInput, IdInput, IdListInput, Input
from app.artifacts.tables.description import KeyType, record_dtype
from app.artifacts.tables.keys import LONGEST_KEY, Int64
from app.artifacts.tables.segment import Records
from app.cli.table_files import Array, Chunk, FileUnreadable, TableFile
from app.protocol.features import column_by_value, default_column
from app.protocol.validation import MISSING, Side, ValidationReport

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_EXACT = 2.0**53  # float64 holds every integer up to here
_BETWEEN = re.compile(r"[\s,;|]+")
_WHOLE = re.compile(r"([+-]?)([0-9]+)(?:\.0*)?")
_MOST_DIGITS = 30  # a number with as many is beyond int64; `int` takes 4,300
_CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,18}")
TRUE_WORDS = ("true", "t", "yes", "y", "1")


@dataclass(frozen=True, slots=True)
class Source:
    """The columns of a file that a feature is made of: one, or `dim` of a dense feature."""

    feature: Input
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The valid rows of a chunk.

    Attributes:
        keys: int64 or strings, `[n]`.
        records: `[n]`.
        numbers: int64 `[n]` lines or rows of the file.
        removed: `[n]` whether a delta removes the key.
        bad: the other rows: the number of the row, and what is wrong in it.
    """

    keys: Int64 | list[str]
    records: Records
    numbers: Int64
    removed: Flags
    bad: Mapping[int, Sequence[str]]


@dataclass(slots=True)
class RowEncoder:
    """Encodes the rows of files.

    Attributes:
        sources: of the features of the table.
        key: the column of the key.
        key_type: of the key.
        vocabularies: of the features whose encoding has one.
        deleted: the column that says whether a delta removes the key.
        unknown_ids: how many ids were outside the vocabulary, by feature.
    """

    sources: Sequence[Source]
    key: str
    key_type: KeyType
    vocabularies: Vocabularies
    deleted: str | None = None
    unknown_ids: dict[str, int] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The columns of the file that are read."""
        names = [self.key, *(name for each in self.sources for name in each.columns)]
        return list(dict.fromkeys([*names, *([self.deleted] if self.deleted else [])]))

    def columns_in(self, file: TableFile) -> list[str]:
        """Return those that a file has, or JSON may have in later lines."""
        return [each for each in self.columns if file.kind == "json" or each in file.names]

    def defaults(self) -> Records:
        """Return the row of the defaults, `[1]`; zeros for a feature that has none."""
        record = np.zeros(1, record_dtype([each.feature for each in self.sources]))
        for feature in [each.feature for each in self.sources if each.feature.default is not None]:
            vocabulary = self.vocabularies.get(feature.name, NO_VOCABULARY)
            record[feature.name] = default_column(feature, 1, vocabulary, ValidationReport())
        return record

    def encode(self, file: TableFile, chunk: Chunk) -> EncodedRows:
        """Encode a chunk.

        An empty cell is the feature's default, or an empty list of ids. In CSV a list is JSON
        (`[1, 2]`), or has spaces, `,`, `;` or `|` between its elements. Whole numbers may be
        written as floats (`12.0`), except in JSON. A file that only removes keys may lack the
        columns of features.

        Raises:
            FileUnreadable: text is not UTF-8.
        """
        bad: dict[int, list[str]] = {number: [why] for number, why in chunk.broken}
        columns = {name: _array(each, file) for name, each in chunk.columns.items()}
        wrong = np.zeros(chunk.rows, np.bool_)
        keys, not_keys = self._keys(columns[self.key], file, chunk, bad)
        wrong |= not_keys
        removed = np.zeros(chunk.rows, np.bool_)
        if self.deleted is not None:  # of a row that is removed, only the key counts
            removed = _flags(columns[self.deleted])
        records = np.zeros(chunk.rows, record_dtype([each.feature for each in self.sources]))
        for source in self.sources:
            lacking = _lacking(source, file, chunk, bad, removed)
            wrong |= lacking
            if not columns.keys() >= {*source.columns}:
                continue
            arrays = [columns[name] for name in source.columns]
            is_key = source.columns == (self.key,)  # what is wrong with it is known
            ignored = removed | not_keys if is_key else removed | lacking
            column, not_read = self._column(source, arrays, file, chunk, bad, ignored)
            records[source.feature.name] = column
            wrong |= not_read
        good = ~wrong
        kept = (
            keys[good]
            if isinstance(keys, np.ndarray)
            else [key for key, is_good in zip(keys, good.tolist(), strict=True) if is_good]
        )
        return EncodedRows(kept, records[good], chunk.numbers[good], removed[good], bad)

    def _keys(
        self, array: Array, file: TableFile, chunk: Chunk, bad: dict[int, list[str]]
    ) -> tuple[Int64 | list[str], Flags]:
        """Return the keys, and which rows have none."""
        keys: Int64 | list[str]
        if self.key_type == "int64":
            keys, null, wrong = _integers(array, file)
            for row in np.flatnonzero(wrong).tolist() if file.kind == "json" else ():
                value = chunk.columns[self.key][row]
                if type(value) is int and -(2**63) <= value < 2**63:  # beside other types
                    keys[row], wrong[row] = value, False
            rule = "must be an integer that fits in int64"
        else:
            texts = _python(array)
            null = np.array([each is None for each in texts], np.bool_)
            wrong = np.array(
                [not isinstance(each, str) or len(each) > LONGEST_KEY for each in texts], np.bool_
            )
            rule = f"must be a string of at most {LONGEST_KEY} characters"
            keys = [each if isinstance(each, str) else "" for each in texts]
        for row in np.flatnonzero(wrong | null).tolist():
            why = "is empty, but it is the key" if null[row] else rule
            bad.setdefault(int(chunk.numbers[row]), []).append(f'column "{self.key}": {why}')
        return keys, wrong | null

    def _column(
        self,
        source: Source,
        arrays: list[Array],
        file: TableFile,
        chunk: Chunk,
        bad: dict[int, list[str]],
        ignored: Flags,
    ) -> tuple[Column, Flags]:
        """Return a feature's column, and which rows are wrong, apart from those to be ignored."""
        feature = source.feature
        vocabulary = self.vocabularies.get(feature.name, NO_VOCABULARY)
        report = ValidationReport()
        if any(isinstance(each, _Mixed) for each in arrays):
            null = np.stack([_null(each) for each in arrays]).all(axis=0)
            wrong = ~null
            column = np.zeros(column_shape(feature, chunk.rows), column_dtype(feature))
        else:
            column, null, wrong = _fast(feature, arrays, file, vocabulary, report)
        if (null & ~wrong).any() and not isinstance(feature, IdListInput):
            if feature.default is None:
                wrong |= null
            else:
                column[null] = default_column(feature, 1, vocabulary, ValidationReport())
        elif isinstance(feature, IdListInput) and feature.default is not None and null.any():
            column[null] = default_column(feature, 1, vocabulary, ValidationReport())
        wrong &= ~ignored
        rows = np.flatnonzero(wrong)
        if len(rows):
            values = [_cells(chunk.columns[name], rows) for name in source.columns]
            for at, row in enumerate(rows.tolist()):
                value = [each[at] for each in values] if len(arrays) > 1 else values[0][at]
                read, problems = _by_value(source, value, file, vocabulary, report)
                if problems:
                    bad.setdefault(int(chunk.numbers[row]), []).extend(problems)
                else:
                    column[row] = read[0]
                    wrong[row] = False
        for name, count in report.unknown_ids.items():
            self.unknown_ids[name] = self.unknown_ids.get(name, 0) + count
        return column, wrong


def _lacking(
    source: Source, file: TableFile, chunk: Chunk, bad: dict[int, list[str]], removed: Flags
) -> Flags:
    """Return which rows need a column that their file does not have: those that stay."""
    lacking = np.zeros(chunk.rows, np.bool_)
    for name in [each for each in source.columns if each not in file.names]:
        values = chunk.columns.get(name, [None] * chunk.rows)
        empty = np.array([each is None for each in values], np.bool_) & ~removed
        for row in np.flatnonzero(empty).tolist():
            why = f'column "{name}": is missing; only rows that remove their key may lack it'
            bad.setdefault(int(chunk.numbers[row]), []).append(why)
        lacking |= empty
    return lacking


def _is_integer(key: object, file: TableFile) -> bool:
    """Return whether a key is an integer; text only if it is written as integers are."""
    if file.is_text:
        return isinstance(key, str) and _CANONICAL.fullmatch(key) is not None
    return isinstance(key, int) and not isinstance(key, bool)


def key_type_in(file: TableFile, column: str) -> KeyType:
    """Return the type of a key that is not a feature; text shows it in its first rows.

    Raises:
        FileUnreadable: the file is damaged.
    """
    import pyarrow as pa

    if kind := file.types.get(column):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return "string" if _is_text(kind) else "int64"
    first = next(file.chunks([column]), None)
    keys = [] if first is None else _python(_array(first.columns[column], file))
    are_integers = all(_is_integer(each, file) for each in keys if each is not None)
    return "int64" if are_integers else "string"


def column_problem(source: Source, file: TableFile) -> str:
    """Return why columns of Parquet cannot be a feature; "" if they may. Other files have no types.

    Raises:
        KeyError: the file lacks a column.
    """
    import pyarrow as pa

    if file.kind != "parquet":
        return ""
    feature = source.feature
    wants_list = len(source.columns) == 1 and _is_list_feature(feature)
    for column in source.columns:
        kind = whole = file.types[column]
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        is_list = _is_list_type(kind)
        if pa.types.is_null(kind):
            continue
        if is_list:
            kind = kind.value_type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if isinstance(feature, DenseInput):
            fits = is_number or pa.types.is_decimal(kind) or pa.types.is_boolean(kind)
            needed = "numbers"
        elif feature.encoding.id_type is str:
            fits, needed = _is_text(kind), "strings"
        else:
            fits, needed = is_number, "integers"
        if not fits or is_list != wants_list:
            what = f"lists of {needed}" if wants_list else needed
            return (
                f'{file.path}: column "{column}" is {whole}, feature "{feature.name}" needs {what}'
            )
    return ""


def _by_value(
    source: Source, value: object, file: TableFile, vocabulary: Vocabulary, report: ValidationReport
) -> tuple[Column, list[str]]:
    """Read one value as a request would; return it, or what is wrong with it."""
    feature = source.feature
    if value is None:
        is_list = isinstance(feature, IdListInput) and feature.default is None
        value = [] if is_list else MISSING  # which is the default, or a problem
    elif file.kind != "json":
        value = _from_text(feature, value)
    problems = ValidationReport()
    read = column_by_value(feature, [value], Side({}, 1, "columns"), problems, vocabulary)
    for name, count in problems.unknown_ids.items():
        report.unknown_ids[name] = report.unknown_ids.get(name, 0) + count
    if problems.problems:
        found = [f"{_place(source, e.pointer)}: {e.detail}" for e in problems.problems]
        return read, found
    return read, []


def _place(source: Source, pointer: str) -> str:
    """Return the column of a problem, and the element of a list in it.

    The pointer is `/candidates/<feature>/0`, or that and an element.
    """
    *_, element = pointer.removeprefix(f"/candidates/{source.feature.name}/0").rpartition("/")
    if not element:
        return f'column "{source.columns[0]}"'
    if len(source.columns) > 1:
        return f'column "{source.columns[int(element)]}"'
    return f'column "{source.columns[0]}", element {int(element) + 1}'


def _from_text(feature: Input, value: object) -> object:
    """Return what a cell stands for, as a request would send it; unchanged if that is unclear."""
    if isinstance(value, list):
        return [_from_text_scalar(feature, each) for each in value]
    if isinstance(value, str) and _may_be_list(feature, value):
        found = _elements(value)
        return value if found is None else [_from_text_scalar(feature, each) for each in found]
    return _from_text_scalar(feature, value)


def _may_be_list(feature: Input, text: str) -> bool:
    if isinstance(feature, DenseInput):
        return feature.dim > 1 or text.lstrip().startswith("[")
    return isinstance(feature, IdListInput)


def _is_list_feature(feature: Input) -> bool:
    if isinstance(feature, DenseInput):
        return feature.dim > 1
    return isinstance(feature, IdListInput)


def _whole(text: str) -> int | None:
    """Return the whole number that text stands for; None if there is none.

    One with very many digits loses some: it is out of the range of every column either way.
    """
    found = _WHOLE.fullmatch(text.strip())
    if found is None:
        return None
    size = int(found[2].lstrip("0")[:_MOST_DIGITS] or "0")
    return -size if found[1] == "-" else size


def _from_text_scalar(feature: Input, value: object) -> object:
    if isinstance(feature, DenseInput):
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value
    if feature.encoding.id_type is str:
        return value
    if isinstance(value, str) and (number := _whole(value)) is not None:
        return number
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value


# Arrow to NumPy. Each returns the values, the empty cells, and the rows that it cannot read.


def _fast(
    feature: Input,
    arrays: list[Array],
    file: TableFile,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> tuple[Column, Flags, Flags]:
    match feature:
        case DenseInput():
            if len(arrays) > 1:
                return _side_by_side(arrays, file)
            if feature.dim == 1 and not _is_list_type(arrays[0].type):
                floats, null, wrong = _numbers(arrays[0], file)
                return _float32(floats[:, None], null, wrong)
            return _dense_lists(feature, arrays[0], file)
        case IdInput():
            rows, null, wrong = _ids(feature, arrays[0], file, vocabulary)
            return (
                _known(feature, rows, ~null & ~wrong, report),
                null,
                wrong | (_outside(feature, rows) & ~null & (feature.unknown == "reject")),
            )
        case IdListInput():
            return _id_lists(feature, arrays[0], file, vocabulary, report)


def _float32(floats: Floats, null: Flags, wrong: Flags) -> tuple[Column, Flags, Flags]:
    """Return float32 `[n, dim]`, checked."""
    with np.errstate(over="ignore", invalid="ignore"):
        column = floats.astype(np.float32)
    return column, null, wrong | (~np.isfinite(column).all(axis=1) & ~null)


def _side_by_side(arrays: list[Array], file: TableFile) -> tuple[Column, Flags, Flags]:
    read = [_numbers(each, file) for each in arrays]
    nulls = np.stack([null for _, null, _ in read], axis=1)  # [n, dim]
    wrong: Flags = np.logical_or.reduce([wrong for _, _, wrong in read])
    floats = np.stack([each for each, _, _ in read], axis=1)  # [n, dim]
    null: Flags = np.logical_and.reduce(nulls, axis=1)
    return _float32(floats, null, wrong | (nulls.any(axis=1) & ~null))


def _numbers(array: Array, file: TableFile) -> tuple[Floats, Flags, Flags]:
    """Return float64 `[n]`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    null = _null(array)
    kind = array.type
    if pa.types.is_null(kind):
        return np.zeros(len(array)), null, ~null
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if is_number or pa.types.is_boolean(kind) or (file.is_text and _is_text(kind)):
        try:
            trimmed = pc.utf8_trim_whitespace(array) if _is_text(kind) else array
            floats = pc.cast(trimmed, pa.float64())
            return (
                np.asarray(pc.fill_null(floats, 0.0).to_numpy(zero_copy_only=False)),
                null,
                (np.zeros(len(array), np.bool_)),
            )
        except pa.ArrowInvalid:
            pass
    return np.zeros(len(array)), null, ~null


def _integers(array: Array, file: TableFile) -> tuple[Int64, Flags, Flags]:
    """Return int64 `[n]`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    null = _null(array)
    if isinstance(array, _Mixed):
        return np.zeros(len(null), np.int64), null, ~null
    kind = array.type
    none = np.zeros(len(array), np.bool_)
    if pa.types.is_floating(kind) and file.kind != "json":
        floats, null, _ = _numbers(array, file)
        null = null | np.isnan(floats)  # pandas stores integers with empty cells as floats
        whole = (np.floor(floats) == floats) & (np.abs(floats) <= _EXACT)
        values = np.where(whole & ~null, floats, 0.0).astype(np.int64)
        return values, null, ~whole & ~null
    if pa.types.is_integer(kind) or (file.is_text and _is_text(kind)):
        try:
            trimmed = pc.utf8_trim_whitespace(array) if _is_text(kind) else array
            values = pc.fill_null(pc.cast(trimmed, pa.int64()), 0)
            return np.asarray(values.to_numpy(zero_copy_only=False)), null, none
        except pa.ArrowInvalid:
            pass
    values = np.zeros(len(array), np.int64)
    wrong = ~null
    if file.is_text:
        for row, text in enumerate(array.to_pylist()):
            number = None if text is None else _whole(text)
            if number is not None and -(2**63) <= number < 2**63:
                values[row], wrong[row] = number, False
    return values, null, wrong


def _ids(
    feature: IdInput | IdListInput, array: Array, file: TableFile, vocabulary: Vocabulary
) -> tuple[Int64, Flags, Flags]:
    """Return rows of the embedding table, known or not, int64 `[n]`."""
    import pyarrow as pa

    none = np.zeros(len(array), np.bool_)
    if feature.encoding.id_type is int:
        values, null, wrong = _integers(array, file)
        if isinstance(feature.encoding, Identity):
            return values, null, wrong
        distinct, index = np.unique(values, return_inverse=True)
        return rows_of(feature.encoding, distinct.tolist(), vocabulary)[index], null, wrong
    null = _null(array)
    assert not isinstance(feature.encoding, Identity)
    if not _is_text(array.type):
        return np.zeros(len(array), np.int64), null, ~null
    encoded = array.dictionary_encode()
    ids = encoded.dictionary.to_pylist()
    rows = np.append(rows_of(feature.encoding, ids, vocabulary), 0)  # the last is for empty cells
    at = encoded.indices.fill_null(len(ids)).cast(pa.int64())
    return rows[np.asarray(at.to_numpy(zero_copy_only=False))], null, none


def _outside(feature: IdInput | IdListInput, rows: Int64) -> Flags:
    outside: Flags = rows.view(np.uint64) >= feature.vocabulary_size  # a negative row is huge there
    return outside


def _known(
    feature: IdInput | IdListInput, rows: Int64, real: Flags, report: ValidationReport
) -> Int64:
    """Return rows of ids; an unknown id, where accepted, gets its row and is counted."""
    if feature.unknown == "reject":
        return rows
    outside = _outside(feature, rows) & real
    if count := int(np.count_nonzero(outside)):
        report.unknown_ids[feature.name] = report.unknown_ids.get(feature.name, 0) + count
        return np.where(outside, feature.unknown, rows)
    return rows


def _dense_lists(feature: DenseInput, array: Array, file: TableFile) -> tuple[Column, Flags, Flags]:
    flat, lengths, null, broken = _lists(array, file)
    floats, empty, wrong = _numbers(flat, file)
    owner = np.repeat(np.arange(len(array)), lengths)
    bad = broken | ((lengths != feature.dim) & ~null)
    column = np.zeros((len(array), feature.dim))
    fits = lengths == feature.dim
    column[fits] = floats[fits[owner]].reshape(-1, feature.dim)
    bad[owner[wrong | empty]] = True
    return _float32(column, null, bad)


def _id_lists(
    feature: IdListInput,
    array: Array,
    file: TableFile,
    vocabulary: Vocabulary,
    report: ValidationReport,
) -> tuple[Column, Flags, Flags]:
    flat, lengths, null, broken = _lists(array, file)
    rows, empty, wrong = _ids(feature, flat, file, vocabulary)
    owner = np.repeat(np.arange(len(array)), lengths)
    bad = broken | (lengths > feature.max_length)
    bad[owner[wrong | empty]] = True
    if feature.unknown == "reject":
        bad[owner[_outside(feature, rows)]] = True
    if feature.reserves_padding:
        bad[owner[rows == feature.padding]] = True
        if feature.unknown == feature.padding:
            bad[owner[_outside(feature, rows)]] = True
    good = ~bad[owner]
    rows = _known(feature, rows, good, report)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if feature.padding_side == "left":
        place += feature.max_length - lengths[owner]
    column = np.full(column_shape(feature, len(array)), feature.padding, column_dtype(feature))
    column[owner[good], place[good]] = rows[good]
    return column, null, bad


def _lists(array: Array, file: TableFile) -> tuple[Array, Int64, Flags, Flags]:
    """Return the elements of all lists, the length of each, empty cells, and what is not a list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    null = _null(array)
    if _is_list_type(array.type):
        lengths = pc.fill_null(pc.cast(pc.list_value_length(array), pa.int64()), 0)
        counts = np.asarray(lengths.to_numpy(zero_copy_only=False))
        return array.flatten(), counts, null, np.zeros(len(array), np.bool_)
    if not (file.is_text and _is_text(array.type)):
        return pa.array([], pa.int64()), np.zeros(len(array), np.int64), null, ~null
    found = [[] if each is None else _elements(each) for each in array.to_pylist()]
    broken = np.array([each is None for each in found], np.bool_)
    counts = np.array([0 if each is None else len(each) for each in found], np.int64)
    flat = [element for each in found if each is not None for element in each]
    return pa.array(flat, pa.string()), counts, null, broken


def _elements(text: str) -> list[str] | None:
    """Return the elements of a list in text; None if it is broken."""
    stripped = text.strip()
    if not stripped.startswith("["):
        return [each for each in _BETWEEN.split(stripped) if each]
    try:
        found = orjson.loads(stripped)
    except orjson.JSONDecodeError:
        return None
    return [each if isinstance(each, str) else orjson.dumps(each).decode() for each in found]


def _array(column: Array | list[Any], file: TableFile) -> Array:
    """Return a column as an Arrow array, not dictionary-encoded; JSON of several types as a list.

    Raises:
        FileUnreadable: text is not UTF-8.
    """
    import pyarrow as pa

    if isinstance(column, list):
        try:
            return pa.array(column)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return _Mixed(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if file.kind == "parquet" and _is_text(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise FileUnreadable(f"{file.path}: {str(error).splitlines()[0]}") from error
    return column


class _Mixed:
    """A column of JSON values of several types: every value is read by itself."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def to_pylist(self) -> list[Any]:
        """Return the values."""
        return self._values


def _python(array: Array) -> list[Any]:
    """Return the values of an array as Python values; None if empty."""
    values: list[Any] = array.to_pylist()
    return values


def _cells(column: Array | list[Any], rows: Int64) -> list[Any]:
    """Return some cells of a column as the file has them; None if empty."""
    if isinstance(column, list):
        return [column[row] for row in rows.tolist()]
    chosen: list[Any] = column.take(rows).to_pylist()
    return chosen


def _null(array: Array) -> Flags:
    """Return which cells are empty."""
    if isinstance(array, _Mixed):
        return np.array([each is None for each in array.to_pylist()], np.bool_)
    if array.null_count == 0:
        return np.zeros(len(array), np.bool_)
    return np.array(array.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _flags(array: Array) -> Flags:
    """Return which cells are true: `true`, `yes`, `1`, …; an empty one is not."""
    return np.array([str(each).strip().lower() in TRUE_WORDS for each in _python(array)], np.bool_)


def _is_text(kind: object) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_type(kind: object) -> bool:
    import pyarrow as pa

    is_kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in is_kinds)
