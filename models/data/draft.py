"""Draft the schema of a table from its first rows, for a person to edit.

A column becomes a label if its name is a usual one for labels and it has two values; the group if
its name is a usual one and its values repeat; else an id, a list or a number by its values. Dates
and row numbers are no features; they are named in a comment. A text file whose first line has
numbers or the same field twice has no header line.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.data import arrow_columns
from models.data.files import TableFile, first_fields, is_text_file, open_file
from models.data.schema import DataInvalid

ROWS = 10_000
EXAMPLES = 3
FEW_VALUES = 50  # integers with fewer distinct values are drafted as ids
GROUP_NAMES = {"request_id", "session_id", "query_id", "impression_id", "group_id", "request"}
USER_NAMES = ("user", "member", "customer", "visitor")
LABEL_NAMES = re.compile(
    r"(^|_)(label|target|click(ed)?|like[ds]?|buy|bought|purchased?|convert(ed)?|conversion|"
    r"share[ds]?|follow(ed)?|y)(_|$)",
    re.IGNORECASE,
)
_SEPARATORS = " |,;"
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_COMMA_NUMBER = re.compile(r"\s*[+-]?\d+,\d+\s*")
_LEADING_ZERO = re.compile(r"0\d")


@dataclass(frozen=True, slots=True)
class _Table:
    """The first rows of a table, and what was found out about it as a whole."""

    rows: pa.RecordBatch
    header: tuple[str, ...]
    decimal: str

    def column(self, name: str) -> pa.Array:
        """A column's values."""
        return self.rows[name]

    def texts(self, name: str) -> list[str]:
        """The values of a text column that are not missing; of another column, none."""
        array = self.column(name)
        if not arrow_columns.is_text(array.type):
            return []
        texts = [str(value).strip() for value in array.to_pylist() if value is not None]
        return [text for text in texts if text.lower() not in arrow_columns.MISSING_WORDS]


def draft(path: Path) -> str:
    """Return a schema in TOML with one entry per column.

    Raises:
        DataInvalid: the file is not a table, or it has no rows.
    """
    table = _read(path)
    names = table.rows.column_names
    group = next((name for name in names if name.lower() in GROUP_NAMES), None)
    labels = [name for name in names if name != group and _is_label(table, name)]
    if table.header and not labels:
        labels = [name for name in names if _is_binary(table, name)][:1]
    lines = [
        f"# Drafted from the first {table.rows.num_rows:,} rows of {path.name}: check every entry.",
        "# All keys: models/data/schema.py.",
        "",
        f"files = [{_text(path.name)}]",
    ]
    if table.header:
        lines.append(f"header = [{', '.join(map(_text, names))}]   # the file has no header line")
    if table.decimal != ".":
        lines.append(f"decimal = {_text(table.decimal)}")
    lines += [
        f"group = {_text(group)}" if group else '# group = "…"   # default: every row is a request',
        "",
        "[split]",
        'by = "hash"          # or "column", or "file"',
        "validation = 0.1",
        "test = 0.1",
    ]
    for name in labels:
        lines += ["", "[[labels]]", *_entry(table, name, 'kind = "binary"')]
    if not labels:
        lines += ["", "# No label was found. Add one:", "# [[labels]]", '# name = "…"']
        lines += ['# kind = "binary"   # or duration, regression']
    for name in names:
        if name not in (group, *labels):
            lines += ["", *_feature(table, name)]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> _Table:
    header: tuple[str, ...] = ()
    delimiter = None
    if is_text_file(path) and path.exists():
        delimiter, fields = first_fields(path)
        if len(set(fields)) < len(fields) or any(map(_NUMBER.fullmatch, fields)):
            header = tuple(f"column_{place}" for place in range(1, len(fields) + 1))
    rows = _first_rows(open_file(path, header=header))
    table = _Table(rows, header, ".")
    if delimiter in (None, ",") or not any(
        _is_comma_number(table.texts(name)) for name in rows.column_names
    ):
        return table
    return _Table(rows, header, ",")


def _is_comma_number(texts: Sequence[str]) -> bool:
    """Whether values are numbers with a decimal comma; some may be whole."""
    fractions = [text for text in texts if _COMMA_NUMBER.fullmatch(text)]
    return len(fractions) * 2 > len(texts) and all(
        _COMMA_NUMBER.fullmatch(text) or text.lstrip("+-").isdigit() for text in texts
    )


def _first_rows(file: TableFile) -> pa.RecordBatch:
    for unit in range(file.units):
        for chunk in file.chunks(unit, list(file.kinds)):
            if chunk.table.num_rows:
                return chunk.table.slice(0, ROWS)
    raise DataInvalid(f"{file.path}: has no rows")


def _is_label(table: _Table, name: str) -> bool:
    return LABEL_NAMES.search(_identifier(name)) is not None and _is_binary(table, name)


def _is_binary(table: _Table, name: str) -> bool:
    array = table.column(name)
    if arrow_columns.element_type(array.type) is not None:
        return False
    values, wrong = arrow_columns.numbers(array)
    distinct = set(np.unique(values[~np.isnan(values)]).tolist())
    return not wrong.any() and distinct in ({0.0, 1.0}, {-1.0, 1.0})


