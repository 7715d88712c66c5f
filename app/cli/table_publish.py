"""`gatehouse items publish` and `gatehouse users publish`: files become a table or a delta."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from app.artifacts.tables.description import TableKind, read_description
from app.artifacts.tables.keys import Int64, KeyIndex
from app.artifacts.tables.listing import ListedTable
from app.artifacts.tables.publish import publish_delta, publish_table
from app.artifacts.tables.segment import check_sizes
from app.artifacts.tables.table import TableKeys
from app.artifacts.tables.writer import DuplicateKeys, TableWriter
from app.cli.output import Output, counted, joined_names
from app.cli.parser import WrongUsage, complain
from app.cli.running_server import nudge_and_wait_for_table
from app.cli.table_files import TableFile
from app.cli.table_plan import (
    PublishPlan,
    Refused,
    not_folded,
    nothing_published,
    plan_of,
)
from app.cli.table_rows import EncodedRows
from app.errors import ArtifactInvalid, ExitCode, did_you_mean

if TYPE_CHECKING:  # it imports torch
    from app.cli.table_fold import TableFold

_MOST_PROBLEMS = 20
_MOST_CATEGORIES = 1000
"""An id feature with more values than these is taken for the key without a warning."""


def run_publish(options: argparse.Namespace, kind: TableKind) -> int:
    """Publish the files; return the exit code."""
    began = time.monotonic()
    try:
        plan = plan_of(options, kind)
        rows = _Rows(plan, options.max_bad_rows)
        with _progress(plan.files) as rows.progress:
            listed = _publish(plan, rows, options.table)
    except Refused as refused:
        for problem in refused.problems[:_MOST_PROBLEMS]:
            complain(problem)
        complain(refused.total)
        return ExitCode.USAGE
    except ArtifactInvalid as error:
        raise WrongUsage(str(error)) from None
    published = time.monotonic()
    _report(plan, listed, published - began, rows.unknown_removed)
    if plan.changed is not None and listed.version != plan.changed.version:
        _check_fold(listed)
    if rows.folded:
        Output().print_line(rows.folded)
    elif plan.former is not None and (fold := plan.former.fold) is not None:
        Output().print_line(
            f"{plan.former.label} was folded for version {fold.version}, this table is not; "
            "--fold folds it"
        )
    return nudge_and_wait_for_table(plan.artifact.model, listed, options, published)


class _Rows:
    """Reads and encodes the rows of the files, once; knows where each came from.

    Attributes:
        progress: the bar that shows how far it is; None to show nothing.
        bad: how many rows are bad.
        folded: what folding did, in one line; "" if the table is not folded.
        unknown_removed: how many of the keys that a delta removes its table did not have.
    """

    def __init__(self, plan: PublishPlan, most_bad: int) -> None:
        self.progress: Progress | None = None
        self.bad = 0
        self.folded = ""
        self.unknown_removed = 0
        self._plan = plan
        self._most_bad = most_bad
        self._problems: list[str] = []
        self._numbers: list[tuple[TableFile, Int64]] = []

    def fill(self, writer: TableWriter) -> None:
        """Add the rows to a table.

        Raises:
            Refused: there are too many bad rows, or too few good ones.
        """
        for rows in self._encoded():
            if self.bad <= self._most_bad:
                writer.add(rows.keys, rows.records)
        self._check()
        former, former_rows = self._plan.former, self._plan.former_rows
        if writer.rows == 0:
            raise Refused([], "nothing is published: there is no row")
        if former is not None and writer.rows < former_rows / 2:
            raise Refused(
                [],
                f"nothing is published: {counted(writer.rows, 'row')}, under half of the "
                f"{former_rows:,} of {former.label}; --force publishes them",
            )
        if self._plan.fold is not None:
            try:
                self._fold(writer, self._plan.fold)
            except ArtifactInvalid as error:
                raise Refused([str(error)], nothing_published(1, "problem")) from error

    def fill_delta(self, writer: TableWriter) -> None:
        """Add the rows to a delta; the last row of a key counts.

        Raises:
            Refused: there are too many bad rows, or there is no good one.
        """
        parts = list(self._encoded())
        self._check()
        if not any(len(part.keys) for part in parts):
            self._check_empty()
        keys = [key for part in parts for key in part.keys]
        last = {key: row for row, key in enumerate(keys)}
        kept = np.array(sorted(last.values()), np.int64)
        none = np.zeros(0, self._plan.table.defaults.dtype)
        records = np.concatenate([none, *(part.records for part in parts)], dtype=none.dtype)[kept]
        removed = np.concatenate([np.zeros(0, np.bool_), *(part.removed for part in parts)])[kept]
        writer.add(self._keys(keys, kept[~removed]), records[~removed])
        writer.remove(self._keys(keys, kept[removed]))
        if self._plan.fold is not None:
            try:
                self._fold(writer, self._plan.fold)
            except ArtifactInvalid as error:
                writer.give_up_fold()
                complain(not_folded(str(error)))

    def _check_empty(self) -> None:
        """Check that a delta may be without a row: its table would count as fresh.

        Raises:
            Refused: nobody has said so, or all rows are bad.
        """
        if self.bad:
            raise Refused([], "nothing is published: there is no good row")
        if not self._plan.may_be_empty:
            raise Refused(
                [],
                "nothing is published: there is no row; with --allow-empty the delta would change "
                "nothing, and the table would count as fresh",
            )

    def check_delta(self, listed: ListedTable, index: KeyIndex) -> None:
        """Check that servers can open the table, and that a delta leaves enough of its rows.

        Raises:
            Refused: there are too few, or none.
            ArtifactInvalid: files of the table are missing or damaged.
        """
        try:
            check_sizes(listed.folder, read_description(listed.folder))
            if not (index.rows < 0).any():
                return
            keys = TableKeys.of(listed)
        except ArtifactInvalid as error:
            raise ArtifactInvalid(f"nothing is published: {listed.label}: {error}") from error
        before = keys.count
        self.unknown_removed = keys.change(index)
        after = keys.count
        if after == 0:
            raise Refused([], f"nothing is published: {listed.label} would have no row left")
        if after < before / 2 and not self._plan.may_shrink:
            raise Refused(
                [],
                f"nothing is published: {listed.label} would have {counted(after, 'row')}, under "
                f"half of its {before:,}; --force publishes the delta",
            )

    def _fold(self, writer: TableWriter, fold: "TableFold") -> None:
        """Say what folding takes, then fold the rows.

        Raises:
            ArtifactInvalid: the disk is too full, or the scores of rows differ by too much.
        """
        # On a terminal it has to come above the bar, which belongs to another console.
        console = Output() if self.progress is None else self.progress.console
        console.print(fold.size_message(writer), markup=False, highlight=False, soft_wrap=True)
        show = partial(self._show, description="folding", total=writer.rows)
        self.folded = fold.summary(fold.fill(writer, show))

    def _show(
        self, completed: int, description: str | None = None, total: int | None = None
    ) -> None:
        """Show how much is done, if there is a bar; None leaves the bar's text or total."""
        if self.progress is not None:
            bar = self.progress.task_ids[0]
            self.progress.update(bar, completed=completed, description=description, total=total)

    def _keys(self, keys: Sequence[int | str], rows: Int64) -> Int64 | list[str]:
        """Return the keys of some rows, as a writer takes them."""
        if self._plan.table.key.type == "int64":
            return np.array([keys[row] for row in rows.tolist()], np.int64)
        return [str(keys[row]) for row in rows.tolist()]

    def _encoded(self) -> Iterator[EncodedRows]:
        """Yield the rows of all files, chunk by chunk; note what is wrong with others."""
        encoder = self._plan.encoder
        done = 0
        for file in self._plan.files:
            for chunk in file.chunks(encoder.columns_in(file)):
                rows = encoder.encode(file, chunk)
                for number in sorted(rows.bad):
                    self.bad += 1
                    if len(self._problems) < _MOST_PROBLEMS:
                        why = "; ".join(rows.bad[number])
                        self._problems.append(f"{file.place(number)}: {why}")
                self._numbers.append((file, rows.numbers))
                self._show(done + chunk.read)
                yield rows
            done += file.size

    def _check(self) -> None:
        """Check that few rows are bad, and say which are left out.

        Raises:
            Refused: there are too many.
        """
        if self.bad > self._most_bad:
            limit = f", --max-bad-rows {self._most_bad}" if self._most_bad else ""
            raise Refused(self._problems, nothing_published(self.bad, "bad row") + limit)
        for problem in self._problems:
            complain(f"left out: {problem}")
        if self.bad > len(self._problems):
            complain(f"left out: {counted(self.bad, 'bad row')} in all")

    def duplicates(self, error: DuplicateKeys) -> Refused:
        """Return the error that names the rows that repeat a key."""
        pairs = error.pairs[np.argsort(error.pairs[:, 1])]
        problems = [
            f"{self._place(again)}: repeats the key of {self._place(first)}"
            for first, again in pairs[:_MOST_PROBLEMS].tolist()
        ]
        total = nothing_published(len(pairs), "repeated key")
        if (guessed := self._plan.guessed_key) is not None:
            total += f"; the key is {guessed.name}, the only id feature: --key names another"
        return Refused(problems, total)

    def _place(self, row: int) -> str:
        """Return the file and the line of a row; `row` counts all good rows from 0."""
        for file, numbers in self._numbers:
            if row < len(numbers):
                return file.place(int(numbers[row]))
            row -= len(numbers)
        raise IndexError(row)


