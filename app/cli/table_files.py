"""Read the rows of item and user tables from Parquet, CSV or JSON lines, in chunks with places.

A chunk is one read, so a file may be larger than memory. A row of a text file is one line: a line
end inside quotes is not supported. Columns are not interpreted here: those of CSV are all text.
Needs pyarrow, which is in the extra `data`.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import orjson

from app.errors import TuningError

READ_ROWS = 65_536  # of a Parquet file at a time
READ_BYTES = 16 * 2**20  # of a text file at a time
DELIMITERS = ",\t;|"
_FIRST_LINES = 1000  # of JSON, in which the names of columns are looked for
_CSV = (".csv", ".tsv")
_JSON = (".jsonl", ".ndjson")
_ENDINGS = ".parquet, .csv, .tsv, .jsonl, .ndjson; text may end in .gz too"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Array = Any
"""A pyarrow Array; pyarrow has no types."""


class FileUnreadable(TuningError):
    """A file is not a table; the message is one line."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Adjacent rows of one file.

    Attributes:
        columns: an Arrow array per column; of JSON lines, a list of values.
        rows: how many rows.
        numbers: int64 `[rows]` the line or the row in the file, from 1.
        broken: lines that are not rows, and why; they are in no column.
        read: how much of the file has been read, in the units of `TableFile.size`.
    """

    columns: Mapping[str, Array]
    rows: int
    numbers: npt.NDArray[np.int64]
    broken: Sequence[tuple[int, str]]
    read: int


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file that can be read as a table.

    Attributes:
        path: of the file.
        kind: what it is.
        names: of the columns; of JSON lines, those of its first thousand lines.
        types: the Arrow type of each column of Parquet; empty for the others.
        size: how much there is to read: rows of Parquet, bytes of text.
        delimiter: of CSV.
    """

    path: Path
    kind: str
    names: Sequence[str]
    size: int
    types: Mapping[str, Any] = field(default_factory=dict)
    delimiter: str = ","

    @property
    def is_text(self) -> bool:
        """Whether all values are text, as in CSV."""
        return self.kind == "csv"

    def place(self, number: int) -> str:
        """Return where a row is, for messages."""
        return f"{self.path}, {'row' if self.kind == 'parquet' else 'line'} {number}"

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the rows in file order.

        Raises:
            FileUnreadable: the file is damaged.
        """
        read: Callable[[TableFile, Sequence[str]], Iterator[Chunk]]
        read = {"parquet": _parquet, "csv": _csv, "json": _json}[self.kind]
        with _readable(self.path):
            yield from read(self, columns)


def open_file(path: Path) -> TableFile:
    """Read the columns of a file.

    Raises:
        FileUnreadable: it is not a table, or pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise FileUnreadable(
            "reading tables needs pyarrow: pip install -e '.[data]'; an image has it if data is "
            "among the EXTRAS that it is built with"
        ) from None
    ending = Path(path.name.removesuffix(".gz")).suffix
    with _readable(path):
        if path.stat().st_size == 0:
            raise FileUnreadable(f"{path}: is empty")
        if ending in _CSV:
            file = _open_csv(path)
        elif ending in _JSON:
            file = _open_json(path)
        elif path.suffix == ".parquet":
            file = _open_parquet(path)
        else:
            raise FileUnreadable(f"{path}: unknown kind of file; its name must end in {_ENDINGS}")
    if twice := sorted({name for name in file.names if file.names.count(name) > 1}):
        raise FileUnreadable(f'{path}: two columns have the name "{twice[0]}"')
    return file


def has_no_line(path: Path) -> bool:
    """Return whether a file is JSON lines and all of its lines are blank, or it has none.

    Raises:
        FileUnreadable: it cannot be read.
    """
    if Path(path.name.removesuffix(".gz")).suffix not in _JSON:
        return False
    with _readable(path), _Lines(path) as lines:
        return not any(content for content, _ in lines.blocks())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into `FileUnreadable`, which is one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FileUnreadable(f"{path}: cannot be read: {reason.splitlines()[0]}") from error


def _open_parquet(path: Path) -> TableFile:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        names, types = file.schema_arrow.names, file.schema_arrow.types
        kinds = {name: _without_views(kind) for name, kind in zip(names, types, strict=True)}
        return TableFile(path, "parquet", names, file.metadata.num_rows, kinds)


def _parquet(file: TableFile, columns: Sequence[str]) -> Iterator[Chunk]:
    import pyarrow.parquet as parquet

    read = 0
    with parquet.ParquetFile(file.path) as opened:
        # Reading ahead in threads would abort a process that ends meanwhile.
        for batch in opened.iter_batches(READ_ROWS, columns=list(columns), use_threads=False):
            numbers = np.arange(read + 1, read + batch.num_rows + 1)
            read += batch.num_rows
            arrays = {name: _cast(batch.column(name), file.types[name]) for name in columns}
            yield Chunk(arrays, batch.num_rows, numbers, (), read)


def _without_views(arrow_type: Any) -> Any:  # noqa: ANN401  (pyarrow has no types)
    """Return a type with plain text in place of string views, which few functions of Arrow take."""
    import pyarrow as pa

    if pa.types.is_string_view(arrow_type):
        return pa.large_string()
    if pa.types.is_list(arrow_type) and pa.types.is_string_view(arrow_type.value_type):
        return pa.list_(pa.large_string())
    return arrow_type


def _cast(array: Array, arrow_type: object) -> Array:
    return array if array.type == arrow_type else array.cast(arrow_type)


