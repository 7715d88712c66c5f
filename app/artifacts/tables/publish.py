"""Write tables and deltas: completely, or not at all.

A table is written under a temporary name and renamed to the next number, so readers see all of it
or nothing, and a publisher that is killed leaves nothing that could serve. Rows go to the disk as
they come; keys stay in memory until the index is built.
"""

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from app.artifacts.tables.description import (
    FOLDED,
    KEY_HASHES,
    KEY_PLACES,
    KEY_ROWS,
    KEY_STARTS,
    KEYS,
    MOST_ROWS,
    PIECE,
    ROWS,
    TABLE,
    Base,
    FileName,
    Fold,
    Pieces,
    TableColumn,
    TableDescription,
    TableKey,
    TableKind,
    UnknownPolicy,
)
from app.artifacts.tables.keys import (
    LONGEST_KEY,
    Int64,
    Int64Index,
    PaddedStrings,
    StringIndex,
    build,
    pad,
)
from app.artifacts.tables.reader import (
    ListedTable,
    Records,
    open_table,
    read_description,
    tables_of,
)
from app.artifacts.unnamed_folder import unnamed_folder, write_file
from app.errors import ArtifactInvalid
from app.files import read_small_file

_COMPACT_ROWS = 65_536  # that are copied at a time
_MOST_GAPS = 100  # that are filled; each one takes a few milliseconds
_LONGEST_NUMBER = 17  # bytes of the file that keeps the last number
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What a new table will be, before its rows are known.

    Attributes:
        model: the folder of the model in the store.
        kind: whose features it holds.
        key: names a row.
        columns: the features.
        defaults: `[1]` the row of the defaults.
        sent: features that every request sends.
        unknown: what happens to a request with an unknown key.
        max_age_s: the age (s) from which on the newest data is too old to serve.
        source: the file that it is made of.
        created: of the newest data; None for now.
    """

    model: Path
    kind: TableKind
    key: TableKey
    columns: tuple[TableColumn, ...]
    defaults: Records
    sent: tuple[str, ...] = ()
    unknown: UnknownPolicy = "error"
    max_age_s: float | None = None
    source: str = ""
    created: datetime | None = None

    @property
    def folder(self) -> Path:
        """The folder of the tables."""
        return self.model / self.kind


class DuplicateKeys(ArtifactInvalid):
    """Rows have the same key. `pairs` has the first row and another one, int64 `[d, 2]`."""

    def __init__(self, pairs: Int64) -> None:
        super().__init__(f"{len(pairs)} rows repeat the key of an earlier row")
        self.pairs = pairs


@dataclass(slots=True)
class TableWriter:
    """Writes the files of one table or delta into a folder that has no name yet."""

    plan: TablePlan
    folder: Path
    rows: int = 0
    fold: Fold | None = None
    _file: "_HashedFile" = field(init=False)
    _folded: "_HashedFile | None" = None
    _keys: list[Int64 | PaddedStrings] = field(default_factory=list)
    _removed: list[Int64 | PaddedStrings] = field(default_factory=list)
    _files: dict[FileName, Pieces] = field(default_factory=dict)
    _index: Int64Index | StringIndex = field(init=False)

    def __enter__(self) -> Self:
        self._file = _HashedFile(self.folder / ROWS)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.abandon()
        if self._folded is not None:
            self._folded.abandon()

    def add(self, keys: Int64 | Sequence[str], records: Records) -> None:
        """Append rows and their keys, `[n]` each.

        Raises:
            ArtifactInvalid: the table would have too many rows, or a key is too long.
            OSError: the disk is full, for instance.
        """
        self.rows += len(records)
        if self.rows > MOST_ROWS:
            raise ArtifactInvalid(f"a table has at most {MOST_ROWS} rows")
        self._keys.append(_checked(keys))
        self._file.write(np.ascontiguousarray(records).view(np.uint8))

    def begin_fold(self, fold: Fold) -> None:
        """Let the table be folded: `add_folded` follows, for every row.

        Raises:
            OSError: the file cannot be written.
        """
        self.fold = fold
        self._folded = _HashedFile(self.folder / FOLDED)

    def give_up_fold(self) -> None:
        """Let the table not be folded after all."""
        if self._folded is not None:
            self._folded.abandon()
            (self.folder / FOLDED).unlink()
        self.fold = self._folded = None

    def add_folded(self, folded: npt.NDArray[np.float32]) -> None:
        """Append the folded part of the next rows, `[n, H]`, in the order of `add`.

        Raises:
            OSError: the disk is full, for instance.
        """
        assert self._folded is not None
        self._folded.write(np.ascontiguousarray(folded, "<f4").view(np.uint8))

    def written(self) -> Records:
        """Return the rows that were added, mapped from their file: `[rows]`, read-only.

        Raises:
            OSError: the disk is full, for instance.
        """
        dtype = self.plan.defaults.dtype
        if self.rows == 0:
            return np.zeros(0, dtype)
        self._file.flush()
        return np.memmap(self.folder / ROWS, dtype, "r", shape=(self.rows,))

    def remove(self, keys: Int64 | Sequence[str]) -> None:
        """Let a delta remove keys."""
        self._removed.append(_checked(keys))

    def finish(self) -> None:
        """Write the index.

        Raises:
            DuplicateKeys: two rows have the same key.
            ArtifactInvalid: the keys cannot be indexed.
            OSError: a file cannot be written.
        """
        self._file.write(self.plan.defaults.view(np.uint8))
        self._files = {ROWS: self._file.close()}
        if self._folded is not None:
            self._files[FOLDED] = self._folded.close()
        removed = sum(len(each) for each in self._removed)
        rows = np.arange(self.rows + removed, dtype=np.int32)
        rows[self.rows :] = -1
        none = np.zeros(0, np.int64) if self.plan.key.type == "int64" else pad([])
        built = build([none, *self._keys, *self._removed], rows)
        if len(built.same):
            raise DuplicateKeys(built.same)
        self._index = index = built.index
        arrays: dict[FileName, npt.NDArray[Any]] = {
            KEY_ROWS: index.rows,
            KEY_STARTS: index.starts,
        }
        if isinstance(index, Int64Index):
            arrays[KEYS] = index.keys
        else:
            arrays |= {KEYS: index.words, KEY_PLACES: index.places, KEY_HASHES: index.hashes}
        for name, array in arrays.items():
            file = _HashedFile(self.folder / name)
            try:
                file.write(array.view(np.uint8))
                self._files[name] = file.close()
            finally:
                file.abandon()

    def describe(self, version: int, base: Base | None = None) -> None:
        """Write `table.json`."""
        index = self._index
        description = TableDescription(
            kind=self.plan.kind,
            model=self.plan.model.name,
            version=version,
            base=base,
            id=secrets.token_hex(16),
            key=self.plan.key,
            rows=self.rows,
            removed=len(index.rows) - self.rows,
            bits=index.bits,
            seed=index.seed,
            columns=self.plan.columns,
            sent=self.plan.sent,
            unknown=self.plan.unknown,
            max_age_s=self.plan.max_age_s,
            fold=self.fold,
            created=self.plan.created or datetime.now(UTC).replace(microsecond=0),
            source=self.plan.source,
            files=self._files,
        )
        # Servers from before there was a fold read tables without one.
        left_out = {"fold"} if description.fold is None else None
        content = description.model_dump_json(indent=2, exclude=left_out).encode() + b"\n"
        write_file(self.folder / TABLE, content)
        _sync_folder(self.folder)


Fill = Callable[[TableWriter], None]
"""Adds the rows of a table or a delta to its writer."""


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
    folder, kind = writer.plan.folder, writer.plan.kind
    last = writer.plan.model / f".{kind}.last"
    version = max(_numbers(folder), default=0)
    version = max(version, _last_number(last))
    while True:
        version += 1
        writer.describe(version)
        if _rename(writer.folder, folder / str(version)):
            _keep_number(last, version, writer.folder.parent)
            return ListedTable(kind, version, folder / str(version))


def _last_number(file: Path) -> int:
    """Return the number that was given last; 0 if nobody knows."""
    try:
        text = read_small_file(file, max_bytes=_LONGEST_NUMBER).decode("ascii").strip()
    except (OSError, ValueError, ArtifactInvalid):
        return 0
    return int(text) if text.isdecimal() else 0


def _keep_number(file: Path, number: int, place: Path) -> None:
    """Remember a number when its table is removed by hand: servers never go back to a lower one.

    The table is published without it, where only its own folder may be written.
    """
    written = place / file.name
    with suppress(OSError):
        write_file(written, f"{number}\n".encode())
        written.replace(file)


def publish_delta(plan: TablePlan, fill: Fill, table: int | None = None) -> ListedTable:
    """Write a delta of a table, and return the table with its deltas.

    Args:
        plan: as that of the table.
        fill: adds the rows to the writer, and the keys to remove.
        table: the number of the table (default: the newest when the delta is complete).

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
            found = read_description(listed.folder)
            if (found.columns, found.key) != (plan.columns, plan.key):
                raise ArtifactInvalid(f"{found.label} has other columns than the delta")
            base = Base(version=found.version, id=found.id)
            last = _last_delta(listed)
            number = max(len(listed.deltas), _last_number(last)) + 1
            _check_removed(listed, number)
            for removed in range(len(listed.deltas) + 1, number):
                _fill_gap(plan, listed, removed, base)
            _name_delta(writer, listed, number, base)
            _keep_number(last, number, written.parent)
            return find_table(plan.model, plan.kind, listed.version)


