"""The last events of this process: versions, roles, tables, refusals, files read again.

They answer "what changed at that time?" where nobody looks at logs. The log has the same and more.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

MOST = 200
"""Events that are kept; there are a few a day, or one in a poll if a file changes that often."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to this process.

    Attributes:
        unix_s: when (Unix time).
        kind: `version`, `table`, `traffic` or `file`.
        text: what, in one line; clients may see it.
        is_problem: whether somebody should do something about it.
    """

    unix_s: float
    kind: str
    text: str
    is_problem: bool


class Events:
    """The last events, the latest first; owned by the event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Start empty; `clock` returns Unix time (s)."""
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=MOST)

    def add(self, kind: str, text: str, *, is_problem: bool = False) -> None:
        """Add an event that happens now."""
        self._events.appendleft(Event(self._clock(), kind, text, is_problem))

    def latest(self) -> list[Event]:
        """Return the events, the latest first."""
        return list(self._events)
