"""Files that change while the server runs: keys, policies and certificates are reloaded."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from app.errors import ConfigurationInvalid
from app.files import read_small_file
from app.lifecycle.poll_timer import PollTimer
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20  # no file that is watched may be larger


class Reloadable(Protocol):
    """Something that is read from files and can be read again."""

    @property
    def name(self) -> str:
        """What it is, as a label of metrics."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that it is read from; empty if it never changes."""

    def prepare(self) -> Callable[[], None]:
        """Read and check the files, in any thread; the result, called on the loop, applies them.

        Raises:
            ConfigurationInvalid: they cannot be used.
        """


class FileWatcher:
    """Reloads one thing when the content of its files changes.

    The first look always reloads: the files may have changed since they were first read.
    """

    def __init__(self, reloadable: Reloadable, metrics: Metrics) -> None:
        """Read nothing yet; `metrics` counts the reloads."""
        self._reloadable = reloadable
        self._metrics = metrics
        self._seen: Sequence[bytes | str] | None = None
        metrics.watch_file(reloadable.name)

    async def follow(self, timer: PollTimer) -> NoReturn:
        """Look at the files whenever the timer fires."""
        while True:
            await timer.wait()
            await self.look()

    async def look(self) -> None:
        """Reload if a file has changed; files that cannot be used change nothing."""
        contents = await asyncio.to_thread(_contents, self._reloadable.files)
        if contents == self._seen:
            return
        is_first, self._seen = self._seen is None, contents
        names = ", ".join(map(str, self._reloadable.files))
        succeeded = False
        try:
            apply = await asyncio.to_thread(self._reloadable.prepare)
            apply()
        except ConfigurationInvalid as error:
            logger.error("reload failed, the previous version stays: %s: %s", names, error)  # noqa: TRY400
        except Exception:  # a bug that this content triggers; the next content may be fine
            logger.exception("reload failed, the previous version stays: %s", names)
        else:
            succeeded = True
            logger.log(logging.DEBUG if is_first else logging.INFO, "reloaded %s", names)
        name = self._reloadable.name
        self._metrics.reloaded(name, succeeded=succeeded)
        if not succeeded:  # the reason may name paths, which clients must not see
            event = f"{name}: the changed file cannot be used, the previous one stays; see the log"
            self._metrics.events.add("file", event, is_problem=True)
        elif not is_first:
            self._metrics.events.add("file", f"{name}: the changed file is in use")


def _contents(files: Sequence[Path]) -> list[bytes | str]:
    """Return a digest of each file, or why it cannot be read.

    Size and time are not enough: both can stay the same, as with `cp -p` and `rsync -t`.
    """
    return [_content(file) for file in files]


def _content(file: Path) -> bytes | str:
    try:
        return hashlib.sha256(read_small_file(file, max_bytes=MAX_FILE_BYTES)).digest()
    except OSError as error:
        return str(error.strerror)