def _check_removed(listed: ListedTable, number: int) -> None:
    """Check that few deltas before a new one were removed by hand.

    Raises:
        ArtifactInvalid: says what to do.
    """
    if number - len(listed.deltas) > _MOST_GAPS:
        raise ArtifactInvalid(
            f"{listed.kind} {listed.version}: deltas {len(listed.deltas) + 1} to {number - 1} were "
            f"removed ({listed.kind}/{_last_delta(listed).name} has the last number): restore them,"
            " or publish a new table"
        )


def _last_delta(listed: ListedTable) -> Path:
    """Return the file that keeps the number of a table's last delta."""
    return listed.folder.with_name(f".{listed.version}.delta.last")


def _fill_gap(plan: TablePlan, listed: ListedTable, number: int, base: Base) -> None:
    """Write a delta that changes nothing in place of one that was removed by hand.

    Its number must not get another content: servers may have applied the first. No number may be
    missing either.
    """
    with unnamed_folder(plan.folder) as written, TableWriter(plan, written) as writer:
        writer.finish()
        _name_delta(writer, listed, number, base)


def _name_delta(writer: TableWriter, listed: ListedTable, number: int, base: Base) -> None:
    target = listed.delta_folder(number)
    target.parent.mkdir(exist_ok=True)
    writer.describe(number, base)
    while not _rename(writer.folder, target):
        # Something without a table.json has this number: a copy that was interrupted.
        _set_aside(target)


