"""Publish tables and deltas, completely or not at all; compact and remove them.

A table is written under a temporary name and renamed to the next number, so readers see all of it
or nothing, and a publisher that is killed leaves nothing that could serve.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from app.artifacts.tables.description import Base, TableKind, read_description
from app.artifacts.tables.keys import KeyIndex
from app.artifacts.tables.listing import ListedTable, find_table
from app.artifacts.tables.table import Table, open_table
from app.artifacts.tables.writer import TablePlan, TableWriter
from app.artifacts.unnamed_folder import name_folder, unnamed_folder, write_file
from app.errors import ArtifactInvalid
from app.files import read_small_file

_COMPACT_ROWS = 65_536  # that are copied at a time
_MOST_GAPS = 100  # that are filled; each one takes a few milliseconds
_LONGEST_NUMBER = 17  # bytes of the file that keeps the last number
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

Fill = Callable[[TableWriter], None]
"""Adds the rows of a table or a delta to its writer."""
Check = Callable[[ListedTable], None]
"""Raises an error if a table must not be compacted."""
CheckDelta = Callable[[ListedTable, KeyIndex], None]
"""Raises an error if a table must not get a delta with these keys."""


def publish_table(plan: TablePlan, fill: Fill) -> ListedTable:
    """Write a table under the next number, and return it.

    Raises:
        DuplicateKeys: two rows have the same key.
        ArtifactInvalid: the rows cannot be a table.
        OSError: the store cannot be written.
    """
    with unnamed_folder(plan.folder) as written, TableWriter(plan, written) as writer:
        fill(writer)
        writer.finish()
        with _locked(plan.folder):
            return _name_table(writer)


def _name_table(writer: TableWriter) -> ListedTable:
    """Describe a written table and give it the next number that no table has had."""
    folder, kind = writer.plan.folder, writer.plan.kind
    last = writer.plan.model / f".{kind}.last"
    version = max([_last_number(last), *_numbers(folder)])
    while True:
        version += 1
        writer.describe(version)
        if name_folder(writer.folder, folder / str(version)):
            _keep_number(last, version, writer.folder.parent)
            return ListedTable(kind, version, folder / str(version))


def _last_number(file: Path) -> int:
    """Return the number that was given last; 0 if nobody knows."""
    try:
        content = read_small_file(file, max_bytes=_LONGEST_NUMBER)
        number = content.decode("ascii").strip()
    except (OSError, ValueError, ArtifactInvalid):
        return 0
    return int(number) if number.isdecimal() else 0


def _keep_number(file: Path, number: int, temporary: Path) -> None:
    """Keep the last number in a file, so that it stays known when its table is removed by hand.

    Servers never go back to a lower number. Where the file cannot be written, the table is
    published without it.

    Args:
        file: which has the number.
        number: the one that was given last.
        temporary: a folder in which the file is written before it replaces the former one.
    """
    written = temporary / file.name
    with suppress(OSError):
        write_file(written, f"{number}\n".encode())
        written.replace(file)


def publish_delta(
    plan: TablePlan, fill: Fill, table: int | None = None, check: CheckDelta | None = None
) -> ListedTable:
    """Write a delta of a table, and return the table with its deltas.

    Args:
        plan: as that of the table.
        fill: adds the rows to the writer, and the keys to remove.
        table: the number of the table (default: the newest when the delta is complete).
        check: is called with the table, while it can get no other delta.

    Raises:
        DuplicateKeys: a key is there twice.
        ArtifactInvalid: there is no such table, it has other columns, or a delta is missing.
        OSError: the store cannot be written.
    """
    with unnamed_folder(plan.folder) as written, TableWriter(plan, written) as writer:
        fill(writer)
        writer.finish()
        with _locked(plan.folder):
            listed = find_table(plan.model, plan.kind, table)
            _check_gap(listed)
            description = read_description(listed.folder)
            if (description.columns, description.key) != (plan.columns, plan.key):
                raise ArtifactInvalid(f"{description.label} has other columns than the delta")
            if check is not None:
                check(listed, writer.index)
            base = Base(version=description.version, id=description.id)
            last = _last_delta(listed)
            number = max(len(listed.deltas), _last_number(last)) + 1
            _check_removed(listed, number)
            for removed in range(len(listed.deltas) + 1, number):
                _fill_gap(plan, listed, removed, base)
            _name_delta(writer, listed, number, base)
            _keep_number(last, number, written.parent)
            return find_table(plan.model, plan.kind, listed.version)


def _check_removed(listed: ListedTable, number: int) -> None:
    """Check that few of the deltas before delta `number` were removed by hand.

    Raises:
        ArtifactInvalid: says what to do.
    """
    if number - len(listed.deltas) > _MOST_GAPS:
        raise ArtifactInvalid(
            f"{listed.label}: deltas {len(listed.deltas) + 1} to {number - 1} were "
            f"removed ({listed.kind}/{_last_delta(listed).name} has the last number): restore them,"
            " or publish a new table"
        )


def _last_delta(listed: ListedTable) -> Path:
    """Return the file that keeps the number of a table's last delta."""
    return listed.folder.with_name(f".{listed.version}.delta.last")


