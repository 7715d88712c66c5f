"""Verify and map the tables of a model; `Table` is what requests read.

Files are mapped into memory, so all processes of a host share them, and the bytes that are hashed
are the bytes that serve. Every size, hash and index is checked before a table is used. A file must
not change afterwards: publish another table instead. A file that is removed stays until the last
process that uses it ends; a file that is cut short ends those processes (SIGBUS).
"""

import errno
import hashlib
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from app.artifacts.columns import Column
from app.artifacts.manifest import Manifest, first_problem
from app.artifacts.store import Fingerprint, fingerprint
from app.artifacts.tables.description import (
    FOLDED,
    KEY_HASHES,
    KEY_PLACES,
    KEY_ROWS,
    KEY_STARTS,
    KEYS,
    PIECE,
    ROWS,
    TABLE,
    Base,
    FileName,
    Fold,
    TableDescription,
    TableKind,
    UnknownPolicy,
    incompatibilities,
)
from app.artifacts.tables.keys import Int64, Int64Index, KeyIndex, StringIndex
from app.errors import ArtifactInvalid, TableIncomplete
from app.files import read_small_file

Records = npt.NDArray[np.void]
Folded = npt.NDArray[np.float32]
"""What `Program.fold` makes of rows, `[n, H]`."""
_Key = int | str

Stamp = tuple[int, int, int]
"""The inode, the size and the time of the last change (ns) of a `table.json`."""