def find_table(model: Path, kind: TableKind, version: int | None = None) -> ListedTable:
    """Return a table of a model; by default the newest.

    Raises:
        ArtifactInvalid: there is none.
        OSError: the folder cannot be read.
    """
    listed = tables_of(model, kind)
    found = [each for each in listed if version in (None, each.version)]
    if not found:
        known = ", ".join(str(each.version) for each in listed) or "none"
        wanted = kind if version is None else f"{kind} {version}"
        raise ArtifactInvalid(f"{model.name} has no {wanted} (tables: {known})")
    return found[-1]


def _check_gap(listed: ListedTable) -> None:
    """Check that no delta is missing: a new one in its place would come before older ones.

    Raises:
        ArtifactInvalid: names the delta.
    """
    if listed.gap:
        raise ArtifactInvalid(f"{listed.kind} {listed.version}: {listed.gap}")


def compact(model: Path, kind: TableKind, version: int | None = None) -> ListedTable:
    """Write a table and its deltas as a new table, and return that.

    The new table is as old as its newest data. Deltas that others publish meanwhile wait.

    Raises:
        ArtifactInvalid: the table or a delta is wrong, a delta is missing, or there is none.
        OSError: the store cannot be read or written.
    """
    folder = model / kind
    with _locked(folder):
        listed = find_table(model, kind, version)
        _check_gap(listed)
        if not listed.deltas:
            raise ArtifactInvalid(f"{kind} {listed.version} has no deltas")
        table = open_table(listed, model.name)
        found = table.description
        plan = TablePlan(
            model=model,
            kind=kind,
            key=found.key,
            columns=found.columns,
            defaults=table.take(np.array([-1])),
            sent=found.sent,
            unknown=found.unknown,
            max_age_s=found.max_age_s,
            source=f"{kind} {table.label}",
            created=table.created,
        )
        with unnamed_folder(folder) as written, TableWriter(plan, written) as writer:
            if table.fold is not None:
                writer.begin_fold(table.fold)
            for keys, positions in table.batches(_COMPACT_ROWS):
                writer.add(keys, table.take(positions))
                if table.fold is not None:
                    writer.add_folded(table.take_folded(positions))
            writer.finish()
            return _name_table(writer)


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
    with unnamed_folder(folder.parent.parent if folder.parent.suffix else folder.parent) as place:
        folder.rename(place / folder.name)


