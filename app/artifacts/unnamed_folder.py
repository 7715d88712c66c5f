"""Folders that get their name once they are complete: readers see all of them or nothing."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = ".publishing-"
_LEFT_OVER_S = 24 * 3600.0


@contextmanager
def unnamed_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder for its writer to rename into `parent`; if it is not, it is removed.

    Raises:
        OSError: the parent cannot be created or written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(parent)
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


def _remove_left_over(folder: Path) -> None:
    """Remove the files of publishers that were killed; a running one writes every few seconds."""
    for each in folder.glob(f"{_TEMPORARY}*"):
        try:
            newest = max(path.lstat().st_mtime for path in (each, *each.rglob("*")))
        except OSError:  # it was renamed or removed meanwhile
            continue
        if time.time() - newest > _LEFT_OVER_S:
            shutil.rmtree(each, ignore_errors=True)
