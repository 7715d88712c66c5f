"""A verified table with its deltas, as requests read it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from app.artifacts.columns import Column
from app.artifacts.tables.description import (
    TABLE,
    Base,
    Fold,
    TableDescription,
    TableKind,
    UnknownPolicy,
)
from app.artifacts.tables.keys import Int64, KeyIndex
from app.artifacts.tables.listing import ListedTable
from app.artifacts.tables.segment import Folded, Records, Segment, open_index, open_segment
from app.errors import ArtifactInvalid, TableIncomplete

_Key = int | str


@dataclass(slots=True, eq=False)
class _Room:
    """Memory for rows that views share: each has the first ones, and more rows come after them.

    The first `used` rows are never written again.
    """

    records: npt.NDArray[Any]
    used: int = 0

    def extended(self, count: int, rows: npt.NDArray[Any]) -> "_Room":
        """Return a room with the same first `count` rows, followed by `rows`.

        It doubles when it grows, so on average a row is copied at most twice.
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
        folded: the room and the rows `[count, H]` of what is folded; None if some rows are not.
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
    def ids(self) -> tuple[str, ...]:
        """The `id` of the table and of each delta; a label may come back with other rows."""
        return self.description.id, *self.delta_ids

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
                for at, position in enumerate(changed):
                    if position is not None:
                        positions[at] = position
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
        rows, newest = self.description.rows, np.zeros(0, np.int64)
        if self._changes is not None:
            start = rows + 1
            alive = sorted(p for p in self._changes.positions.values() if p >= start)
            newest = np.array(alive[: -count - 1 : -1], np.int64)
        left = min(count - len(newest), rows)
        spaced = np.arange(left, dtype=np.int64) * rows // max(1, left)
        return np.concatenate([newest, spaced])

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

    def first_keys(self, count: int) -> list[int] | list[str]:
        """Return up to `count` keys that the table has, fewer only if it has fewer.

        Keys of the table come first, in the order of its rows, whether deltas change their rows or
        not; then keys that deltas add. It takes milliseconds.
        """
        index, changed = self.base.index, {} if self._changes is None else self._changes.positions
        found: list[Any] = []
        begin, step = 0, count
        while len(found) < count and begin < self.description.rows:
            entries = np.flatnonzero((index.rows >= begin) & (index.rows < begin + step))
            keys: Sequence[_Key] = index.keys_at(entries[np.argsort(index.rows[entries])])
            found += [key for key in keys if changed.get(key, 0) >= 0]
            begin, step = begin + step, 2 * step  # each step reads the whole index
        if len(found) < count:  # so it has all keys of the table
            known = set(found)
            found += [key for key, row in changed.items() if row >= 0 and key not in known]
        return found[:count]

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
            yield self.as_keys(keys), positions
        alive = [(key, position) for key, position in changed.items() if position >= 0]
        for begin in range(0, len(alive), rows):
            part = alive[begin : begin + rows]
            positions = np.array([position for _, position in part])
            yield self.as_keys([key for key, _ in part]), positions

    def as_keys(self, keys: Sequence[_Key]) -> Int64 | list[str]:
        """Return keys of this table as `find` takes them."""
        return _as_keys(keys, self.description)

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
        return self._with_deltas(deltas) if deltas else self

    def _with_deltas(self, deltas: Sequence[Segment]) -> "Table":
        """Return a view with further deltas; it takes a microsecond per key ever changed."""
        base, before = self.base, self._changes
        room = _Room(np.zeros(0, self.description.record)) if before is None else before.room
        count = 0 if before is None else len(before.records)
        positions: dict[_Key, int] = {} if before is None else dict(before.positions)
        rows, folded = self.rows, self._folded_room()
        for delta in deltas:
            index, new = delta.index, delta.description.rows
            keys: Sequence[_Key] = index.keys_at(np.arange(len(index.rows)))
            in_base = base.index.find(self.as_keys(keys))
            start = len(base.records) + count
            for key, row, was in zip(keys, index.rows.tolist(), in_base.tolist(), strict=True):
                rows += (row >= 0) - (positions.get(key, was) >= 0)
                positions[key] = start + row if row >= 0 else -1
            room = room.extended(count, delta.records[:new])
            if folded is not None and new:  # a delta without rows, as of removed keys, has no fold
                assert self.fold is not None
                if delta.description.keeps(self.fold):
                    assert delta.folded is not None
                    folded = folded.extended(count, delta.folded)
                else:
                    folded = None
            count += new
        descriptions = [delta.description for delta in deltas]
        return replace(
            self,
            delta=descriptions[-1].version,
            delta_ids=(*self.delta_ids, *(description.id for description in descriptions)),
            created=max([self.created, *(description.created for description in descriptions)]),
            size=self.size + sum(description.size for description in descriptions),
            _changes=_Changes(
                positions,
                room,
                room.records[:count],
                rows,
                None if folded is None else (folded, folded.records[:count]),
            ),
        )

    def _folded_room(self) -> _Room | None:
        """Return the memory of what is folded of the deltas; None if some rows are not folded."""
        if self.fold is None:
            return None
        if self._changes is None:
            return _Room(np.zeros((0, self.fold.width), np.float32))
        assert self._changes.folded is not None
        return self._changes.folded[0]


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
    read = segment.description
    named = (model, listed.kind, listed.version)
    if (read.model, read.kind, read.version) != named or read.base is not None:
        raise ArtifactInvalid(
            f"{TABLE}: describes {read.label} of {read.model}, "
            f"its folder is {listed.label} of {model}"
        )
    return _without_deltas(segment).extended(listed, upto)