def _rename(written: Path, target: Path) -> bool:
    """Give a folder its name; return False if another one has it."""
    try:
        written.rename(target)
    except OSError:
        if not target.exists():
            raise
        return False
    _sync_folder(target.parent)
    return True


def _numbers(folder: Path) -> list[int]:
    """Return every number that a table or its deltas has, complete or not."""
    names = [each.name.removesuffix(".delta") for each in folder.iterdir()]
    return [int(name) for name in names if name.isascii() and name.isdecimal()]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


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


def _checked(keys: Int64 | Sequence[str]) -> Int64 | PaddedStrings:
    """Return keys as the index takes them.

    Raises:
        ArtifactInvalid: a key is too long.
    """
    if isinstance(keys, np.ndarray):
        return keys.astype(np.int64)
    if len(keys) and max(map(len, keys)) > LONGEST_KEY:
        raise ArtifactInvalid(f"a key has more than {LONGEST_KEY} characters")
    return pad(keys)


class _HashedFile:
    """A new file whose pieces are hashed while they are written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._size = 0
        self._digests: list[str] = []
        self._hasher = hashlib.sha256()

    def write(self, content: npt.NDArray[np.uint8]) -> None:
        """Append bytes."""
        view = content.reshape(-1).data
        while len(view):
            part = view[: PIECE - self._size % PIECE]
            self._hasher.update(part)
            self._file.write(part)
            self._size += len(part)
            view = view[len(part) :]
            if self._size % PIECE == 0:
                self._next_piece()

    def _next_piece(self) -> None:
        self._digests.append(self._hasher.hexdigest())
        self._hasher = hashlib.sha256()

    def flush(self) -> None:
        """Let readers of the file find all that was written."""
        self._file.flush()

    def abandon(self) -> None:
        """Close the file, if it is open, however little of it is there."""
        with suppress(OSError):  # its last bytes do not fit onto the disk
            self._file.close()

    def close(self) -> Pieces:
        """Wait until the disk has the file; return its digests."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._size % PIECE:
            self._next_piece()
        return Pieces(size=self._size, sha256=tuple(self._digests))
