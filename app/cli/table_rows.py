"""Rows of a file as the records of a table, with the rules and messages of a request.

`table_columns.py` converts whole columns. A value that it cannot read is read again by the encoder
of requests that reads value by value (`app.protocol.features`), which says what is wrong with it or
returns what it stands for. A file may say the same in other forms than a request: see
`RowEncoder.encode`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.artifacts.columns import Column, column_dtype, column_shape
from app.artifacts.encoding import NO_VOCABULARY, Vocabularies, Vocabulary
from app.artifacts.inputs import DenseInput, IdListInput, Input
from app.artifacts.tables.description import KeyType, record_dtype
from app.artifacts.tables.keys import LONGEST_KEY, Int64
from app.artifacts.tables.segment import Records
from app.cli.table_columns import (
    EXACT,
    Flags,
    Mixed,
    empty_cells,
    is_list_type,
    is_text,
    list_elements,
    read_booleans,
    read_column,
    read_integers,
    to_array,
    values_of,
    whole_number,
)
from app.cli.table_files import Array, Chunk, TableFile
from app.protocol.features import column_by_value, default_column
from app.protocol.validation import MISSING, Side, ValidationReport

_BOOLEAN_RULE = "must be true or false, t, f, yes, no, y, n, 1 or 0; an empty cell is false"
_CANONICAL = re.compile(r"0|-?[1-9][0-9]{0,18}")


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


class _Problems:
    """What is wrong in the rows of a chunk.

    Attributes:
        by_number: the problems of each bad row, by its number in the file.
    """

    def __init__(self, chunk: Chunk) -> None:
        self.by_number: dict[int, list[str]] = {number: [why] for number, why in chunk.broken}
        self._numbers = chunk.numbers

    def add(self, row: int, *problems: str) -> None:
        """Add problems of a row; `row` counts from 0 in the chunk."""
        self.by_number.setdefault(int(self._numbers[row]), []).extend(problems)


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
        names = [self.key, *(name for source in self.sources for name in source.columns)]
        return list(dict.fromkeys([*names, *([self.deleted] if self.deleted else [])]))

    def columns_in(self, file: TableFile) -> list[str]:
        """Return those that a file has, or JSON may have in later lines."""
        return [name for name in self.columns if file.kind == "json" or name in file.names]

    def defaults(self) -> Records:
        """Return the row of the defaults, `[1]`; zeros for a feature that has none."""
        record = self._records(1)
        for source in self.sources:
            if source.feature.default is not None:
                record[source.feature.name] = self._default(source.feature)
        return record

    def _records(self, rows: int) -> Records:
        return np.zeros(rows, record_dtype([source.feature for source in self.sources]))

    def _default(self, feature: Input) -> Column:
        vocabulary = self.vocabularies.get(feature.name, NO_VOCABULARY)
        return default_column(feature, 1, vocabulary, ValidationReport())

    def encode(self, file: TableFile, chunk: Chunk) -> EncodedRows:
        """Encode a chunk.

        An empty cell is the feature's default, or an empty list of ids. In CSV a list is JSON
        (`[1, 2]`), or has spaces, `,`, `;` or `|` between its elements. Whole numbers may be
        written as floats (`12.0`), except in JSON. A file that only removes keys may lack the
        columns of features.

        Raises:
            FileUnreadable: text is not UTF-8.
        """
        problems = _Problems(chunk)
        arrays = {name: to_array(column, file) for name, column in chunk.columns.items()}
        keys, not_keys = self._keys(arrays[self.key], file, chunk, problems)
        wrong = not_keys.copy()
        removed = np.zeros(chunk.rows, np.bool_)
        # Of a row that is removed, or may be, only the key counts.
        if self.deleted is not None:
            removed, unclear = read_booleans(arrays[self.deleted])
            for row in np.flatnonzero(unclear).tolist():
                problems.add(row, f'column "{self.deleted}": {_BOOLEAN_RULE}')
            wrong |= unclear
            removed |= unclear
        records = self._records(chunk.rows)
        for source in self.sources:
            lacking = _lacking(source, file, chunk, removed, problems)
            wrong |= lacking
            if not arrays.keys() >= {*source.columns}:
                continue
            is_key = source.columns == (self.key,)  # what is wrong with it is known
            ignored = removed | not_keys if is_key else removed | lacking
            read = [arrays[name] for name in source.columns]
            column, not_read = self._column(source, read, file, chunk, ignored, problems)
            records[source.feature.name] = column
            wrong |= not_read
        good = ~wrong
        kept = (
            keys[good]
            if isinstance(keys, np.ndarray)
            else [key for key, is_good in zip(keys, good.tolist(), strict=True) if is_good]
        )
        bad = problems.by_number
        return EncodedRows(kept, records[good], chunk.numbers[good], removed[good], bad)

    def _keys(
        self, array: Array, file: TableFile, chunk: Chunk, problems: _Problems
    ) -> tuple[Int64 | list[str], Flags]:
        """Return the keys, and which rows have none."""
        keys: Int64 | list[str]
        inexact: dict[int, str] = {}
        if self.key_type == "int64":
            keys, empty, wrong = read_integers(array, file)
            if file.kind == "parquet" and _is_float(array):
                wrong |= ~empty & (np.abs(keys) > _exact_up_to(array))
            rows = np.flatnonzero(wrong & (not file.is_text))
            cells = _cells(chunk.columns[self.key], rows)
            for row, value in zip(rows.tolist(), cells, strict=True):
                if type(value) is int and -(2**63) <= value < 2**63:  # beside other values
                    keys[row], wrong[row] = value, False
                elif file.kind == "parquet" and _is_inexact(value, _exact_up_to(array)):
                    inexact[row] = _inexact_rule(_exact_up_to(array))
            rule = "must be an integer that fits in int64"
        else:
            values = values_of(array)
            empty = empty_cells(array)
            is_key = [isinstance(value, str) and len(value) <= LONGEST_KEY for value in values]
            wrong = ~np.array(is_key, np.bool_)
            keys = [value if isinstance(value, str) else "" for value in values]
            rule = f"must be a string of at most {LONGEST_KEY} characters"
        for row in np.flatnonzero(wrong | empty).tolist():
            why = "is empty, but it is the key" if empty[row] else inexact.get(row, rule)
            problems.add(row, f'column "{self.key}": {why}')
        return keys, wrong | empty

    def _column(
        self,
        source: Source,
        arrays: list[Array],
        file: TableFile,
        chunk: Chunk,
        ignored: Flags,
        problems: _Problems,
    ) -> tuple[Column, Flags]:
        """Return a feature's column, and which rows are wrong, apart from those to be ignored."""
        feature = source.feature
        vocabulary = self.vocabularies.get(feature.name, NO_VOCABULARY)
        report = ValidationReport()
        if any(isinstance(array, Mixed) for array in arrays):
            empty = np.stack([empty_cells(array) for array in arrays]).all(axis=0)
            wrong = ~empty
            column = np.zeros(column_shape(feature, chunk.rows), column_dtype(feature))
        else:
            column, empty, wrong = read_column(feature, arrays, file, vocabulary, report)
        if empty.any():
            if feature.default is not None:
                column[empty] = self._default(feature)
            elif not isinstance(feature, IdListInput):  # an empty list has been read
                wrong |= empty
        wrong &= ~ignored
        rows = np.flatnonzero(wrong)
        values = _values(source, chunk, rows) if len(rows) else ()
        for row, value in zip(rows.tolist(), values, strict=True):
            read, why = _by_value(source, value, file, vocabulary, report)
            if why:
                problems.add(row, *why)
            else:
                column[row] = read[0]
                wrong[row] = False
        _count(report.unknown_ids, self.unknown_ids)
        return column, wrong


