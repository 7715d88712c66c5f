"""Draft the schema of a table from its first rows, for a person to edit.

A column becomes a label if its name is a usual one for labels and it has two values; the group if
its name is a usual one and its values repeat; else an id, an id list or a number by its values.
"""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.data import arrow_columns
from models.data.files import TableFile, open_file
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


def draft(path: Path) -> str:
    """Return a schema in TOML with one entry per column.

    Raises:
        DataInvalid: the file is not a table, or it has no rows.
    """
    file = open_file(path)
    table = _first_rows(file)
    group = next((name for name in table.column_names if name.lower() in GROUP_NAMES), None)
    labels = [name for name in table.column_names if name != group and _is_label(table, name)]
    lines = [
        f"# Drafted from the first {table.num_rows:,} rows of {path.name}: check every entry.",
        "# All keys: models/data/schema.py.",
        "",
        f"files = [{_text(path.name)}]",
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
    for name in table.column_names:
        if name not in (group, *labels):
            lines += ["", "[[features]]", *_feature(table, name)]
    return "\n".join(lines) + "\n"


def _first_rows(file: TableFile) -> pa.RecordBatch:
    for unit in range(file.units):
        for chunk in file.chunks(unit, list(file.kinds)):
            if chunk.table.num_rows:
                return chunk.table.slice(0, ROWS)
    raise DataInvalid(f"{file.path}: has no rows")


def _is_label(table: pa.RecordBatch, name: str) -> bool:
    if LABEL_NAMES.search(name) is None or arrow_columns.element_type(table[name].type) is not None:
        return False
    values, wrong = arrow_columns.numbers(table[name])
    found = set(np.unique(values[~np.isnan(values)]).tolist())
    return not wrong.any() and found in ({0.0, 1.0}, {-1.0, 1.0})


def _feature(table: pa.RecordBatch, name: str) -> list[str]:
    kind = table[name].type
    side = "user" if name.lower().startswith(USER_NAMES) else "candidate"
    where = f'side = "{side}"   # user | candidate'
    if arrow_columns.element_type(kind) is not None:
        ids = _id_type(arrow_columns.lists(table[name], " ")[0])
        lengths = arrow_columns.lists(table[name], " ")[1]
        length = f"max_length = {max(1, int(lengths.max()))}"
        return _entry(table, name, 'kind = "id_list"', where, length, _encoding(name, ids))
    _, missing, not_integer = arrow_columns.integers(table[name])
    values, not_number = arrow_columns.numbers(table[name])
    distinct = len(np.unique(values[~np.isnan(values)]))
    is_id = name.lower().endswith("id") or distinct < FEW_VALUES
    if not_number.any() or (not (not_integer & ~missing).any() and is_id):
        return _entry(table, name, 'kind = "id"', where, _encoding(name, _id_type(table[name])))
    return _entry(table, name, 'kind = "dense"', where)


def _id_type(array: pa.Array) -> str:
    if arrow_columns.is_text(array.type):
        return "string"
    return "int64" if arrow_columns.may_be_integer(array.type) else "string"


def _encoding(name: str, ids: str) -> str:
    file = _text(f"{_identifier(name)}.jsonl")
    return f'encoding = {{ kind = "vocabulary", ids = "{ids}", file = {file} }}'


def _entry(table: pa.RecordBatch, column: str, *keys: str) -> list[str]:
    """The lines of one table, with the first different values as a comment."""
    seen: dict[str, None] = dict.fromkeys(str(each) for each in table[column][:ROWS].to_pylist())
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
