"""A table in files as training data: checked once, then streamed in every epoch.

The first pass checks every row, counts rows, and keeps the validation and the test set in memory.
Training starts only if all data is valid.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from app.artifacts.encoding import Hashes
from app.errors import did_you_mean
from models.data import arrow_columns
from models.data.dataset import Dataset, Splits, joined
from models.data.files import TableFile, find, open_file
from models.data.schema import (
    DATES,
    DataInvalid,
    DenseColumns,
    FilesConfig,
    IdentityIds,
    IdListColumn,
    SplitByFile,
)
from models.data.table import TEST, TRAIN, VALIDATION, EncodedRows, TableReader, required_columns
from models.networks.config import Side, Task

PARTS = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}
SHOWN_PROBLEMS = 5
SAMPLE_ROWS = 100_000  # of the training set, from which the scaling of dense features is fitted


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a file that can be read separately, and the split that it belongs to."""

    file: TableFile
    number: int
    part: int | None


@dataclass(frozen=True, slots=True)
class FileRows:
    """The training set, read from its files in every epoch."""

    config: FilesConfig
    reader: TableReader
    units: Sequence[Unit]
    requests: int
    rows: int

    def batches(self, rows: int, shuffle: torch.Generator | None = None) -> Iterator[Dataset]:
        """Yield every request once, in batches of about `rows` rows.

        A shuffled epoch draws the order of files and row groups, then shuffles the requests within
        every `shuffle_rows` rows of that order.
        """
        order = torch.arange(len(self.units))
        if shuffle is not None:
            order = torch.randperm(len(self.units), generator=shuffle)
        waiting: list[Dataset] = []
        for unit in order.tolist():
            for read in _read(self.config, self.reader, self.units[unit]):
                if (part := read.of(TRAIN)) is not None:
                    waiting.append(part)
                if sum(dataset.rows for dataset in waiting) >= self.config.shuffle_rows:
                    yield from joined(waiting).batches(rows, shuffle)
                    waiting = []
        if waiting:
            yield from joined(waiting).batches(rows, shuffle)


@dataclass(slots=True)
class _Range:
    """The number of rows where a label is defined, and its range."""

    count: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: npt.NDArray[np.float32]) -> None:
        if len(values):
            self.count += len(values)
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))


@dataclass(slots=True)
class _Sample:
    """A uniform sample of rows, drawn in one pass: the rows with the smallest random keys."""

    keys: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    columns: dict[str, Tensor] = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, columns: dict[str, Tensor]) -> None:
        """Add the columns of some rows, `[n, dim]` by name."""
        if not columns:
            return
        new = self.random.random(len(next(iter(columns.values()))))
        self.keys = np.concatenate([self.keys, new])
        for name, column in columns.items():
            before = [self.columns[name]] if name in self.columns else []
            self.columns[name] = torch.cat([*before, column])
        if len(self.keys) > SAMPLE_ROWS:
            kept = np.argpartition(self.keys, SAMPLE_ROWS)[:SAMPLE_ROWS]
            self.keys = self.keys[kept]
            rows = torch.from_numpy(kept)
            self.columns = {name: column[rows] for name, column in self.columns.items()}