def _open_csv(path: Path) -> TableFile:
    with _Lines(path) as lines:
        first = lines.first().decode("utf-8").rstrip("\r\n")
    delimiter = "\t" if ".tsv" in path.suffixes else max(DELIMITERS, key=first.count)
    names = next(csv.reader([first], delimiter=delimiter), [])
    return TableFile(path, "csv", names, path.stat().st_size, delimiter=delimiter)


def _csv(file: TableFile, columns: Sequence[str]) -> Iterator[Chunk]:
    with _Lines(file.path) as lines:
        lines.first()
        for content, numbers in lines.blocks():
            table, wrong = _parsed(content, file, columns)
            kept = np.delete(np.array(numbers, np.int64), list(wrong))
            if len(kept) != table.num_rows:
                raise FileUnreadable(
                    f"{file.path}: lines {numbers[0]} to {numbers[-1]} have {table.num_rows} rows; "
                    "line ends inside quotes are not supported"
                )
            arrays = {name: _array(table.column(name)) for name in columns}
            broken = [(numbers[at], why) for at, why in wrong.items()]
            yield Chunk(arrays, table.num_rows, kept, broken, lines.read)


def _parsed(
    content: list[bytes], file: TableFile, columns: Sequence[str]
) -> tuple[Any, dict[int, str]]:
    """Return lines of CSV as an Arrow table of text, and why other lines are not in it.

    Those are named by their position in `content`.
    """
    import pyarrow as pa
    import pyarrow.csv as arrow_csv

    wrong: dict[int, str] = {}

    def skip(row: Any) -> str:  # noqa: ANN401  (pyarrow has no types)
        why = f"has {row.actual_columns} columns, the header has {row.expected_columns}"
        wrong[row.number - 1] = why
        return "skip"

    table = arrow_csv.read_csv(
        pa.py_buffer(b"\n".join(content)),
        arrow_csv.ReadOptions(
            use_threads=False,
            column_names=list(file.names),
            block_size=sum(map(len, content)) + len(content) + 1,
        ),
        arrow_csv.ParseOptions(delimiter=file.delimiter, invalid_row_handler=skip),
        arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(file.names, pa.string()),
            include_columns=list(columns),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    return table.combine_chunks(), wrong


def _array(column: Any) -> Array:  # noqa: ANN401
    """Return a chunked array as one array."""
    import pyarrow as pa

    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _open_json(path: Path) -> TableFile:
    with _Lines(path) as lines:
        content, numbers = next(lines.blocks(), ([], []))
    objects, broken = _objects(content[:_FIRST_LINES], numbers[:_FIRST_LINES])
    if not objects:
        number, why = broken[0] if broken else (1, "the file has only blank lines")
        raise FileUnreadable(f"{path}, line {number}: {why}")
    names = dict.fromkeys(name for row in objects for name in row)
    return TableFile(path, "json", list(names), path.stat().st_size)


def _json(file: TableFile, columns: Sequence[str]) -> Iterator[Chunk]:
    with _Lines(file.path) as lines:
        for content, numbers in lines.blocks():
            objects, broken = _objects(content, numbers, columns)
            wrong = {number for number, _ in broken}
            kept = np.array([number for number in numbers if number not in wrong], np.int64)
            arrays = {name: [row.get(name) for row in objects] for name in columns}
            yield Chunk(arrays, len(objects), kept, broken, lines.read)


def _objects(
    content: Sequence[bytes], numbers: Sequence[int], columns: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """Return the objects of lines, and why other lines are none; no column may be there twice."""
    objects, broken = [], []
    names = [orjson.dumps(column) for column in columns]
    for line, number in zip(content, numbers, strict=True):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            broken.append((number, f"is not JSON: {error.msg}"))
            continue
        if not isinstance(value, dict):
            broken.append((number, "must be an object that maps column names to values"))
        elif (b"\\" in line or max(map(line.count, names), default=0) > 1) and (
            repeated := _repeated(line, columns)
        ):
            broken.append((number, f'has the column "{repeated}" twice'))
        else:
            objects.append(value)
    return objects, broken


def _repeated(line: bytes, columns: Sequence[str]) -> str | None:
    """Return a column that an object has twice; None if there is none."""
    try:
        pairs = json.loads(line, object_pairs_hook=list)
    except RecursionError:  # orjson reads deeper objects
        return None
    names = [name for name, _ in pairs]
    return next((column for column in columns if names.count(column) > 1), None)


class _Lines:
    """The lines of a text file, compressed or not, after its byte order mark."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("rb")
        self._file = (
            cast(BinaryIO, gzip.GzipFile(fileobj=self._raw)) if path.suffix == ".gz" else self._raw
        )
        self._line = 0
        self.read = 0
        """Bytes that have been read from the disk."""

    def __enter__(self) -> "_Lines":
        try:
            if self._file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
                self._file.seek(0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    def first(self) -> bytes:
        """Return the first line, and leave it out of the blocks."""
        self._line += 1
        return self._file.readline()

    def blocks(self) -> Iterator[tuple[list[bytes], list[int]]]:
        """Yield the lines that are not blank, and their numbers from 1, about 16 MB at a time."""
        rest = b""
        while content := self._file.read(READ_BYTES):
            block, newline, tail = (rest + content).rpartition(b"\n")
            rest = tail
            if newline:
                yield self._filled(block)
        if rest.strip():
            yield self._filled(rest)

    def _filled(self, block: bytes) -> tuple[list[bytes], list[int]]:
        lines = block.split(b"\n")
        begin = self._line + 1
        self._line += len(lines)
        self.read = self._raw.tell()
        filled = [(line, begin + at) for at, line in enumerate(lines) if line.strip()]
        return [line for line, _ in filled], [number for _, number in filled]
