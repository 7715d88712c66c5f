"""A look at some answers after they were sent: how scores lie, and what a shadow would have made.

Looking takes longer than ranking, so it is rationed to a share of the time, whatever the load, and
happens in the event loop's next turn, when the answer is on its way.
"""

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from app.engine.request import RequestFeatures
from app.ranking.agreement import kendall_tau, overlap
from app.ranking.formulas import Numbers, Scores, SortKeys
from app.ranking.ranker import Ranker
from app.telemetry.ranking import RankingMetrics

EVERY_S = 0.2
"""Between two looks at least: whose request comes during one waits for it, and they are to be fewer
than one in a hundred."""
SHARE = 0.01
"""Of the event loop's time, at most, for looks: a long one is followed by a longer pause."""
MOST_COMPARED = 500
"""So many candidates of an answer are compared at most, evenly spread: it takes their square."""
TOP = 10


@dataclass(frozen=True, slots=True)
class Ranked:
    """An answer, as far as it is looked at.

    Attributes:
        request: what was asked.
        ranker: what ranked it.
        scores: `[n, K]`, the model's.
        sort_keys: `[n]`.
        rank_score: `[n]`.
    """

    request: RequestFeatures
    ranker: Ranker
    scores: Scores
    sort_keys: SortKeys
    rank_score: Scores


class Observation:
    """Chooses the answers that are looked at; belongs to the event loop."""

    def __init__(self, metrics: RankingMetrics, *, every_s: float = EVERY_S) -> None:
        """Record on `metrics` what is seen, at most once in `every_s`; see `SHARE` too."""
        self._metrics = metrics
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._next = 0.0  # loop time (s)

    def is_due(self) -> bool:
        """Whether the answer that is being made should be looked at; says so once."""
        now = self._loop.time()
        if now < self._next:
            return False
        self._next = now + self._every_s
        return True

    def look_later(self, model: str, answer: Ranked) -> None:
        """Look at an answer when what runs now has come to its end."""
        self._loop.call_soon(self._look, model, answer)

    def _look(self, model: str, answer: Ranked) -> None:
        began = time.perf_counter()
        self._metrics.distributed(model, answer.ranker.tasks, answer.scores, answer.rank_score)
        if answer.ranker.shadow is not None:
            self._compare(answer, answer.ranker.shadow)
        self.took(time.perf_counter() - began)

    def took(self, look_s: float) -> None:
        """Pause for as long as a look of so many seconds calls for."""
        now = self._loop.time()
        self._next = max(self._next, now + look_s / SHARE)

    def _compare(self, answer: Ranked, shadow: Ranker) -> None:
        n = len(answer.sort_keys)
        if n < 2:
            return
        compared = min(n, MOST_COMPARED)
        chosen = np.arange(compared) * n // compared  # [m]
        live = answer.sort_keys[chosen]
        other = shadow.sort_keys(answer.scores, multiplier_of(shadow, answer.request))[chosen]
        self._metrics.compared(
            answer.ranker.policy.name,
            shadow.policy.name,
            tau=kendall_tau(live, other),
            overlap=overlap(live, other, TOP),
        )


def multiplier_of(ranker: Ranker, request: RequestFeatures) -> Numbers | None:
    """Return the values `[n]` of the feature that a policy's `multiplier` names, if it has one."""
    name = ranker.policy.multiplier
    return None if name is None else request.candidate[name][:, 0]  # [n, 1] → [n]
