"""A log: what the model predicted for the candidates that users were shown, and what users did.

A table with one row a shown candidate, as Parquet, CSV with a header or JSON lines:

| column | holds |
| --- | --- |
| `request_id` | whatever tells requests apart |
| `score_<task>` | the model's score, as the service answered it, before any calibration |
| `outcome_<name>` | what came of it: 0 or 1, seconds, a number; empty where it is not defined |
| `position` | where it was shown, from 1; not needed |

An outcome is of the task of its name, or of no task. Other columns are passed over. A log says
nothing of candidates that were not shown, and people look less at what stands lower: an outcome at
position p can be weighted by p^η, as if it had been examined with probability p^-η (the
position-based model, Joachims et al., WSDM 2017); nothing else of that kind is corrected.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]

LARGEST_CORRECTION = 10.0
"""No outcome counts for more than so many: a click far down is rare, and would decide all."""


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """`R` requests with `n` shown candidates between them.

    Attributes:
        tasks: the K tasks whose scores there are.
        request_ids: R of them, as text.
        request: int64 `[n]`, ascending: which request a row belongs to.
        scores: float32 `[n, K]`, one column a task.
        outcomes: float64 `[n]` by name; NaN where it is not defined.
        positions: float64 `[n]` from 1, or None where the table has none.
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
        """Part the requests: one part to fit, and about the share `held_out` to judge by.

        A request falls whole into one part, by a hash of its id: into the same one in every run
        and in every log that it is in.
        """
        judged = np.array([_fraction(each) < held_out for each in self.request_ids], bool)  # [R]
        return self._take(~judged), self._take(judged)

    def corrected(self, bias: float) -> Self:
        """Return this log with outcomes weighted by position^bias, at most 10; see above."""
        if not bias:
            return self
        assert self.positions is not None
        factor = np.minimum(self.positions**bias, LARGEST_CORRECTION)  # [n]
        return replace(self, outcomes={name: o * factor for name, o in self.outcomes.items()})

    def _take(self, requests: Rows) -> Self:
        rows = requests[self.request]  # [n]
        renumbered = np.cumsum(requests) - 1  # [R]
        return replace(
            self,
            request_ids=[i for i, mine in zip(self.request_ids, requests, strict=True) if mine],
            request=renumbered[self.request[rows]],
            scores=self.scores[rows],
            outcomes={name: outcome[rows] for name, outcome in self.outcomes.items()},
            positions=None if self.positions is None else self.positions[rows],
        )


def _fraction(request_id: str) -> float:
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
