"""A log: the scores of the candidates that users were shown, and what the users did.

It is a table with one row for each shown candidate:

| column | content |
| --- | --- |
| `request_id` | identifies the request |
| `score_<task>` | the model's score as in the response, before any calibration |
| `outcome_<name>` | what the user did: 0 or 1, seconds, a number; empty if not defined |
| `position` | where the candidate was shown, from 1; optional |

An outcome belongs to the task of the same name, or to no task. Other columns are ignored.

A log has no information on candidates that were not shown, and users look less at lower positions.
`Log.corrected` corrects for the position: it weights an outcome at position p by p^η, as if the
user had looked at it with probability p^-η (position-based model, Joachims et al., WSDM 2017). No
other bias is corrected.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]

MAX_CORRECTION = 10.0
"""The largest weight of an outcome: otherwise a few clicks far down would dominate."""


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """`R` requests with `n` shown candidates in total.

    Attributes:
        tasks: the K tasks that have scores.
        request_ids: the R ids, as text.
        request: int64 `[n]`, ascending: the request of each row, from 0.
        scores: float32 `[n, K]`, one column for each task.
        outcomes: float64 `[n]` by name; NaN means not defined.
        positions: float64 `[n]` from 1, or None if the table has no positions.
    """

    tasks: tuple[str, ...]
    request_ids: Sequence[str]
    request: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    outcomes: Mapping[str, Floats]
    positions: Floats | None = None

    @property
    def requests(self) -> int:
        """The number of requests, R."""
        return len(self.request_ids)

    @property
    def rows(self) -> int:
        """The number of rows, n."""
        return len(self.request)

    def split(self, held_out: float) -> tuple[Self, Self]:
        """Split the requests: one part to fit on, and about the share `held_out` to judge on.

        All rows of a request go to the same part. A hash of the request id decides, so a request
        is in the same part in every run and in every log.
        """
        is_held_out = np.array([_fraction(i) < held_out for i in self.request_ids], bool)  # [R]
        return self._take(~is_held_out), self._take(is_held_out)

    def corrected(self, bias: float) -> Self:
        """Return the log with outcomes weighted by position^bias, at most 10."""
        if not bias:
            return self
        assert self.positions is not None
        factor = np.minimum(self.positions**bias, MAX_CORRECTION)  # [n]
        return replace(self, outcomes={name: o * factor for name, o in self.outcomes.items()})

    def _take(self, requests: Rows) -> Self:
        """Return the log with some of its requests, bool `[R]`."""
        rows = requests[self.request]  # [n]
        renumbered = np.cumsum(requests) - 1  # [R]
        return replace(
            self,
            request_ids=[i for i, keep in zip(self.request_ids, requests, strict=True) if keep],
            request=renumbered[self.request[rows]],
            scores=self.scores[rows],
            outcomes={name: outcome[rows] for name, outcome in self.outcomes.items()},
            positions=None if self.positions is None else self.positions[rows],
        )


def _fraction(request_id: str) -> float:
    """Return a hash of an id, from 0 to 1."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
