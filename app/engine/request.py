"""On what terms a caller waits for an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """Whose rows go first; within a priority, requests take turns."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


def stays() -> bool:
    """Say that the caller has not left: for callers who cannot."""
    return False


@dataclass(frozen=True, slots=True)
class Terms:
    """Until when, how urgently, and whether anybody still waits.

    Attributes:
        deadline: loop time (s) after which no answer is wanted.
        priority: whose rows go first.
        has_left: whether the caller is gone; one look, called on the event loop when the request's
            batch is formed.
    """

    deadline: float
    priority: Priority = Priority.NORMAL
    has_left: Callable[[], bool] = stays
