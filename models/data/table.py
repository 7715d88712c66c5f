"""Convert chunks of a table to labelled requests, as the schema says.

A request is a run of adjacent rows with the same group and the same user features, so that its user
row has exactly the values of every row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from app.artifacts.encoding import NO_VOCABULARY, Hashed, Hashes, Listed, Vocabulary, hash_integers
from models.data import arrow_columns
from models.data.arrow_columns import Flags
from models.data.dataset import ROW_WEIGHT, Dataset
from models.data.files import Chunk
from models.data.schema import (
    DATES,
    DenseColumns,
    FilesConfig,
    IdColumn,
    IdentityIds,
    Label,
    SplitByColumn,
    SplitByHash,
    TableFeature,
)
from models.data.table_inputs import encoding_of, read_vocabulary_of

Values = npt.NDArray[Any]
Parts = npt.NDArray[np.int8]

TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """The valid rows of a chunk, one array per column, and the errors of the other rows."""

    user: Mapping[str, Values]
    candidate: Mapping[str, Values]
    labels: Mapping[str, npt.NDArray[np.float32]]
    group: Hashes
    owner: Hashes
    part: Parts
    problems: Sequence[str] = ()

    def of(self, part: int) -> Dataset | None:
        """The requests of one split; None if there are none."""
        kept = np.flatnonzero(self.part == part)
        if len(kept) == 0:
            return None
        user = {name: column[kept] for name, column in self.user.items()}
        begins = _begins(
            [self.group[kept], *user.values()]
        )  # [B] true at the first row of a request
        first = np.flatnonzero(begins)  # [R]
        return Dataset(
            user={name: torch.from_numpy(column[first]) for name, column in user.items()},
            candidate={n: torch.from_numpy(column[kept]) for n, column in self.candidate.items()},
            row_to_request=torch.from_numpy(np.cumsum(begins) - 1),
            labels={name: torch.from_numpy(label[kept]) for name, label in self.labels.items()},
            expected={},
            users=torch.from_numpy(self.owner[kept][first].view(np.int64)),
        )


@dataclass(slots=True)
class _RowErrors:
    """The error of each invalid row; the first one found."""

    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, wrong: Flags, reason: str) -> None:
        for row in np.flatnonzero(wrong).tolist():
            self.reasons.setdefault(row, reason)


class TableReader:
    """Converts chunks as a schema says."""

    def __init__(self, config: FilesConfig) -> None:
        """Read the vocabularies.

        Raises:
            DataInvalid: a vocabulary is missing or invalid.
        """
        self._config = config
        self._ids: dict[str, tuple[int | Hashed | Listed, Vocabulary]] = {}
        for feature in config.features:
            if not isinstance(feature, DenseColumns):
                ids = config.ids(feature)
                if isinstance(ids, IdentityIds):
                    self._ids[feature.name] = (ids.vocabulary_size, NO_VOCABULARY)
                else:
                    vocabulary = read_vocabulary_of(config, feature)
                    self._ids[feature.name] = (encoding_of(ids, feature.name), vocabulary)

    def read(self, chunk: Chunk, part: int | None) -> EncodedRows:
        """Convert a chunk to columns.

        Args:
            chunk: with all columns of `required_columns`.
            part: the split of the file, if the split is by file.
        """
        faults = _RowErrors()
        table = chunk.table
        group = owner = chunk.row_hashes()
        if self._config.group is not None:
            group, wrong = arrow_columns.hashes(table[self._config.group])
            faults.add(wrong, f"column {self._config.group!r} (request) is empty")
            owner = group
        if self._config.user is not None:
            owner, wrong = arrow_columns.hashes(table[self._config.user])
            faults.add(wrong, f"column {self._config.user!r} (user) is empty")
        sides: dict[str, dict[str, Values]] = {"user": {}, "candidate": {}}
        for feature in self._config.features:
            sides[feature.side][feature.name] = self._feature(table, feature, faults)
        decimal = self._config.decimal
        labels = {
            label.name: _label(table, label, decimal, faults) for label in self._config.labels
        }
        if self._config.weight is not None:
            labels[ROW_WEIGHT] = _weight(table, self._config.weight, decimal, faults)
        parts = parts_of(self._config, chunk, part)
        problems = chunk.problems()
        problems += [f"{chunk.place(row)}: {faults.reasons[row]}" for row in sorted(faults.reasons)]
        good = np.ones(len(group), dtype=np.bool_)
        good[list(faults.reasons)] = False
        return EncodedRows(
            user={name: column[good] for name, column in sides["user"].items()},
            candidate={name: column[good] for name, column in sides["candidate"].items()},
            labels={name: label[good] for name, label in labels.items()},
            group=group[good],
            owner=owner[good],
            part=parts[good],
            problems=problems,
        )

    def _feature(self, table: pa.RecordBatch, feature: TableFeature, faults: _RowErrors) -> Values:
        if isinstance(feature, DenseColumns):
            return _dense(table, feature, self._config.decimal, faults)
        encoding, vocabulary = self._ids[feature.name]
        array = table[feature.column]
        if isinstance(feature, IdColumn):
            rows, wrong = arrow_columns.ids(array, encoding, vocabulary)
            faults.add(wrong, f"feature {feature.name!r} is not an integer id")
            return rows
        rows, wrong = arrow_columns.id_lists(
            array,
            feature.separator,
            feature.max_length,
            lambda elements: arrow_columns.ids(elements, encoding, vocabulary),
        )
        faults.add(wrong, f"feature {feature.name!r} is not a list of integer ids")
        return rows


def parts_of(config: FilesConfig, chunk: Chunk, part: int | None) -> Parts:
    """The split of each row, `[n]`.

    Args:
        config: the schema.
        chunk: with all columns of `required_columns`.
        part: the split of the file, if the split is by file.
    """
    split, table = config.split, chunk.table
    parts = np.full(table.num_rows, TRAIN if part is None else part, np.int8)
    if isinstance(split, SplitByHash):
        group = chunk.row_hashes()
        if config.group is not None:
            group, _ = arrow_columns.hashes(table[config.group])
        drawn = hash_integers(group.view(np.int64), split.seed) / 2.0**64  # [n] in [0, 1)
        parts[drawn < split.validation + split.test] = TEST
        parts[drawn < split.validation] = VALIDATION
    elif isinstance(split, SplitByColumn):
        for named_part, named in ((VALIDATION, split.validation), (TEST, split.test)):
            parts[arrow_columns.is_one_of(table[split.column], named)] = named_part
    return parts


def required_columns(config: FilesConfig) -> dict[str, str]:
    """Every column that is read, and its use."""
    named = {"group": config.group, "user": config.user, "weight": config.weight}
    uses = {column: use for use, column in reversed(named.items()) if column is not None}
    if isinstance(config.split, SplitByColumn):
        uses[config.split.column] = "split.column"
    for feature in config.features:
        names = feature.columns if isinstance(feature, DenseColumns) else (feature.column,)
        uses |= dict.fromkeys(names, f'feature "{feature.name}"')
    for label in config.labels:
        use = f'label "{label.name}"'
        uses |= {name: use for name in (label.column, label.mask) if name}
    return uses


def _dense(
    table: pa.RecordBatch, feature: DenseColumns, decimal: str, faults: _RowErrors
) -> Values:
    """Float32 `[n, dim]`; NaN for a missing value that the network fills."""
    fills = feature.missing == "fill"
    if len(feature.columns) == 1 and feature.dim > 1:
        values, wrong = arrow_columns.dense_lists(
            table[feature.columns[0]], feature.separator, feature.dim, decimal
        )
        dense, invalid = _finite(values, fills_missing=fills)  # [n, dim]
        expected = f"a list of {feature.dim} finite numbers"
        faults.add(wrong | invalid.any(axis=1), f"column {feature.columns[0]!r} is not {expected}")
        return dense
    columns = []
    for name in feature.columns:
        values, wrong = arrow_columns.numbers(table[name], decimal)
        column, invalid = _finite(values, fills_missing=fills)  # [n]
        reason = f"column {name!r} is not a finite number"
        faults.add(wrong | invalid, f"{reason}{_hint(table[name], wrong)}")
        columns.append(column)
    return np.stack(columns, axis=1)  # [n, dim]


def _hint(array: pa.Array, wrong: Flags) -> str:
    """What to do about text that is not a number, if its form tells."""
    rows = np.flatnonzero(wrong)
    if not len(rows) or not arrow_columns.is_text(array.type):
        return ""
    first = str(array[rows[0]].as_py())
    if arrow_columns.looks_like_date(first):
        return f"; {DATES}"
    if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", first):
        return '; numbers with a decimal comma need decimal = ","'
    return ""


def _finite(values: Values, *, fills_missing: bool) -> tuple[Values, Flags]:
    """The values as float32, and which are not finite; NaN is accepted if it is filled."""
    with np.errstate(over="ignore"):
        floats = values.astype(np.float32)
    return floats, ~np.isfinite(floats) & ~(np.isnan(floats) & fills_missing)


def _weight(
    table: pa.RecordBatch, column: str, decimal: str, faults: _RowErrors
) -> npt.NDArray[np.float32]:
    values, wrong = arrow_columns.numbers(table[column], decimal)
    wrong = wrong | ~((values >= 0) & np.isfinite(values))
    faults.add(wrong, f"column {column!r} (weight) is not a finite number ≥ 0")
    return values.astype(np.float32)


def _label(
    table: pa.RecordBatch, label: Label, decimal: str, faults: _RowErrors
) -> npt.NDArray[np.float32]:
    array = table[label.column]
    values, wrong = arrow_columns.labels(array, label.positive, decimal)  # [n]
    faults.add(wrong, f"label {label.name!r} is not a number{_hint(array, wrong)}")
    if label.kind == "binary":
        values = np.where(values == -1, 0, values)
    if label.mask is not None:
        mask, wrong = arrow_columns.numbers(table[label.mask])
        faults.add(wrong, f"column {label.mask!r} is neither true nor false")
        values = np.where(mask == 1, values, np.nan)
    undefined = np.isnan(values)
    match label.kind:
        case "binary":
            faults.add(
                ~undefined & (values != 0) & (values != 1), f"label {label.name!r} is not 0 or 1"
            )
        case "duration":
            bad = ~undefined & ~((values >= 0) & (values < np.inf))
            faults.add(bad, f"label {label.name!r} is not a duration in seconds")
        case "regression":
            faults.add(np.isinf(values), f"label {label.name!r} is not finite")
    return values.astype(np.float32)


def _begins(keys: Sequence[Values]) -> Flags:
    """The rows at which a run of equal keys begins."""
    begins = np.ones(len(keys[0]), dtype=np.bool_)
    begins[1:] = False
    for key in keys:
        changes = key[1:] != key[:-1]
        begins[1:] |= changes if changes.ndim == 1 else changes.any(axis=1)
    return begins
