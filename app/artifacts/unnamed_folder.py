"""Folders that readers see as a whole or not at all.

A new one gets its name once it is complete. One to be removed loses its name first.
"""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

_TEMPORARY = ".publishing-"
_ALL_TEMPORARY = (_TEMPORARY, ".pruned-")  # the second was that of `gatehouse prune` before 0.2.0
_LEFT_OVER_S = 24 * 3600.0


@contextmanager
def unnamed_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder for its writer to rename into `parent`.

    At the end it is removed if it is still there, with all that was moved into it. So are those of
    processes that were killed a day ago or earlier.

    Raises:
        OSError: the parent cannot be created or written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(parent)
    with tempfile.TemporaryDirectory(dir=parent, prefix=_TEMPORARY) as temporary:
        written = Path(temporary) / "artifact"
        written.mkdir()
        yield written


def write_file(path: Path, content: bytes) -> None:
    """Write a file, and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def name_folder(written: Path, target: Path) -> bool:
    """Give a complete folder its name; return False if another folder has it.

    Raises:
        OSError: it cannot be renamed.
    """
    try:
        written.rename(target)
    except OSError:
        if not target.exists():
            raise
        return False
    sync_folder(target.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where the file system can tell."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def remove_left_over(folder: Path) -> None:
    """Remove the unnamed folders of processes that were killed a day ago or earlier.

    A running one writes, or removes files, every few seconds.
    """
    for left_over in chain.from_iterable(folder.glob(f"{name}*") for name in _ALL_TEMPORARY):
        try:
            newest = max(path.lstat().st_mtime for path in (left_over, *left_over.rglob("*")))
        except OSError:  # it was renamed or removed meanwhile
            continue
        if time.time() - newest > _LEFT_OVER_S:
            shutil.rmtree(left_over, ignore_errors=True)