def _fill_gap(plan: TablePlan, listed: ListedTable, number: int, base: Base) -> None:
    """Write a delta that changes nothing in place of one that was removed by hand.

    No number may be missing, and a removed one must not get other rows: a server may have applied
    those that it had.
    """
    with unnamed_folder(plan.folder) as written, TableWriter(plan, written) as writer:
        writer.finish()
        _name_delta(writer, listed, number, base)


def _name_delta(writer: TableWriter, listed: ListedTable, number: int, base: Base) -> None:
    """Describe a written delta and give it its number."""
    target = listed.delta_folder(number)
    target.parent.mkdir(exist_ok=True)
    writer.describe(number, base)
    while not name_folder(writer.folder, target):
        # Something without a table.json has this number: a copy that was interrupted.
        _set_aside(target)


def _check_gap(listed: ListedTable) -> None:
    """Check that no delta is missing: a new one with its number would come before older ones.

    Raises:
        ArtifactInvalid: names the delta.
    """
    if listed.gap:
        raise ArtifactInvalid(f"{listed.label}: {listed.gap}")


def compact(
    model: Path, kind: TableKind, version: int | None = None, check: Check | None = None
) -> ListedTable:
    """Write a table and its deltas as a new table, and return that.

    The new table is as old as its newest data. Tables and deltas that others publish meanwhile
    wait.

    Args:
        model: the model's folder in the store.
        kind: `items` or `users`.
        version: the number of the table (default: the newest).
        check: is called with the table, while no other can be published.

    Raises:
        ArtifactInvalid: the table or a delta is wrong, a delta is missing, or there is none.
        OSError: the store cannot be read or written.
    """
    folder = model / kind
    with _locked(folder):
        listed = find_table(model, kind, version)
        _check_gap(listed)
        if check is not None:
            check(listed)
        if not listed.deltas:
            raise ArtifactInvalid(f"{listed.label} has no deltas")
        table = open_table(listed, model.name)
        if table.rows == 0:
            raise ArtifactInvalid(f"{listed.label} has no rows: its deltas remove every key")
        former = table.description
        plan = TablePlan(
            model=model,
            kind=kind,
            key=former.key,
            columns=former.columns,
            defaults=table.take(np.array([-1])),
            sent=former.sent,
            unknown=former.unknown,
            max_age_s=former.max_age_s,
            source=f"{kind}/{table.label}",
            created=table.created,
        )
        with unnamed_folder(folder) as written, TableWriter(plan, written) as writer:
            _copy_rows(table, writer)
            writer.finish()
            return _name_table(writer)


def _copy_rows(table: Table, writer: TableWriter) -> None:
    if table.fold is not None:
        writer.begin_fold(table.fold)
    for keys, positions in table.batches(_COMPACT_ROWS):
        writer.add(keys, table.take(positions))
        if table.fold is not None:
            writer.add_folded(table.take_folded(positions))


def remove(listed: ListedTable) -> None:
    """Remove a table and its deltas. A process that has opened it keeps it.

    Raises:
        OSError: the store cannot be written.
    """
    with _locked(listed.folder.parent):
        _set_aside(listed.folder)
        deltas = listed.delta_folder(1).parent
        if deltas.exists():
            _set_aside(deltas)
        _last_delta(listed).unlink(missing_ok=True)


def _set_aside(folder: Path) -> None:
    """Remove a folder at once for those who list it, then its files."""
    is_delta = bool(folder.parent.suffix)  # the parent is `<n>.delta`, where only deltas may be
    parent = folder.parent.parent if is_delta else folder.parent
    with unnamed_folder(parent) as temporary:
        folder.rename(temporary / folder.name)


def _numbers(folder: Path) -> list[int]:
    """Return every number that a table or its deltas has, complete or not."""
    names = [path.name.removesuffix(".delta") for path in folder.iterdir()]
    return [int(name) for name in names if name.isascii() and name.isdecimal()]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time give numbers; without locks, renaming still keeps them apart."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