@dataclass(slots=True)
class _Scan:
    """State and results of the first pass."""

    config: FilesConfig
    tasks: Sequence[Task]
    requests: int = 0
    rows: int = 0
    bad_rows: int = 0
    problems: list[str] = field(default_factory=list)
    held_out: dict[int, list[Dataset]] = field(default_factory=lambda: {VALIDATION: [], TEST: []})
    ranges: dict[tuple[int, str], _Range] = field(default_factory=dict)
    groups: dict[int, Hashes] = field(default_factory=dict)
    training: list[Dataset] | None = field(default_factory=list)
    samples: dict[Side, _Sample] = field(
        default_factory=lambda: {"user": _Sample(), "candidate": _Sample()}
    )
    runs: int = 0
    last_group: np.uint64 | None = None

    def add(self, read: EncodedRows) -> None:
        self.bad_rows += len(read.problems)
        self.problems += read.problems[: SHOWN_PROBLEMS - len(self.problems)]
        if self.bad_rows > self.config.max_bad_rows:
            raise DataInvalid(
                f"{self.bad_rows} bad rows, max_bad_rows is {self.config.max_bad_rows}: "
                + "; ".join(self.problems)
            )
        self._count_runs(read.group)
        for part in PARTS:
            dataset = read.of(part)
            if dataset is None:
                continue
            if part == TRAIN:
                self.requests += dataset.requests
                self.rows += dataset.rows
                self._add_training(dataset)
            else:
                self.held_out[part].append(dataset)
            seen = self.groups.get(part, np.zeros(0, np.uint64))
            self.groups[part] = np.union1d(seen, read.group[read.part == part])
            for task in self.tasks:
                defined = ~dataset.labels[task.name].isnan()
                if task.sample_space is not None:
                    defined &= dataset.labels[task.sample_space] == 1
                limits = self.ranges.setdefault((part, task.name), _Range())
                limits.add(dataset.labels[task.name][defined].numpy())

    def _add_training(self, dataset: Dataset) -> None:
        """Keep the training set while it is small, and a sample of its dense features."""
        if self.training is not None:
            self.training.append(dataset)
            if self.rows > self.config.shuffle_rows:
                self.training = None
        dense = [feature for feature in self.config.features if isinstance(feature, DenseColumns)]
        for side, sample in self.samples.items():
            columns = dataset.user if side == "user" else dataset.candidate
            sample.add(
                {feature.name: columns[feature.name] for feature in dense if feature.side == side}
            )

    def _count_runs(self, group: Hashes) -> None:
        """Count the runs of adjacent rows of one request."""
        if len(group):
            self.runs += int(np.count_nonzero(group[1:] != group[:-1]))
            self.runs += group[0] != self.last_group
            self.last_group = group[-1]

    def notes(self) -> tuple[str, ...]:
        """Messages about the data, for the user."""
        notes = [f"skipped: {problem}" for problem in self.problems]
        if self.bad_rows:
            notes.append(f"skipped {self.bad_rows} bad rows in total")
        scattered = self.runs - sum(map(len, self.groups.values()))
        if self.config.group is not None and scattered:
            notes.append(
                f"column {self.config.group!r}: the rows of some requests are not adjacent, so "
                f"that they are split into {scattered:,} requests more; sort the table by it"
            )
        return tuple(notes)

    def check(self) -> None:
        """Check the conditions that depend on the whole table."""
        for part, name in PARTS.items():
            if part not in self.groups:
                raise DataInvalid(f"split: the {name} set has no rows")
        for first, second in ((TRAIN, VALIDATION), (TRAIN, TEST), (VALIDATION, TEST)):
            if common := len(np.intersect1d(self.groups[first], self.groups[second])):
                raise DataInvalid(
                    f"split: {common} requests (column {self.config.group!r}) are in both the "
                    f"{PARTS[first]} set and the {PARTS[second]} set"
                )
        for task in self.tasks:
            space = f" where {task.sample_space} is 1" if task.sample_space else ""
            for part in (TRAIN, VALIDATION):
                if not self.ranges[part, task.name].count:
                    raise DataInvalid(
                        f"task {task.name!r}: no row of the {PARTS[part]} set has the label{space}"
                    )
            limits = self.ranges[TRAIN, task.name]
            if limits.low == limits.high:
                raise DataInvalid(
                    f"task {task.name!r}: the label is {limits.low:g} on every row of the training "
                    f"set{space}; there is nothing to learn"
                )