def _publish(plan: PublishPlan, rows: _Rows, table: int | None) -> ListedTable:
    """Publish the rows; a delta changes `table`, or the newest table when it is complete."""
    try:
        if plan.changed is None:
            return publish_table(plan.table, rows.fill)
        return publish_delta(plan.table, rows.fill_delta, table, rows.check_delta)
    except DuplicateKeys as error:
        raise rows.duplicates(error) from error


def _report(plan: PublishPlan, listed: ListedTable, took_s: float, unknown_removed: int) -> None:
    """Print what has been published, and what a careful reader should know."""
    folder = listed.folder if plan.changed is None else listed.delta_folder(len(listed.deltas))
    table = read_description(folder)
    output = Output()
    removed = ""
    if table.removed:
        removed = f", {counted(table.removed, 'removed key')}"
        removed += f" ({unknown_removed:,} unknown)" if unknown_removed else ""
    output.print_line(
        f"published {table.label} of {table.model}: {counted(table.rows, 'row')}{removed}, "
        f"{len(table.columns)} features, key {table.key.name} ({table.key.type}), "
        f"{table.size / 1e6:.1f} MB, encoded for version {plan.artifact.version}, in {took_s:.1f} s"
    )
    for name, count in plan.encoder.unknown_ids.items():
        output.print_line(f'feature "{name}": {counted(count, "unknown id")}')
    _doubt_key(plan)
    if plan.defaulted:
        output.print_line(
            f"without a column, so always the default: {joined_names(plan.defaulted)}"
        )
    if plan.unused:
        hints = "".join(did_you_mean(name, plan.defaulted) for name in plan.unused[:1])
        output.print_line(f"columns not used: {joined_names(plan.unused)}{hints}")


def _doubt_key(plan: PublishPlan) -> None:
    """Warn if the key was guessed and looks like a category, such as a country, not like a name."""
    key, kind = plan.guessed_key, plan.table.kind
    if key is None or key.vocabulary_size > _MOST_CATEGORIES:
        return
    columns = f" (columns not used: {joined_names(plan.unused)})" if plan.unused else ""
    complain(
        f"warning: the key is {key.name}, the only id feature, which has {key.vocabulary_size:,} "
        f"values at most: if {kind} have another key, publish again with --key and "
        f"--force{columns}; --key {key.name} omits this warning"
    )


def _check_fold(listed: ListedTable) -> None:
    """Say so if the last delta ends the fold of a table that was published meanwhile."""
    table = read_description(listed.folder)
    delta = read_description(listed.delta_folder(len(listed.deltas)))
    if table.fold is not None and not delta.keeps(table.fold):
        complain(
            not_folded(
                f"{table.label} was published meanwhile, folded for version {table.fold.version}"
            )
        )


@contextmanager
def _progress(files: Sequence[TableFile]) -> Iterator[Progress | None]:
    """Yield a progress bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        progress.add_task("publishing", total=sum(file.size for file in files))
        yield progress