def _feature(table: _Table, name: str) -> list[str]:
    """The entry of a column, or a comment on why it has none."""
    array = table.column(name)
    if arrow_columns.is_date(array.type) or _are_dates(table.texts(name)):
        example = next((value for value in array.to_pylist() if value is not None), "")
        return [
            f"# {_text(name)} has dates, such as {example}: make hour, weekday or days since of it."
        ]
    if _numbers_rows(table, name):
        return [f"# {_text(name)} numbers the rows."]
    side = "user" if name.lower().startswith(USER_NAMES) else "candidate"
    where = f'side = "{side}"   # user | candidate'
    if arrow_columns.element_type(array.type) is not None:
        return ["[[features]]", *_list(table, name, where)]
    separator = _separator(table.texts(name))
    if separator is not None:
        return ["[[features]]", *_text_list(table, name, where, separator)]
    if _is_id(table, name):
        return ["[[features]]", *_entry(table, name, 'kind = "id"', where, _ids(table, name))]
    return ["[[features]]", *_entry(table, name, 'kind = "dense"', where)]


def _are_dates(texts: Sequence[str]) -> bool:
    return bool(texts) and all(map(arrow_columns.looks_like_date, texts))


def _numbers_rows(table: _Table, name: str) -> bool:
    """Whether a column is the index that pandas writes."""
    if name and not name.lower().startswith(("unnamed", "index", "__index")):
        return False
    values, null, wrong = _integers(table, name)
    return not (null | wrong).any() and bool((np.diff(values) == 1).all())


def _integers(
    table: _Table, name: str
) -> tuple[arrow_columns.Integers, arrow_columns.Flags, arrow_columns.Flags]:
    array = table.column(name)
    if not arrow_columns.is_text(array.type) and not arrow_columns.may_be_integer(array.type):
        none = np.zeros(len(array), np.bool_)
        return none.astype(np.int64), none, ~none
    return arrow_columns.integers(array)


def _is_id(table: _Table, name: str) -> bool:
    array = table.column(name)
    values, not_number = arrow_columns.numbers(array, table.decimal)
    if not_number.any():
        return True
    _, null, not_integer = _integers(table, name)
    missing = null | np.isnan(values)
    distinct = len(np.unique(values[~np.isnan(values)]))
    is_whole = not (not_integer & ~missing).any()
    return is_whole and (name.lower().endswith("id") or distinct < FEW_VALUES)


def _ids(table: _Table, name: str) -> str:
    """The encoding of ids: integers, also those that pandas turned into floats, or strings."""
    _, null, wrong = _integers(table, name)
    values, not_number = arrow_columns.numbers(table.column(name))
    missing = null | (np.isnan(values) & ~not_number)
    is_whole = not (wrong & ~missing).any()
    zeros = any(_LEADING_ZERO.match(text) for text in table.texts(name))
    return _encoding(name, "int64" if is_whole and not zeros else "string")


def _list(table: _Table, name: str, where: str) -> list[str]:
    """A list column: ids, or a vector of numbers if they are not whole."""
    elements, lengths = arrow_columns.lists(table.column(name), " ")
    if pa.types.is_floating(elements.type):
        values, _ = arrow_columns.numbers(elements)
        known = values[~np.isnan(values)]
        if (known != np.floor(known)).any():
            return _entry(table, name, 'kind = "dense"', where, f"dim = {int(lengths.max())}")
    ids = "int64" if arrow_columns.may_be_integer(elements.type) else "string"
    length = f"max_length = {max(1, int(lengths.max()))}"
    return _entry(table, name, 'kind = "id_list"', where, length, _encoding(name, ids))


def _separator(texts: Sequence[str]) -> str | None:
    """The separator of lists in text; None if the texts are no lists.

    Text with spaces may be a name: it is a list only if all parts are numbers, or JSON.
    """
    filled = [text for text in texts if text]
    if filled and all(text.startswith("[") for text in filled):
        return " "
    for separator in _SEPARATORS:
        parts = [text.split(separator) for text in filled]
        if sum(len(split) > 1 for split in parts) * 4 < len(filled) or not parts:
            continue
        numeric = all(_NUMBER.fullmatch(part) for split in parts for part in split if part)
        if numeric and separator != ",":
            return separator
        if separator in "|;" and all(part.strip() for split in parts for part in split):
            return separator
    return None


def _text_list(table: _Table, name: str, where: str, separator: str) -> list[str]:
    elements, lengths = arrow_columns.lists(table.column(name), separator)
    _, _, wrong = arrow_columns.integers(elements)
    ids = "string" if wrong.any() else "int64"
    keys = [where, f"max_length = {max(1, int(lengths.max()))}", _encoding(name, ids)]
    if separator != " ":
        keys.append(f"separator = {_text(separator)}")
    return _entry(table, name, 'kind = "id_list"', *keys)


def _encoding(name: str, ids: str) -> str:
    file = _text(f"{_identifier(name)}.jsonl")
    return f'encoding = {{ kind = "vocabulary", ids = "{ids}", file = {file} }}'


def _entry(table: _Table, column: str, *keys: str) -> list[str]:
    """The lines of one table, with the first different values as a comment."""
    values = table.column(column).to_pylist()
    seen: dict[str, None] = dict.fromkeys(str(value) for value in values if value is not None)
    examples = ", ".join(list(seen)[:EXAMPLES]).replace("\n", " ")[:60]
    name = _identifier(column)
    lines = [f"name = {_text(name)}   # {examples}", *keys]
    is_dense = 'kind = "dense"' in keys
    if name != column:
        lines.append(f"columns = [{_text(column)}]" if is_dense else f"column = {_text(column)}")
    return lines


def _identifier(column: str) -> str:
    """A feature name for a column: letters, digits, `_`, `.` and `-`."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", column).strip("_.-")[:64]
    return name or "column"


def _text(value: str) -> str:
    """A TOML string."""
    return json.dumps(value, ensure_ascii=False)  # every JSON string is a TOML string
