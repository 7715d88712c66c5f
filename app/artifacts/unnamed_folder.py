"""Folders that readers see as a whole or not at all.

A new one gets its name once it is complete. One to be removed loses its name first.

A process that is killed leaves its unnamed folder. While it lives it holds a lock on the file
`owner` in it, which names the mounted file system that has the lock: locks of a network file system
need not reach other hosts, or other mounts. So a lock that can be taken means that the owner is
dead if it locked the file through the same mount. Otherwise the age of the folder decides.
"""

import errno
import fcntl
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.files import read_small_file

_TEMPORARY = ".publishing-"
_ALL_TEMPORARY = (_TEMPORARY, ".pruned-")  # the second was that of `gatehouse prune` before 0.2.0
_OWNER = "owner"
_LONGEST_OWNER = 256  # bytes
_LEFT_OVER_S = 24 * 3600.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def unnamed_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder for its writer to rename into `parent`.

    At the end it is removed if it is still there, with all that was moved into it; also when
    Ctrl-C, SIGTERM or SIGHUP ends the process. So are those of processes that were killed, see
    `remove_left_over`.

    Raises:
        OSError: the parent cannot be created or written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(parent)
    with _signals_raise(), tempfile.TemporaryDirectory(dir=parent, prefix=_TEMPORARY) as temporary:
        written = Path(temporary) / "artifact"
        written.mkdir()
        with _locked(Path(temporary) / _OWNER):
            yield written


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let signals that would end the process at once raise `SystemExit`, so that it cleans up."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # others cannot set handlers
        yield
        return
    own = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in own:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in own:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock on a new file, and write into it which mount has the lock.

    The file stays empty where there are no locks. It is closed before its folder is removed: NFS
    keeps the name of an open file.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, _mount_of(descriptor))  # after the lock: it says that there is one
        yield
    finally:
        os.close(descriptor)


def _mount_of(descriptor: int) -> bytes:
    """Return what names the mounted file system of a file, until the host starts again.

    Raises:
        OSError: the host has no name.
    """
    boot = read_small_file(_BOOT_ID, max_bytes=_LONGEST_OWNER // 2).strip()
    return b"%s %d\n" % (boot, os.fstat(descriptor).st_dev)


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


@dataclass(frozen=True, slots=True)
class UnnamedFolder:
    """An unnamed folder whose owner may be dead.

    Attributes:
        path: of the folder.
        size: of its files (bytes).
        changed: when it was last written (s since the epoch).
        is_left_over: whether its owner is dead; otherwise nobody can tell from this host.
    """

    path: Path
    size: int
    changed: float
    is_left_over: bool


def unnamed_folders(folder: Path) -> Iterator[UnnamedFolder]:
    """Yield the unnamed folders in a folder, except those whose owners surely run."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.startswith(_ALL_TEMPORARY))
    except OSError:  # it is missing, or cannot be read
        return
    for path in paths:
        has_owner = _has_owner(path)
        if has_owner:
            continue
        try:
            files = [file.lstat() for file in (path, *path.rglob("*"))]
        except OSError:  # it was renamed or removed meanwhile
            continue
        changed = max(file.st_mtime for file in files)
        is_left_over = has_owner is False or time.time() - changed > _LEFT_OVER_S
        yield UnnamedFolder(path, sum(file.st_size for file in files), changed, is_left_over)


def remove_left_over(folder: Path) -> None:
    """Remove the unnamed folders of processes that were killed.

    Where the lock of a folder does not tell, it is one that was last written a day ago or earlier:
    a running process writes, or removes files, every few seconds.
    """
    for unnamed in unnamed_folders(folder):
        if unnamed.is_left_over:
            shutil.rmtree(unnamed.path, ignore_errors=True)


def _has_owner(folder: Path) -> bool | None:
    """Return whether the owner of an unnamed folder lives; None if its lock does not tell."""
    try:
        descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.read(descriptor, _LONGEST_OWNER) != _mount_of(descriptor):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False  # a lock is never taken again by its owner
