"""Fold the rows of a table while it is published: see `app.artifacts.fold`."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from app.artifacts.fold import (
    CHECKED_ROWS,
    check_golden,
    check_rows,
    fold_of,
    fold_records,
    version_of,
)
from app.artifacts.loader import Model, load
from app.artifacts.store import Artifact
from app.artifacts.tables.description import Fold
from app.artifacts.tables.listing import ListedTable, unfolded_delta
from app.artifacts.tables.writer import TableWriter
from app.cli.output import counted
from app.errors import ArtifactInvalid

Show = Callable[[int], None]
"""Shows how many rows are folded."""


@dataclass(frozen=True, slots=True)
class TableFold:
    """The version that a table is folded for, and how far its golden scores differ."""

    model: Model
    golden_difference: float

    @classmethod
    def of(cls, artifact: Artifact) -> "TableFold":
        """Load a version from the store, verified, and compare its golden examples.

        Raises:
            ArtifactInvalid: it cannot be loaded, or its folded scores differ by too much.
            OSError: a file cannot be read now.
        """
        model = load(artifact, torch.device("cpu"))
        return cls(model, check_golden(model))

    def size_message(self, writer: TableWriter) -> str:
        """Return a sentence: how many bytes folding takes, beside those of the features."""
        manifest = self.model.manifest
        width, record = _bytes_per_row(self), writer.plan.defaults.dtype.itemsize
        return (
            f"folding for version {manifest.version}: {width:,} bytes per item beside {record:,} "
            f"of its features; {_size(width * writer.rows)} for {counted(writer.rows, 'item')} "
            f"beside {_size(record * writer.rows)}"
        )

    def fill(self, writer: TableWriter, show: Show) -> float:
        """Fold the rows that a writer has; return the largest difference of a score.

        Raises:
            ArtifactInvalid: the disk is too full, or the scores of rows differ by too much.
            OSError: the disk is full.
        """
        needed = _bytes_per_row(self) * writer.rows
        free = shutil.disk_usage(writer.folder).free
        if free < needed:
            raise ArtifactInvalid(
                f"folding needs {_size(needed)}, the disk of {writer.plan.folder} has "
                f"{_size(free)} free"
            )
        writer.begin_fold(fold_of(self.model.manifest))
        records = writer.written()
        done, spaced = 0, np.arange(min(CHECKED_ROWS, len(records)), dtype=np.int64)
        chosen = spaced * len(records) // max(1, len(spaced))
        checked = []
        for part in fold_records(self.model.program, records):
            writer.add_folded(part)
            mine = chosen[(chosen >= done) & (chosen < done + len(part))]
            checked.append(part[mine - done])
            done += len(part)
            show(done)
        if not checked:
            return self.golden_difference
        difference = check_rows(self.model, records[chosen], np.concatenate(checked))
        return max(difference, self.golden_difference)

    def summary(self, difference: float) -> str:
        """Return what a reader should know of a table that was folded."""
        manifest = self.model.manifest
        return (
            f"folded for version {manifest.version}: scores differ by at most {difference:.2g}, "
            f"tolerance {manifest.precision.tolerance['cpu']:g}; other versions of the model "
            "serve from the features"
        )


def fold_of_delta(listed: ListedTable, fold: Fold, versions: Sequence[Artifact]) -> TableFold:
    """Return what folds the rows of a further delta.

    Args:
        listed: the table.
        fold: of the table, without its deltas.
        versions: of the model.

    Raises:
        ArtifactInvalid: an earlier delta is not folded, or the store has no version with the
            program of the fold any more, or that cannot be loaded.
        OSError: a file cannot be read now.
    """
    if unfolded := unfolded_delta(listed, fold):
        raise ArtifactInvalid(f"delta {unfolded} is not folded")
    artifact = version_of(fold, versions)
    if artifact is None:
        why = f"the store has no version with the program of version {fold.version}"
        raise ArtifactInvalid(why)
    return TableFold.of(artifact)


def _bytes_per_row(fold: TableFold) -> int:
    width = fold.model.manifest.folded_width
    assert width is not None
    return 4 * width


def _size(count: int) -> str:
    """Return a number of bytes as messages show it."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