def opening_problem(listed: ListedTable) -> str:
    """Return why a server cannot open a table; "" if it can. Every byte is hashed.

    Its deltas do not count: where one of them is wrong, the table serves with those before it.
    """
    try:
        open_table(listed, listed.folder.parent.parent.name, 0)
    except (ArtifactInvalid, OSError) as error:
        return str(error) or type(error).__name__
    return ""


def _as_keys(keys: Sequence[_Key], description: TableDescription) -> Int64 | list[str]:
    if description.key.type == "int64":
        return np.array(keys, np.int64)
    return [*map(str, keys)]


class TableKeys:
    """The keys of a table with its deltas, without its rows.

    No file is hashed, so a table of a million rows takes milliseconds.

    Attributes:
        count: how many keys there are.
    """

    def __init__(self, description: TableDescription, base: KeyIndex) -> None:
        """Take the keys of a table without deltas."""
        self.count = len(base.rows)
        self._description = description
        self._base = base
        self._is_there: dict[_Key, bool] = {}  # each changed key

    @classmethod
    def of(cls, listed: ListedTable) -> "TableKeys":
        """Read the keys of a table and of its deltas.

        Raises:
            ArtifactInvalid: files are missing or short, or the keys or a description are wrong.
            OSError: a file cannot be read now.
        """
        description, base = open_index(listed.folder)
        keys = cls(description, base)
        for number in listed.deltas:
            try:
                delta, index = open_index(listed.delta_folder(number))
                _check_delta(delta, description, number)
            except ArtifactInvalid as error:
                raise ArtifactInvalid(f"delta {number}: {error}") from error
            keys.change(index)
        return keys

    def change(self, index: KeyIndex) -> int:
        """Apply a delta with these keys; return how many of those that it removes are unknown."""
        changed: Sequence[_Key] = index.keys_at(np.arange(len(index.rows)))
        in_base = self._base.find(_as_keys(changed, self._description)) >= 0
        unknown = 0
        for key, row, is_in_base in zip(
            changed, index.rows.tolist(), in_base.tolist(), strict=True
        ):
            was_there = self._is_there.get(key, is_in_base)
            self.count += (row >= 0) - was_there
            unknown += row < 0 and not was_there
            self._is_there[key] = row >= 0
        return unknown


def _without_deltas(base: Segment) -> Table:
    return Table(base, created=base.description.created, size=base.description.size)


def _check_delta(delta: TableDescription, table: TableDescription, number: int) -> None:
    """Check that a delta is delta `number` of a table.

    Raises:
        ArtifactInvalid: it is of another one, or has other columns.
    """
    named = (table.model, table.kind, number)
    if delta.base is None or (delta.model, delta.kind, delta.version) != named:
        raise ArtifactInvalid(f"{TABLE}: describes {delta.label} of {delta.model}")
    if delta.base != Base(version=table.version, id=table.id):
        raise ArtifactInvalid(f"{TABLE}: is a delta of another table")
    if delta.columns != table.columns or delta.key != table.key:
        raise ArtifactInvalid(f"{TABLE}: has other columns than its table")