def _count(unknown_ids: Mapping[str, int], total: dict[str, int]) -> None:
    """Add counts to a total."""
    for name, count in unknown_ids.items():
        total[name] = total.get(name, 0) + count


def _lacking(
    source: Source, file: TableFile, chunk: Chunk, removed: Flags, problems: _Problems
) -> Flags:
    """Return which rows need a column that their file does not have: those that stay."""
    lacking = np.zeros(chunk.rows, np.bool_)
    for name in source.columns:
        if name in file.names:
            continue
        values = chunk.columns.get(name, [None] * chunk.rows)
        empty = np.array([value is None for value in values], np.bool_) & ~removed
        why = f'column "{name}": is missing; only rows that remove their key may lack it'
        for row in np.flatnonzero(empty).tolist():
            problems.add(row, why)
        lacking |= empty
    return lacking


def _values(source: Source, chunk: Chunk, rows: Int64) -> Sequence[object]:
    """Return a feature's values in some rows as the file has them: lists, if it has columns."""
    cells = [_cells(chunk.columns[name], rows) for name in source.columns]
    return cells[0] if len(cells) == 1 else [list(row) for row in zip(*cells, strict=True)]


def _cells(column: Array | list[Any], rows: Int64) -> list[Any]:
    """Return some cells of a column as the file has them; None if empty."""
    if isinstance(column, list):
        return [column[row] for row in rows.tolist()]
    chosen: list[Any] = column.take(rows).to_pylist()
    return chosen


def _by_value(
    source: Source, value: object, file: TableFile, vocabulary: Vocabulary, report: ValidationReport
) -> tuple[Column, list[str]]:
    """Read one value as a request would; return it, and what is wrong with it."""
    feature = source.feature
    if value is None:
        is_list = isinstance(feature, IdListInput) and feature.default is None
        value = [] if is_list else MISSING  # which is the default, or a problem
    elif file.kind != "json":
        value = _from_text(feature, value)
        elements = value if isinstance(value, list) else [value]
        if _has_integer_ids(feature) and any(_is_inexact(element) for element in elements):
            return np.zeros(0), [f'column "{source.columns[0]}": {_inexact_rule()}']
    of_value = ValidationReport()
    read = column_by_value(feature, [value], Side({}, 1, "columns"), of_value, vocabulary)
    _count(of_value.unknown_ids, report.unknown_ids)
    return read, [f"{_where(source, e.pointer)}: {e.detail}" for e in of_value.problems]


