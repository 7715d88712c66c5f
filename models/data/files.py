"""Read Parquet and text files (CSV, TSV, …) as chunks of rows with their positions in the file.

A chunk is one read, so a file may be larger than memory. This module does not interpret columns.

Text files are read block by block with `pyarrow.csv.read_csv`, not with its streaming reader: the
streaming reader reads ahead in a thread, and a process that ends while that thread runs is aborted.
"""

import csv
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from app.artifacts.encoding import Hashes, hash_integers, hash_strings
from models.data.schema import DataInvalid

READ_ROWS = 65_536  # of a Parquet row group at a time
READ_BYTES = 16 * 2**20  # of a text file at a time
TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".data")
DELIMITERS = ",\t;|"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Adjacent rows of one file.

    Attributes:
        path: of the file.
        table: the requested columns.
        numbers: int64 `[n]`, the line of each row, or its number in the row group.
        row_group: of a Parquet file; `None` for text.
        broken: lines that could not be parsed, and why; they are not in the table.
    """

    path: Path
    table: pa.RecordBatch
    numbers: npt.NDArray[np.int64]
    row_group: int | None = None
    broken: Sequence[tuple[int, str]] = ()

    def place(self, row: int) -> str:
        """The position of a row in its file, as text."""
        if self.row_group is None:
            return f"{self.path}, line {self.numbers[row]}"
        return f"{self.path}, row group {self.row_group}, row {self.numbers[row]}"

    def problems(self) -> list[str]:
        """The lines that could not be parsed, with position and reason."""
        return [f"{self.path}, line {line}: {why}" for line, why in self.broken]

    def row_hashes(self) -> Hashes:
        """A hash of the position of each row, uint64 `[n]`: the same in every run."""
        file = hash_strings([f"{self.path.name}/{self.row_group}"], seed=0)
        return hash_integers(self.numbers ^ file.view(np.int64), seed=0)


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How a text file is parsed: the separator of fields, and the names of its columns."""

    delimiter: str
    names: tuple[str, ...]
    has_header: bool


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file; `kinds` has the type of each column, string for every column of a text file."""

    path: Path
    kinds: Mapping[str, pa.DataType]
    units: int
    """Number of parts that can be read in any order: row groups of Parquet; 1 for text."""
    text: TextFormat | None = None

    def chunks(self, unit: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the rows of one unit in file order.

        Raises:
            DataInvalid: the file is damaged.
        """
        try:
            if self.text is None:
                yield from _parquet_chunks(self.path, unit, columns)
            else:
                yield from _text_chunks(self.path, self.text, columns)
        except (pa.ArrowException, OSError, EOFError) as error:
            raise DataInvalid(f"{self.path}: cannot be read: {_line(error)}") from error


def open_file(path: Path, *, delimiter: str | None = None, header: Sequence[str] = ()) -> TableFile:
    """Read the columns of a file.

    Args:
        path: ends in .parquet, or in one of `TEXT_ENDINGS`, which may be followed by .gz.
        delimiter: of text; by default, the one of `DELIMITERS` that occurs most in the first line.
        header: the column names of a text file that has no header line.

    Raises:
        DataInvalid: the file has another ending, or it is empty or damaged.
    """
    try:
        if path.stat().st_size == 0:
            raise DataInvalid(f"{path}: file is empty")
        if is_text_file(path):
            return _open_text(path, delimiter, header)
        if path.suffix != ".parquet":
            endings = ", ".join(TEXT_ENDINGS)
            raise DataInvalid(f"{path}: must end in .parquet, {endings}, or one of those and .gz")
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise DataInvalid(f"{path}: has no rows")
            names, types = file.schema_arrow.names, file.schema_arrow.types
            _check_unique(path, names)
            return TableFile(path, dict(zip(names, types, strict=True)), file.num_row_groups)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise DataInvalid(f"{path}: cannot be read: {_line(error)}") from error


