"""Parquet and CSV files as chunks of rows that still know where they come from.

A chunk is as large as one read, so a file may be larger than memory. Nothing here knows what a
column means.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from models.data.schema import DataInvalid

READ_ROWS = 65_536  # of a Parquet row group at a time
READ_BYTES = 16 * 2**20  # of a CSV file at a time


@dataclass(frozen=True, slots=True)
class Chunk:
    """Adjacent rows of one file.

    Attributes:
        path: of the file.
        table: the columns that were asked for.
        place: a row's place in the file, for a person.
        broken: places of lines that could not be taken apart, and why; they are no rows.
    """

    path: Path
    table: pa.RecordBatch
    place: Callable[[int], str]
    broken: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file: `kinds` has the type of each column; a CSV column is a string."""

    path: Path
    kinds: Mapping[str, pa.DataType]
    units: int
    """Parts that can be read in any order: the row groups of a Parquet file, 1 of a CSV file."""

    def chunks(self, unit: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the rows of one unit, in the order of the file.

        Raises:
            DataInvalid: the file is damaged.
        """
        read = _csv_chunks if _is_csv(self.path) else _parquet_chunks
        try:
            yield from read(self.path, unit, columns)
        except (pa.ArrowException, OSError) as error:
            raise DataInvalid(f"{self.path}: cannot be read: {_line(error)}") from error


def open_file(path: Path) -> TableFile:
    """Look at a file's columns.

    Raises:
        DataInvalid: it is neither Parquet nor CSV, or empty, or damaged.
    """
    try:
        if path.stat().st_size == 0:
            raise DataInvalid(f"{path}: is empty")
        if _is_csv(path):
            with _open_csv(path, None, []) as reader:
                if next(iter(reader), None) is None:
                    raise DataInvalid(f"{path}: has no rows")
                return TableFile(path, _columns(path, reader.schema), 1)
        if path.suffix != ".parquet":
            raise DataInvalid(f"{path}: must end in .parquet or .csv")
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise DataInvalid(f"{path}: has no rows")
            return TableFile(path, _columns(path, file.schema_arrow), file.num_row_groups)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataInvalid(f"{path}: cannot be read: {_line(error)}") from error


def find(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that match, each once, in the order of the patterns, then of their names.

    Raises:
        DataInvalid: a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        here = [path] if path.is_absolute() else sorted(folder.glob(pattern))
        if not here:
            raise DataInvalid(f"{folder / pattern}: there is no such file")
        found |= dict.fromkeys(here)
    return list(found)


def _parquet_chunks(path: Path, unit: int, columns: Sequence[str]) -> Iterator[Chunk]:
    with pq.ParquetFile(path) as file:
        first = 0
        for batch in file.iter_batches(READ_ROWS, [unit], list(columns), use_threads=False):

            def place(row: int, first: int = first) -> str:
                return f"{path}, row group {unit}, row {first + row}"

            yield Chunk(path, batch, place)
            first += batch.num_rows


def _csv_chunks(path: Path, _: int, columns: Sequence[str]) -> Iterator[Chunk]:
    broken: list[tuple[int, str]] = []  # line, why: as far as the reader has come
    told, line = 0, 2  # the header is line 1
    with _open_csv(path, list(columns), broken) as reader:
        for batch in reader:
            skipped = {number for number, _ in broken}
            free = (each for each in _count_from(line) if each not in skipped)
            lines = list(islice(free, batch.num_rows))
            new = [(f"{path}, line {number}", why) for number, why in broken[told:]]

            def place(row: int, lines: Sequence[int] = lines) -> str:
                return f"{path}, line {lines[row]}"

            yield Chunk(path, batch, place, new)
            told, line = len(broken), lines[-1] + 1 if lines else line


def _count_from(number: int) -> Iterator[int]:
    while True:
        yield number
        number += 1


def _open_csv(
    path: Path, columns: list[str] | None, broken: list[tuple[int, str]]
) -> pc.CSVStreamingReader:
    """Open a CSV file whose fields are all read as text; `broken` takes what is no row."""

    def note(row: pc.InvalidRow) -> str:
        why = f"has {row.actual_columns} fields, the header has {row.expected_columns}"
        broken.append((row.number, why))
        return "skip"

    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file))
    return pc.open_csv(
        path,
        read_options=pc.ReadOptions(use_threads=False, block_size=READ_BYTES),
        parse_options=pc.ParseOptions(invalid_row_handler=note, ignore_empty_lines=False),
        convert_options=pc.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=columns,
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _columns(path: Path, schema: pa.Schema) -> dict[str, pa.DataType]:
    columns = dict(zip(schema.names, schema.types, strict=True))
    if len(columns) < len(schema.names):
        raise DataInvalid(f"{path}: has two columns of one name")
    return columns


def _is_csv(path: Path) -> bool:
    return path.suffix == ".csv"


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
