"""Which batches run on the event loop itself: those that a lane would hardly help.

A lane runs a batch beside the event loop, but handing it over and taking the result back wakes two
threads, and while both run they wait for each other's interpreter lock. For small requests that
takes longer than the batch (`python -m tests.bench.small_batches`).

The limits are for CPU time, not for how long a batch keeps a lane busy. The latter grows with
what the lane waits for: measured by it, batches that were once on lanes would stay there.
"""

from typing import Final

INLINE_S: Final = 400e-6
"""A batch may run on the event loop if it takes at most this long. Requests that arrive meanwhile
wait, but not as long as for a large body that is parsed."""

_REQUEST_S: Final = 80e-6
"""So may one that takes at most this long for each of its requests: reading and answering a request
take the event loop about as long, so that it is busy with them anyway."""

_MOST_S: Final = 1e-3
"""But no batch holds up the event loop for longer."""


def longest_inline_s(requests: int) -> float:
    """Return the CPU time (s) up to which a batch of so many requests runs on the event loop."""
    return max(INLINE_S, min(_REQUEST_S * requests, _MOST_S))