def generate(config: FilesConfig, tasks: Sequence[Task]) -> Splits:
    """Read and check the whole table once.

    Args:
        config: the schema.
        tasks: their labels must have more than one value in the training set.

    Raises:
        DataInvalid: the files do not match the schema, or a label has only one value.
    """
    units = units_of(config)
    reader = TableReader(config)
    scan = _Scan(config, tasks)
    for unit in units:
        for read in _read(config, reader, unit):
            scan.add(read)
    scan.check()
    training = [unit for unit in units if unit.part in (None, TRAIN)]
    streamed = FileRows(config, reader, training, scan.requests, scan.rows)
    return Splits(
        train=streamed if scan.training is None else joined(scan.training),
        validation=joined(scan.held_out[VALIDATION]),
        test=joined(scan.held_out[TEST]),
        notes=scan.notes(),
        dense_sample=scan.samples["user"].columns | scan.samples["candidate"].columns,
    )


def units_of(config: FilesConfig) -> list[Unit]:
    """All units to read, in the order of the files.

    Raises:
        DataInvalid: a file is missing, is not a table, or does not match the schema.
    """
    folder, split = Path(config.folder), config.split
    patterns: dict[int | None, tuple[str, ...]] = {None: config.files}
    if isinstance(split, SplitByFile):
        patterns = {TRAIN: split.train, VALIDATION: split.validation, TEST: split.test}
    units = []
    for part, named in patterns.items():
        for path in find(folder, named):
            file = open_file(path, delimiter=config.delimiter, header=config.header)
            check_types(file, config)
            units += [Unit(file, number, part) for number in range(file.units)]
    return units


def check_types(file: TableFile, config: FilesConfig) -> None:
    """Check that a file has the columns of the schema, with suitable types.

    Raises:
        DataInvalid: for the first column that is missing or has another type.
    """
    for column, use in required_columns(config).items():
        if column not in file.kinds:
            known = ", ".join(f'"{name}"' for name in file.kinds)
            raise DataInvalid(
                f'{file.path}: no column "{column}" for {use} (columns: {known})'
                f"{did_you_mean(column, file.kinds)}"
            )
    for column, use, must_be, fits in _expectations(file, config):
        if not fits and file.text is None:
            kind = file.kinds[column]
            hint = f"; {DATES}" if arrow_columns.is_date(kind) else ""
            raise DataInvalid(
                f'{file.path}: column "{column}" is {kind}, {use} needs {must_be}{hint}'
            )


def _expectations(file: TableFile, config: FilesConfig) -> Iterator[tuple[str, str, str, bool]]:
    """Each column with its use, the expected type, and whether the type is right."""
    kinds = file.kinds
    for name in filter(None, (config.group, config.user)):
        fits = arrow_columns.is_text(kinds[name]) or pa.types.is_integer(kinds[name])
        yield name, "group or user", "strings or integers", fits
    for feature in config.features:
        use = f'feature "{feature.name}"'
        if isinstance(feature, DenseColumns):
            is_list = len(feature.columns) == 1 and feature.dim > 1
            for name in feature.columns:
                kind = arrow_columns.element_type(kinds[name]) if is_list else kinds[name]
                must_be = f"lists of {feature.dim} numbers" if is_list else "numbers"
                yield name, use, must_be, kind is not None and arrow_columns.is_number(kind)
            continue
        ids = config.ids(feature)
        wants_text = not isinstance(ids, IdentityIds) and ids.ids == "string"
        is_list = isinstance(feature, IdListColumn)
        kind = kinds[feature.column]
        kind = arrow_columns.element_type(kind) if is_list else kind
        fits = kind is not None and (
            arrow_columns.is_text(kind) if wants_text else arrow_columns.may_be_integer(kind)
        )
        must_be = ("lists of " if is_list else "") + ("strings" if wants_text else "integers")
        yield feature.column, use, must_be, fits
    for label in config.labels:
        names = [label.mask] if label.kind == "binary" else [label.column, label.mask]
        for name in filter(None, names):
            yield name, f'label "{label.name}"', "numbers", arrow_columns.is_number(kinds[name])


def _read(config: FilesConfig, reader: TableReader, unit: Unit) -> Iterator[EncodedRows]:
    for chunk in unit.file.chunks(unit.number, list(required_columns(config))):
        yield reader.read(chunk, unit.part)
