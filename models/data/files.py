"""Read Parquet and CSV files as chunks of rows, with the position of every row in its file.

A chunk is one read, so a file may be larger than memory. This module does not interpret columns.
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
        table: the requested columns.
        place: the position of a row in the file, as text.
        broken: positions of lines that could not be parsed, and why; they are not in the table.
    """

    path: Path
    table: pa.RecordBatch
    place: Callable[[int], str]
    broken: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file; `kinds` has the type of each column, string for every CSV column."""

    path: Path
    kinds: Mapping[str, pa.DataType]
    units: int
    """Number of parts that can be read in any order: row groups of Parquet; 1 for CSV."""

    def chunks(self, unit: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """Yield the rows of one unit in file order.

        Raises:
            DataInvalid: the file is damaged.
        """
        read = _csv_chunks if _is_csv(self.path) else _parquet_chunks
        try:
            yield from read(self.path, unit, columns)
        except (pa.ArrowException, OSError) as error:
            raise DataInvalid(f"{self.path}: cannot be read: {_line(error)}") from error


def open_file(path: Path) -> TableFile:
    """Read the columns of a file.

    Raises:
        DataInvalid: it is not Parquet or CSV, or it is empty or damaged.
    """
    try:
        if path.stat().st_size == 0:
            raise DataInvalid(f"{path}: file is empty")
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
    """The matching files, each once, in the order of the patterns, then of the file names.

    Raises:
        DataInvalid: a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        here = [path] if path.is_absolute() else sorted(folder.glob(pattern))
        if not here:
            raise DataInvalid(f"{folder / pattern}: no such file")
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
    broken: list[tuple[int, str]] = []  # line number and reason, so far
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
    """Open a CSV file with all fields as text; invalid lines are added to `broken`."""

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
        raise DataInvalid(f"{path}: two columns have the same name")
    return columns


def _is_csv(path: Path) -> bool:
    return path.suffix == ".csv"


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