def first_fields(path: Path, delimiter: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The delimiter of a text file, and the fields of its first line.

    Raises:
        DataInvalid: the file cannot be read.
    """
    try:
        with _open_bytes(path) as file:
            first = file.readline().decode("utf-8").rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataInvalid(f"{path}: cannot be read: {_line(error)}") from error
    delimiter = delimiter or max(DELIMITERS, key=first.count)
    return delimiter, tuple(next(csv.reader([first], delimiter=delimiter), ()))


def is_text_file(path: Path) -> bool:
    """Whether the name of a file is that of a text file."""
    return Path(path.name.removesuffix(".gz")).suffix in TEXT_ENDINGS


def find(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The matching files, each once, in the order of the patterns, then of the file names.

    Raises:
        DataInvalid: a pattern matches nothing.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        here = [path] if path.is_absolute() else sorted(folder.glob(pattern))
        if not here:
            raise DataInvalid(f"{folder / pattern}: no such file")
        paths |= dict.fromkeys(here)
    return list(paths)


def _parquet_chunks(path: Path, row_group: int, columns: Sequence[str]) -> Iterator[Chunk]:
    with pq.ParquetFile(path) as file:
        first = 0
        for batch in file.iter_batches(READ_ROWS, [row_group], list(columns), use_threads=False):
            yield Chunk(path, batch, np.arange(first, first + batch.num_rows), row_group)
            first += batch.num_rows


def _open_text(path: Path, delimiter: str | None, header: Sequence[str]) -> TableFile:
    delimiter, fields = first_fields(path, delimiter)
    names = tuple(header) or fields
    with _open_bytes(path) as file:
        file.readline()
        if not header and not any(line.strip() for line in file):
            raise DataInvalid(f"{path}: has no rows")
    _check_unique(path, names)
    text = TextFormat(delimiter, names, has_header=not header)
    return TableFile(path, dict.fromkeys(names, pa.string()), 1, text)


def _open_bytes(path: Path) -> BinaryIO:
    """Open a text file, compressed or not, after its byte order mark."""
    is_compressed = path.suffix == ".gz"
    file = cast(BinaryIO, gzip.GzipFile(path)) if is_compressed else path.open("rb")
    if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        file.seek(0)
    return file


def _text_chunks(path: Path, text: TextFormat, columns: Sequence[str]) -> Iterator[Chunk]:
    line = 1
    with _open_bytes(path) as file:
        if text.has_header:
            file.readline()
            line = 2
        for block in _blocks(file):
            lines = block.split(b"\n")
            filled = np.flatnonzero([len(line.strip()) > 0 for line in lines])
            without_blanks = b"\n".join([lines[i] for i in filled])  # pyarrow does not count them
            if len(filled):
                yield _text_chunk(path, text, columns, without_blanks, line + filled)
            line += len(lines) - 1  # the last line ends the block


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of whole lines, each ended by a newline except perhaps the last."""
    rest = b""
    while read := file.read(READ_BYTES):
        block, newline, tail = (rest + read).rpartition(b"\n")
        rest = tail
        if newline:
            yield block + newline
    if rest:
        yield rest


def _text_chunk(
    path: Path,
    text: TextFormat,
    columns: Sequence[str],
    block: bytes,
    lines: npt.NDArray[np.int64],
) -> Chunk:
    """Parse a block without blank lines; all fields stay text, an empty field is null."""
    broken: list[tuple[int, str]] = []  # index and reason

    def skip(row: pc.InvalidRow) -> str:
        named = "the header has" if text.has_header else "expected"
        why = f"has {row.actual_columns} fields, {named} {row.expected_columns}"
        broken.append((row.number - 1, why))
        return "skip"

    table = pc.read_csv(
        io.BytesIO(block),
        read_options=pc.ReadOptions(
            use_threads=False, column_names=list(text.names), block_size=len(block) + 1
        ),
        parse_options=pc.ParseOptions(delimiter=text.delimiter, invalid_row_handler=skip),
        convert_options=pc.ConvertOptions(
            column_types=dict.fromkeys(text.names, pa.string()),
            include_columns=list(columns),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    batches = table.combine_chunks().to_batches()
    batch = batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)
    kept = np.delete(lines, [index for index, _ in broken])
    return Chunk(path, batch, kept, None, [(int(lines[index]), why) for index, why in broken])


def _check_unique(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        hint = '; if it has no header line, name its columns: header = ["name", …]'
        raise DataInvalid(
            f"{path}: two columns have the same name, {twice!r}{hint if is_text_file(path) else ''}"
        )


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
