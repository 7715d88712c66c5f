"""On what terms a caller waits for an answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from app.artifacts.columns import Columns


class Priority(IntEnum):
    """Whose rows go first; within a priority, requests take turns."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


def never_disconnected() -> bool:
    """Say that the caller has not left: for callers who cannot."""
    return False


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Until when, how urgently, and whether anybody still waits.

    Attributes:
        deadline: loop time (s) after which no answer is wanted.
        priority: whose rows go first.
        is_disconnected: whether the caller is gone; one look, called on the event loop when the request's
            batch is formed.
    """

    deadline: float
    priority: Priority = Priority.NORMAL
    is_disconnected: Callable[[], bool] = never_disconnected


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """One user and n candidates as columns.

    Attributes:
        user: columns with one row.
        candidate: columns with `rows` rows.
        rows: n, the number of candidates.
        unknown_ids: how many ids of each feature lay outside its vocabulary, where any did.
    """

    user: Columns
    candidate: Columns
    rows: int
    unknown_ids: Mapping[str, int]