def _where(source: Source, pointer: str) -> str:
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
        return [_from_scalar(feature, element) for element in value]
    if isinstance(value, str) and _may_be_list(feature, value):
        elements = list_elements(value)
        if elements is None:
            return value
        return [_from_scalar(feature, element) for element in elements]
    return _from_scalar(feature, value)


def _has_integer_ids(feature: Input) -> bool:
    return not isinstance(feature, DenseInput) and feature.encoding.id_type is int


def _is_inexact(value: object, limit: float = EXACT) -> bool:
    """Return whether a float is an integer that fits in int64, but may have been another one."""
    return isinstance(value, float) and value.is_integer() and limit < abs(value) < 2.0**63


def _inexact_rule(limit: float = EXACT) -> str:
    power = int(limit).bit_length() - 1
    return f"is a float beyond 2^{power}, where floats are not exact: store it as an integer"


def _is_float(array: Array) -> bool:
    import pyarrow as pa

    return not isinstance(array, Mixed) and bool(pa.types.is_floating(array.type))


def _exact_up_to(array: Array) -> float:
    """Return up to where floats of a column's type hold every integer."""
    import pyarrow as pa

    if isinstance(array, Mixed):
        return EXACT
    if pa.types.is_float16(array.type):
        return 2.0**11
    return 2.0**24 if pa.types.is_float32(array.type) else EXACT


def _may_be_list(feature: Input, cell: str) -> bool:
    return _is_list(feature) or (isinstance(feature, DenseInput) and cell.lstrip().startswith("["))


def _is_list(feature: Input) -> bool:
    if isinstance(feature, DenseInput):
        return feature.dim > 1
    return isinstance(feature, IdListInput)


def _from_scalar(feature: Input, value: object) -> object:
    if isinstance(feature, DenseInput):
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value
    if feature.encoding.id_type is str:
        return value
    if isinstance(value, str) and (number := whole_number(value)) is not None:
        return number
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        return int(value)
    return value


# What is known of a file before its rows are read.


def key_type_in(file: TableFile, column: str) -> KeyType:
    """Return the type of a key that is not a feature; text shows it in its first rows.

    Raises:
        FileUnreadable: the file is damaged.
    """
    if column in file.types:
        return "string" if is_text(_value_type(file, column)) else "int64"
    first = next(file.chunks([column]), None)
    keys = [] if first is None else values_of(to_array(first.columns[column], file))
    are_integers = all(_is_integer(key, file) for key in keys if key is not None)
    return "int64" if are_integers else "string"


def _is_integer(key: object, file: TableFile) -> bool:
    """Return whether a key is an integer; text only if it is written as integers are."""
    if file.is_text:
        return isinstance(key, str) and _CANONICAL.fullmatch(key) is not None
    return isinstance(key, int) and not isinstance(key, bool)


def key_column_problem(file: TableFile, column: str, needed: KeyType | None) -> str:
    """Return why a column of Parquet cannot be a key that is not a feature; "" if it may.

    Args:
        file: that has the column.
        column: of the key.
        needed: the type of the key; None if either will do.
    """
    import pyarrow as pa

    if file.kind != "parquet":
        return ""
    arrow_type = _value_type(file, column)
    is_number = pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type)
    fits = {"int64": is_number, "string": is_text(arrow_type)}
    if pa.types.is_null(arrow_type) or (any(fits.values()) if needed is None else fits[needed]):
        return ""
    what = {"int64": "integers", "string": "strings", None: "integers or strings"}[needed]
    return f'{file.path}: column "{column}" is {file.types[column]}, the key needs {what}'


def column_problem(source: Source, file: TableFile) -> str:
    """Return why columns of Parquet cannot be a feature; "" if they may. Other files have no types.

    Raises:
        KeyError: the file lacks a column.
    """
    import pyarrow as pa

    if file.kind != "parquet":
        return ""
    feature = source.feature
    wants_list = len(source.columns) == 1 and _is_list(feature)
    for column in source.columns:
        arrow_type = _value_type(file, column)
        if pa.types.is_null(arrow_type):
            continue
        is_list = is_list_type(arrow_type)
        fits, needed = _fits(feature, arrow_type.value_type if is_list else arrow_type)
        if not fits or is_list != wants_list:
            what = f"lists of {needed}" if wants_list else needed
            return (
                f'{file.path}: column "{column}" is {file.types[column]}, '
                f'feature "{feature.name}" needs {what}'
            )
    return ""


def _value_type(file: TableFile, column: str) -> Any:  # noqa: ANN401  (pyarrow has no types)
    """Return the Arrow type of a column's values, whether they are dictionary-encoded or not."""
    import pyarrow as pa

    arrow_type = file.types[column]
    return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type


def _fits(feature: Input, arrow_type: object) -> tuple[bool, str]:
    """Return whether values of a type may be those of a feature, and what it needs."""
    import pyarrow as pa

    is_number = pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type)
    if isinstance(feature, DenseInput):
        is_other = pa.types.is_decimal(arrow_type) or pa.types.is_boolean(arrow_type)
        return is_number or is_other, "numbers"
    if feature.encoding.id_type is str:
        return is_text(arrow_type), "strings"
    return is_number, "integers"
