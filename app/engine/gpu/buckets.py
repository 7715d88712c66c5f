"""Buckets: the few shapes that a GPU lane pads its batches to.

A CUDA graph replays a single shape. A shape is (B rows, R requests). B doubles from 32 up to the
batch limit. R is either few, B/32, for requests of many candidates, or many, B, for requests of one
candidate. Padding rows cost little: up to a few hundred rows, a batch takes a GPU as long as one
row.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

_FEWEST_ROWS = 32
_ROWS_A_REQUEST = 32


@dataclass(frozen=True, slots=True)
class Bucket:
    """A shape with room for `rows` candidates of `requests` requests."""

    rows: int
    requests: int


class Buckets:
    """The buckets below a batch limit, the largest first."""

    def __init__(self, max_batch_rows: int) -> None:
        """Cover every batch of up to `max_batch_rows` rows."""
        self.rows = [max_batch_rows]  # ascending
        below = _FEWEST_ROWS
        while below < max_batch_rows:
            self.rows.insert(-1, below)
            below *= 2

    def __iter__(self) -> Iterator[Bucket]:
        for rows in reversed(self.rows):
            yield Bucket(rows, rows)
            if (few := _few_requests(rows)) < rows:
                yield Bucket(rows, few)

    def fit(self, rows: int, requests: int) -> Bucket | None:
        """Return the smallest bucket with room for a batch; None if the batch is over the limit.

        A batch has no more requests than rows.
        """
        index = bisect_left(self.rows, rows)
        if index == len(self.rows):
            return None
        room = self.rows[index]
        return Bucket(room, _few_requests(room) if requests <= _few_requests(room) else room)


def _few_requests(rows: int) -> int:
    return -(-rows // _ROWS_A_REQUEST)