LARGEST_DESCRIPTION = 16 * 2**20  # bytes
_HASHING_THREADS = min(4, os.cpu_count() or 1)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NUMBER = re.compile(r"[1-9][0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class ListedTable:
    """A table in the store that is not read yet.

    Attributes:
        kind: `items` or `users`.
        version: its number.
        folder: of its files.
        deltas: the numbers of its deltas: 1, 2, … without a gap.
        stranded: the numbers of the deltas after a gap, which are not applied.
        stamps: of each of `deltas`; another one may be another delta with the same number.
    """

    kind: TableKind
    version: int
    folder: Path
    deltas: tuple[int, ...] = ()
    stranded: tuple[int, ...] = ()
    stamps: tuple[Stamp, ...] = ()

    @property
    def gap(self) -> str:
        """Why deltas are not applied, and what to do; "" if all of them are."""
        if not self.stranded:
            return ""
        missing, place = len(self.deltas) + 1, f"{self.kind}/{self.version}.delta"
        first, *others = self.stranded
        more = f" and {len(others)} more" if others else ""
        return (
            f"delta {missing} is missing, so delta {first}{more} will not be applied: restore "
            f"{place}/{missing}, or remove the deltas after it"
        )

    def delta_folder(self, number: int) -> Path:
        """Return the folder of a delta."""
        return self.folder.with_name(f"{self.version}.delta") / str(number)

    def fingerprint(self) -> Fingerprint:
        """Return what tells changed files of the table apart; empty if it has been removed.

        Raises:
            OSError: it cannot be read now.
        """
        return fingerprint(self.folder)

    def delta_fingerprint(self, number: int) -> Fingerprint:
        """Return what tells changed files of a delta apart; empty if it has been removed.

        Raises:
            OSError: it cannot be read now.
        """
        return fingerprint(self.delta_folder(number))


def tables_of(model: Path, kind: TableKind) -> list[ListedTable]:
    """Return the tables of a model, by version.

    A folder is a table once its `table.json` is there. A delta after a gap is stranded: deltas are
    applied in their order.

    Args:
        model: the model's folder in the store; it may be missing.
        kind: `items` or `users`.

    Raises:
        OSError: the folder cannot be read.
    """
    folder = model / kind
    return [_listed(kind, folder, number) for number in sorted(_complete(folder))]


def _listed(kind: TableKind, folder: Path, version: int) -> ListedTable:
    stamps = _complete(folder / f"{version}.delta")
    numbers = sorted(stamps)
    applied = sum(number == place for place, number in enumerate(numbers, 1))
    return ListedTable(
        kind,
        version,
        folder / str(version),
        tuple(numbers[:applied]),
        tuple(numbers[applied:]),
        tuple(stamps[number] for number in numbers[:applied]),
    )


def missing_table(model: Path, manifest: Manifest) -> str:
    """Return why servers refuse a version, for it needs a table of the store; "" if it has all.

    Args:
        model: the model's folder in the store.
        manifest: of the version.

    Raises:
        OSError: the folder cannot be read.
    """
    kinds: tuple[TableKind, ...] = ("items", "users")
    for kind in kinds:
        reason = ""
        for listed in tables_of(model, kind):
            found = _unfit(listed, manifest)
            if not found:
                reason = ""
                break
            reason = f"needs a table of {kind}: {kind}/{listed.version}: {found}"
        if reason:
            return reason
    return ""


def _unfit(listed: ListedTable, manifest: Manifest) -> str:
    """Return why a table cannot be used by a version; "" if it can."""
    try:
        return "; ".join(incompatibilities(read_description(listed.folder), manifest))
    except (ArtifactInvalid, OSError) as error:
        return str(error)


def _complete(folder: Path) -> dict[int, Stamp]:
    """Return the numbers of the folders that have a `table.json`, and its stamp."""
    try:
        names = os.listdir(folder)  # noqa: PTH208  (names only, twice as fast)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = {}
    for name in names:
        if _NUMBER.fullmatch(name):
            try:
                status = (folder / name / TABLE).stat()
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
            else:
                found[int(name)] = status.st_ino, status.st_size, status.st_ctime_ns
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """The mapped files of one table or delta.

    Attributes:
        description: of the files.
        records: `[rows + 1]`; the last one is the row of the defaults.
        index: of the keys.
        folded: `[rows, H]`; None if the table or delta is not folded.
    """

    description: TableDescription
    records: Records
    index: KeyIndex
    folded: Folded | None = None


@dataclass(slots=True, eq=False)
class _Room:
    """Rows that views share, each the first ones; the first `used` are never written again."""

    records: npt.NDArray[Any]
    used: int = 0

    def extended(self, count: int, rows: npt.NDArray[Any]) -> "_Room":
        """Return a room whose first `count` records are the same, and then come `rows`.

        Doubling makes a record be copied twice at most, on average.
        """
        room, needed = self, count + len(rows)
        if count < self.used or needed > len(self.records):
            size = (max(64, 2 * needed), *self.records.shape[1:])
            room = _Room(np.zeros(size, self.records.dtype))
            room.records[:count] = self.records[:count]
        room.records[count:needed] = rows
        room.used = needed
        return room


@dataclass(frozen=True, slots=True, eq=False)
class _Changes:
    """What deltas change.

    Attributes:
        positions: the position of each changed key; -1 for a removed key.
        room: the rows of this view and of later ones.
        records: `[count]` the rows of this view.
        rows: how many keys are in the table now.
        folded: the room and the rows `[count, H]` of what is folded; None if a part is not.
    """

    positions: Mapping[_Key, int]
    room: _Room
    records: Records
    rows: int
    folded: tuple[_Room, Folded] | None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Table:
    """A verified table with the deltas that have been applied; never changes.

    A position stands for a row. Positions are valid for this object only. Any thread may read.

    Attributes:
        base: the files of the table.
        created: when the newest data was published.
        size: of the files, all deltas included (bytes).
        delta: the number of the last delta; 0 without one.
        delta_ids: the `id` of each delta, in their order.
    """

    base: Segment
    created: datetime
    size: int
    delta: int = 0
    delta_ids: tuple[str, ...] = ()
    _changes: _Changes | None = None

    @property
    def description(self) -> TableDescription:
        """`table.json` of the table, without deltas."""
        return self.base.description

    @property
    def kind(self) -> TableKind:
        """`items` or `users`."""
        return self.description.kind

    @property
    def version(self) -> int:
        """The number of the table."""
        return self.description.version

    @property
    def label(self) -> str:
        """`3`, or `3.2` with its second delta."""
        return f"{self.version}.{self.delta}" if self.delta else str(self.version)

    @property
    def key(self) -> str:
        """The name of the key in requests; it need not be a feature of the model."""
        return self.description.key.name

    @property
    def key_type(self) -> type[int] | type[str]:
        """The Python type of a key."""
        return int if self.description.key.type == "int64" else str

    @property
    def unknown(self) -> UnknownPolicy:
        """What happens to a request with a key that is not in the table."""
        return self.description.unknown

    @property
    def max_age_s(self) -> float | None:
        """The age (s) of `created` from which on the table is too old to serve."""
        return self.description.max_age_s

    @property
    def rows(self) -> int:
        """How many keys the table has."""
        return self.description.rows if self._changes is None else self._changes.rows

    @property
    def fold(self) -> Fold | None:
        """The program that all rows are folded for, those of deltas too; None if some are not."""
        if self._changes is not None and self._changes.folded is None:
            return None
        return self.description.fold

    @property
    def columns(self) -> Sequence[str]:
        """The features that the table holds."""
        return self.description.record.names or ()

    @property
    def changed_records(self) -> Records:
        """The rows that deltas brought, `[c]`: their positions follow those of `base.records`."""
        return self.base.records[:0] if self._changes is None else self._changes.records

    def incompatibilities(self, manifest: Manifest) -> list[str]:
        """Return every reason why a version of a model cannot use the table; none if it can."""
        return incompatibilities(self.description, manifest)

    def find(self, keys: Int64 | Sequence[str]) -> Int64:
        """Return the position of each key, int64 `[n]`; -1 for an unknown key.

        Args:
            keys: int64 `[n]`, or strings, as `key_type` says.
        """
        positions = self.base.index.find(keys)
        if self._changes is not None:
            listed = keys.tolist() if isinstance(keys, np.ndarray) else keys
            changed = list(map(self._changes.positions.get, listed))
            if changed.count(None) < len(changed):
                for place, position in enumerate(changed):
                    if position is not None:
                        positions[place] = position
        return positions

    def take(self, positions: Int64) -> Records:
        """Return rows as records `[n]`: `take(p)["price"]` is the column of a feature, a view.

        500 rows of 64 numbers take 13 µs.

        Args:
            positions: int64 `[n]` from `find`; -1 is the row of the defaults: zeros for a feature
                that has none.
        """
        base = self.base.records
        changes = self._changes
        if changes is None:
            return base.take(positions, mode="wrap")  # -1 is the last record
        changed = np.flatnonzero(positions >= len(base))
        if len(changed) == 0:
            return base.take(positions, mode="wrap")
        taken = base.take(np.minimum(positions, len(base) - 1), mode="wrap")
        taken[changed] = changes.records.take(positions[changed] - len(base))
        return taken

    def take_folded(self, positions: Int64, out: Folded | None = None) -> Folded:
        """Return the folded part of rows, `[n, H]`, of a table that is folded.

        Args:
            positions: int64 `[n]` from `find`; none of them is -1.
            out: float32 `[n, H]`, where to write; it is returned.
        """
        base, changes = self.base.folded, self._changes
        assert base is not None
        if changes is None:
            return base.take(positions, 0, out, "wrap")
        assert changes.folded is not None
        rows, (_, new) = self.description.rows, changes.folded
        start = rows + 1  # positions of deltas follow those of the records
        changed = np.flatnonzero(positions >= start)
        if len(changed) == 0:
            return base.take(positions, 0, out, "wrap")
        if rows == 0:
            return new.take(positions - start, 0, out, "wrap")
        taken = base.take(np.minimum(positions, rows - 1), 0, out, "wrap")
        taken[changed] = new[positions[changed] - start]
        return taken

    def newest(self, count: int) -> Int64:
        """Return positions of up to `count` rows: of deltas, the last first, then of the table.

        Those of the table are evenly spaced.
        """
        rows, found = self.description.rows, np.zeros(0, np.int64)
        if self._changes is not None:
            start = rows + 1
            alive = sorted(p for p in self._changes.positions.values() if p >= start)
            found = np.array(alive[: -count - 1 : -1], np.int64)
        left = min(count - len(found), rows)
        spaced = np.arange(left, dtype=np.int64) * rows // max(1, left)
        return np.concatenate([found, spaced])

    def gather(self, name: str, positions: Int64, out: Column | None = None) -> Column:
        """Return one encoded column of rows, `[n, …]`; for several columns use `take`.

        Args:
            name: of a feature in `columns`.
            positions: as in `take`.
            out: where to write the column; it is returned.
        """
        if self._changes is None:
            column: Column = self.base.records[name][positions]
        else:
            column = self.take(positions)[name]
        if out is None:
            return column
        out[...] = column
        return out

    def keys(self, start: int, stop: int) -> list[int] | list[str]:
        """Return the keys of some of the table's rows, in the order of the file it was made of.

        Rows of deltas and removed keys are left out. It takes milliseconds.
        """
        rows = self.base.index.rows
        entries = np.flatnonzero((rows >= start) & (rows < stop))
        found = self.base.index.keys_at(entries[np.argsort(rows[entries])])
        if self._changes is None:
            return found
        changed = self._changes.positions
        return [each for each in found if each not in changed]  # type: ignore[return-value]

    def batches(self, rows: int) -> Iterator[tuple[Int64 | list[str], Int64]]:
        """Yield all keys and their positions, at most `rows` at a time.

        Rows of the table come in its order, then rows of deltas.
        """
        index, changes = self.base.index, self._changes
        entries = np.argsort(index.rows)  # the entry of each row
        changed = {} if changes is None else changes.positions
        for begin in range(0, self.description.rows, rows):
            positions = np.arange(begin, min(begin + rows, self.description.rows))
            keys: Sequence[_Key] = index.keys_at(entries[positions])
            if changed:
                kept = np.array([key not in changed for key in keys])
                keys = [key for key in keys if key not in changed]
                positions = positions[kept]
            yield self._as_keys(keys), positions
        alive = [(key, position) for key, position in changed.items() if position >= 0]
        for begin in range(0, len(alive), rows):
            part = alive[begin : begin + rows]
            positions = np.array([position for _, position in part])
            yield self._as_keys([key for key, _ in part]), positions

    def _as_keys(self, keys: Sequence[_Key]) -> Int64 | list[str]:
        return np.array(keys, np.int64) if self.key_type is int else [*map(str, keys)]

    def without_deltas(self) -> "Table":
        """Return the table as it was published; its files are not read again."""
        return _without_deltas(self.base)

    def extended(self, listed: ListedTable, upto: int | None = None) -> "Table":
        """Return a view with further deltas; this one stays as it is.

        Only one thread may extend the views of a table.

        Args:
            listed: this table, as it is in the store now.
            upto: the last delta to apply (default: the last that is listed).

        Raises:
            ArtifactInvalid: a delta is wrong, or of another table.
            OSError: a file cannot be read now.
        """
        last = len(listed.deltas) if upto is None else min(upto, len(listed.deltas))
        deltas = []
        for number in range(self.delta + 1, last + 1):
            try:
                segment = open_segment(listed.delta_folder(number))
                _check_delta(segment.description, self.description, number)
            except TableIncomplete as error:
                raise TableIncomplete(f"delta {number}: {error}") from error
            except ArtifactInvalid as error:
                raise ArtifactInvalid(f"delta {number}: {error}") from error
            deltas.append(segment)
        return _with_deltas(self, deltas) if deltas else self


def open_table(listed: ListedTable, model: str, upto: int | None = None) -> Table:
    """Verify a table and its deltas, and map its files.

    256 MB take 0.2 s on two cores that have the files in memory.

    Args:
        listed: from `tables_of`.
        model: the name of the model that it must be of.
        upto: the last delta to apply (default: the last that is listed).

    Raises:
        TableIncomplete: files are missing or short: a copy may be under way.
        ArtifactInvalid: names the file and the rule that it breaks.
        OSError: a file cannot be read now.
    """
    segment = open_segment(listed.folder)
    found = segment.description
    if (found.model, found.kind, found.version) != (model, listed.kind, listed.version) or (
        found.base is not None
    ):
        raise ArtifactInvalid(
            f"{TABLE}: describes {found.label} of {found.model}, "
            f"its folder is {listed.kind} {listed.version} of {model}"
        )
    return _without_deltas(segment).extended(listed, upto)


def _without_deltas(base: Segment) -> Table:
    found = base.description
    return Table(base, created=found.created, size=_size(found))


def _size(description: TableDescription) -> int:
    return sum(each.size for each in description.files.values())


def _check_delta(found: TableDescription, base: TableDescription, number: int) -> None:
    if found.base is None or (found.model, found.kind, found.version) != (
        base.model,
        base.kind,
        number,
    ):
        raise ArtifactInvalid(f"{TABLE}: describes {found.label} of {found.model}")
    if found.base != Base(version=base.version, id=base.id):
        raise ArtifactInvalid(f"{TABLE}: is a delta of another table")
    if found.columns != base.columns or found.key != base.key:
        raise ArtifactInvalid(f"{TABLE}: has other columns than its table")


def _with_deltas(table: Table, deltas: Sequence[Segment]) -> Table:
    """Return a view with deltas; it takes a microsecond per key that has ever been changed."""
    base, before = table.base, table._changes  # noqa: SLF001
    room = _Room(np.zeros(0, table.description.record)) if before is None else before.room
    count = 0 if before is None else len(before.records)
    positions: dict[_Key, int] = {} if before is None else dict(before.positions)
    rows, folded = table.rows, _folded_room(table)
    for delta in deltas:
        index, new = delta.index, delta.description.rows
        keys: Sequence[_Key] = index.keys_at(np.arange(len(index.rows)))
        in_base = base.index.find(table._as_keys(keys))  # noqa: SLF001
        start = len(base.records) + count
        for key, row, was in zip(keys, index.rows.tolist(), in_base.tolist(), strict=True):
            rows += (row >= 0) - (positions.get(key, was) >= 0)
            positions[key] = start + row if row >= 0 else -1
        room = room.extended(count, delta.records[:new])
        if folded is not None and new:  # a delta without rows, as of removed keys, has no fold
            if delta.description.fold == table.fold:
                assert delta.folded is not None
                folded = folded.extended(count, delta.folded)
            else:
                folded = None
        count += new
    last = deltas[-1].description
    return replace(
        table,
        delta=last.version,
        delta_ids=(*table.delta_ids, *(each.description.id for each in deltas)),
        created=max([table.created, *(each.description.created for each in deltas)]),
        size=table.size + sum(_size(each.description) for each in deltas),
        _changes=_Changes(
            positions,
            room,
            room.records[:count],
            rows,
            None if folded is None else (folded, folded.records[:count]),
        ),
    )


def _folded_room(table: Table) -> _Room | None:
    """Return where what is folded of a table's deltas is; None if something is not folded."""
    if table.fold is None:
        return None
    if table._changes is None:  # noqa: SLF001
        return _Room(np.zeros((0, table.fold.width), np.float32))
    assert table._changes.folded is not None  # noqa: SLF001
    return table._changes.folded[0]  # noqa: SLF001


def open_segment(folder: Path) -> Segment:
    """Verify the files of one table or delta, and map them.

    Raises:
        TableIncomplete: files are missing or short.
        ArtifactInvalid: names the file and the rule that it breaks.
        OSError: a file cannot be read now.
    """
    description = read_description(folder)
    place = folder.resolve()
    mapped = {name: _map(place, name, each.size) for name, each in description.files.items()}
    _verify(mapped, description)
    records = np.frombuffer(mapped[ROWS], description.record)
    index = _index(mapped, description)
    index.check()
    _check_rows(index.rows, description)
    folded = None
    if description.fold is not None:
        width = description.fold.width
        folded = np.frombuffer(mapped[FOLDED], "<f4").reshape(description.rows, width)
    return Segment(description, records, index, folded)


def read_description(folder: Path) -> TableDescription:
    """Read and validate `table.json`.

    Raises:
        TableIncomplete: it is missing, or ends early.
        ArtifactInvalid: names the key and the rule that it breaks.
        OSError: it cannot be read now.
    """
    try:
        content = read_small_file(folder / TABLE, max_bytes=LARGEST_DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError):
        raise TableIncomplete(f"{TABLE}: is missing") from None
    try:
        return TableDescription.model_validate_json(content)
    except ValidationError as error:
        problem = f"{TABLE}: {first_problem(error, content, TableDescription)}"
        if error.errors()[0]["type"] == "json_invalid":
            raise TableIncomplete(problem) from error
        raise ArtifactInvalid(problem) from error


def _map(folder: Path, name: str, size: int) -> memoryview:
    """Map a file of a folder, which must be a regular one of this size.

    A link must lead to a place inside the folder, as the links of a Kubernetes volume do.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ArtifactInvalid(f"{name}: is a link that leaves the folder")
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TableIncomplete(f"{name}: is missing") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactInvalid(f"{name}: is not a regular file")
        if status.st_size != size:
            problem = f"{name}: has {status.st_size} bytes, {TABLE} says {size}"
            raise (TableIncomplete if status.st_size < size else ArtifactInvalid)(problem)
        if size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)


def _verify(mapped: Mapping[FileName, memoryview], description: TableDescription) -> None:
    """Check the SHA-256 of every piece of every file; threads hash without the interpreter's lock.

    Reading the mapped memory also enters its pages into the page table of this process.
    """

    def differs(piece: tuple[FileName, int, str]) -> str | None:
        name, number, digest = piece
        part = mapped[name][number * PIECE : (number + 1) * PIECE]
        return None if hashlib.sha256(part).hexdigest() == digest else name

    pieces = [
        (name, number, digest)
        for name, each in description.files.items()
        for number, digest in enumerate(each.sha256)
    ]
    with ThreadPoolExecutor(_HASHING_THREADS, "verify-table") as threads:
        for name in threads.map(differs, pieces):
            if name is not None:
                raise ArtifactInvalid(f"{name}: its SHA-256 differs from that in {TABLE}")


def _index(mapped: Mapping[FileName, memoryview], description: TableDescription) -> KeyIndex:
    seed, bits = description.seed, description.bits
    rows = np.frombuffer(mapped[KEY_ROWS], "<i4")
    starts = np.frombuffer(mapped[KEY_STARTS], "<u4")
    if description.key.type == "int64":
        return Int64Index(seed, bits, np.frombuffer(mapped[KEYS], "<i8"), rows, starts)
    return StringIndex(
        seed,
        bits,
        words=np.frombuffer(mapped[KEYS], "<u8"),
        places=np.frombuffer(mapped[KEY_PLACES], "<i8"),
        hashes=np.frombuffer(mapped[KEY_HASHES], "<u8"),
        rows=rows,
        starts=starts,
    )


def _check_rows(rows: npt.NDArray[np.int32], description: TableDescription) -> None:
    """Check that every row has one key, and that only a delta removes keys."""
    kept = rows[rows >= 0]
    if len(rows) - len(kept) != description.removed or (rows < -1).any():
        raise ArtifactInvalid(f"{KEY_ROWS}: another number of keys is removed than {TABLE} says")
    has_key = np.zeros(description.rows, np.bool_)
    if len(kept) and kept.max() >= description.rows:
        raise ArtifactInvalid(f"{KEY_ROWS}: a row is beyond the last")
    has_key[kept] = True
    if not has_key.all():
        raise ArtifactInvalid(f"{KEY_ROWS}: a row has no key")
