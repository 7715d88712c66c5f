"""Secrets that change while the server runs: keys and certificates, read again from their files."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from app.errors import ConfigurationInvalid

logger = logging.getLogger(__name__)


class Reloadable(Protocol):
    """What is made from files and can be made anew."""

    @property
    def files(self) -> Sequence[Path]:
        """What it is made from; empty where it never changes."""

    def prepare(self) -> Callable[[], None]:
        """Read the files, in any thread; the result, called on the loop, puts them in force.

        Raises:
            ConfigurationInvalid: they cannot be used.
        """


class FileWatcher:
    """Follows the files of one thing. The first look reads them whatever they are.

    They may have changed between their first reading and that look.
    """

    def __init__(self, rotated: Reloadable) -> None:
        self._rotated = rotated
        self._seen: Sequence[object] | None = None

    async def follow(self, every_s: float) -> NoReturn:
        """Look every so often (s)."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        """Read files that changed; where they are wrong, what was read before stays in force."""
        stamps = await asyncio.to_thread(_stamps, self._rotated.files)
        if stamps == self._seen:
            return
        is_first, self._seen = self._seen is None, stamps
        names = ", ".join(map(str, self._rotated.files))
        try:
            put_in_force = await asyncio.to_thread(self._rotated.prepare)
            put_in_force()
        except ConfigurationInvalid as error:
            logger.error("%s changed and cannot be used: %s", names, error)  # noqa: TRY400
        except Exception:  # a fault of ours: the next change may be free of it
            logger.exception("%s changed and cannot be used", names)
        else:
            logger.log(logging.DEBUG if is_first else logging.INFO, "%s: read anew", names)


def _stamps(files: Sequence[Path]) -> list[tuple[int, ...] | None]:
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> tuple[int, ...] | None:
    """What differs when a file is written or replaced; volumes swap a link to it."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
