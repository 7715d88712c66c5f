"""Write the files of one table or delta.

Rows go to the disk as they come; keys stay in memory until the index is built.
"""

import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
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
    KeyIndex,
    PaddedStrings,
    StringIndex,
    build,
    pad,
)
from app.artifacts.tables.segment import Records
from app.artifacts.unnamed_folder import sync_folder, write_file
from app.errors import ArtifactInvalid


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
    """Rows have the same key.

    Attributes:
        pairs: int64 `[d, 2]` the first row with a key, and another one.
    """

    def __init__(self, pairs: Int64) -> None:
        super().__init__(f"{len(pairs)} rows repeat the key of an earlier row")
        self.pairs = pairs


@dataclass(slots=True)
class TableWriter:
    """Writes the files of one table or delta into a folder that has no name yet.

    Call `add` for the rows of a table; for those of a delta also `remove`. If it is folded, call
    `begin_fold` and `add_folded` after the rows. Then `finish` and `describe`.
    """

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
        """Begin to fold the table: `add_folded` follows, for every row.

        Raises:
            OSError: the file cannot be written.
        """
        self.fold = fold
        self._folded = _HashedFile(self.folder / FOLDED)

    def give_up_fold(self) -> None:
        """Publish the table without a fold after all: remove what has been folded."""
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

    @property
    def index(self) -> KeyIndex:
        """The keys of the rows, and those that are removed, once the table is finished."""
        return self._index

    def remove(self, keys: Int64 | Sequence[str]) -> None:
        """Remove keys, in a delta.

        Raises:
            ArtifactInvalid: a key is too long.
        """
        self._removed.append(_checked(keys))

    def finish(self) -> None:
        """Complete the rows with the row of the defaults, and write the index.

        Raises:
            DuplicateKeys: two rows have the same key.
            ArtifactInvalid: the keys cannot be indexed.
            OSError: a file cannot be written.
        """
        self._file.write(self.plan.defaults.view(np.uint8))
        self._files = {ROWS: self._file.close()}
        if self._folded is not None:
            self._files[FOLDED] = self._folded.close()
        self._index = self._build_index()
        self._write_index(self._index)

    def _build_index(self) -> Int64Index | StringIndex:
        """Return the index of all keys: those of the rows in their order, then those removed."""
        removed = sum(map(len, self._removed))
        rows = np.arange(self.rows + removed, dtype=np.int32)
        rows[self.rows :] = -1
        none = np.zeros(0, np.int64) if self.plan.key.type == "int64" else pad([])
        built = build([none, *self._keys, *self._removed], rows)
        if len(built.same):
            raise DuplicateKeys(built.same)
        return built.index

    def _write_index(self, index: Int64Index | StringIndex) -> None:
        arrays: dict[FileName, npt.NDArray[Any]] = {KEY_ROWS: index.rows, KEY_STARTS: index.starts}
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
        """Write `table.json`.

        Args:
            version: the number of the table, or of the delta.
            base: the table that a delta changes.
        """
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
        sync_folder(self.folder)


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
        """Make what was written visible to those who read the file."""
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
