"""Verify and map the files of one table or delta.

Files are mapped into memory, so all processes of a host share them, and the bytes that are hashed
are the bytes that serve. Every size, hash and index is checked before a table is used. A file must
not change afterwards: publish another table instead. A file that is removed stays until the last
process that uses it ends; a file that is cut short ends those processes (SIGBUS).
"""

import hashlib
import mmap
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

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
    FileName,
    TableDescription,
    read_description,
)
from app.artifacts.tables.keys import Int64Index, KeyIndex, StringIndex
from app.errors import ArtifactInvalid, TableIncomplete

Records = npt.NDArray[np.void]
Folded = npt.NDArray[np.float32]
"""What `Program.fold` makes of rows, `[n, H]`."""

_HASHING_THREADS = min(4, os.cpu_count() or 1)


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


def open_segment(folder: Path) -> Segment:
    """Verify the files of one table or delta, and map them.

    Raises:
        TableIncomplete: files are missing or short.
        ArtifactInvalid: names the file and the rule that it breaks.
        OSError: a file cannot be read now.
    """
    description = read_description(folder)
    mapped = _mapped(folder, description)
    _verify(mapped, description)
    records = np.frombuffer(mapped[ROWS], description.record)
    index = _index(mapped, description)
    folded = None
    if description.fold is not None:
        width = description.fold.width
        folded = np.frombuffer(mapped[FOLDED], "<f4").reshape(description.rows, width)
    return Segment(description, records, index, folded)


def open_index(folder: Path) -> tuple[TableDescription, KeyIndex]:
    """Map the keys of one table or delta, without its rows; return what it is, and the keys.

    Nothing is hashed, but lookups in damaged keys are safe.

    Raises:
        TableIncomplete: files are missing or short.
        ArtifactInvalid: names the file and the rule that it breaks.
        OSError: a file cannot be read now.
    """
    description = read_description(folder)
    mapped = _mapped(folder, description)
    index = _index(mapped, description)
    return description, index


def check_sizes(folder: Path, description: TableDescription) -> None:
    """Check that the files of one table or delta are there; their content is not read.

    Raises:
        TableIncomplete: files are missing or short.
        ArtifactInvalid: a file is too long, not regular, or elsewhere.
        OSError: a file cannot be looked at now.
    """
    _mapped(folder, description)


def _mapped(folder: Path, description: TableDescription) -> dict[FileName, memoryview]:
    """Map the files of a folder; their content is read when it is used."""
    resolved = folder.resolve()
    return {name: _map(resolved, name, file.size) for name, file in description.files.items()}


def _map(folder: Path, name: str, size: int) -> memoryview:
    """Map a file of a folder, which must be a regular file of this size (bytes).

    A link must lead to a file inside the folder, as the links of a Kubernetes volume do.

    Raises:
        TableIncomplete: the file is missing or short.
        ArtifactInvalid: it is too long, not regular, or elsewhere.
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
    """Check the SHA-256 of every piece of every file, in threads: hashing releases the GIL.

    Reading the mapped memory also enters its pages into the page table of this process.

    Raises:
        ArtifactInvalid: names the file.
    """

    def differs(piece: tuple[FileName, int, str]) -> str | None:
        name, number, digest = piece
        part = mapped[name][number * PIECE : (number + 1) * PIECE]
        return None if hashlib.sha256(part).hexdigest() == digest else name

    pieces = [
        (name, number, digest)
        for name, file in description.files.items()
        for number, digest in enumerate(file.sha256)
    ]
    with ThreadPoolExecutor(_HASHING_THREADS, "verify-table") as threads:
        for name in threads.map(differs, pieces):
            if name is not None:
                raise ArtifactInvalid(f"{name}: its SHA-256 differs from that in {TABLE}")


def _index(mapped: Mapping[FileName, memoryview], description: TableDescription) -> KeyIndex:
    """Return the index of the keys, after checking it."""
    index = _unchecked_index(mapped, description)
    index.check()
    _check_rows(index.rows, description)
    return index


def _unchecked_index(
    mapped: Mapping[FileName, memoryview], description: TableDescription
) -> KeyIndex:
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
    """Check that every row has a key, and that as many keys are removed as `table.json` says.

    Args:
        rows: int32 `[entries]` the row of each key; -1 for a key that is removed.
        description: of the files.

    Raises:
        ArtifactInvalid: they do not fit each other.
    """
    kept = rows[rows >= 0]
    if len(rows) - len(kept) != description.removed or (rows < -1).any():
        raise ArtifactInvalid(f"{KEY_ROWS}: another number of keys is removed than {TABLE} says")
    has_key = np.zeros(description.rows, np.bool_)
    if len(kept) and kept.max() >= description.rows:
        raise ArtifactInvalid(f"{KEY_ROWS}: a row is beyond the last")
    has_key[kept] = True
    if not has_key.all():
        raise ArtifactInvalid(f"{KEY_ROWS}: a row has no key")
