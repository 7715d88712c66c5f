"""Sample responses: record their scores, watch for drift, and compare with a shadow policy.

This takes longer than ranking itself. So it is limited to a share of the event loop's time, and
runs in the next turn of the loop, after the response has been written.
"""

import asyncio
import time

from app.artifacts.loader import Model
from app.engine.request import RequestFeatures
from app.ranking.agreement import compare_orders
from app.ranking.batch import RankedRequest
from app.ranking.ranker import Ranker
from app.scoring.drift import DriftMonitor
from app.telemetry.ranking import RankingMetrics

EVERY_S = 0.2
"""The least time between two samples: requests that arrive during a sample wait for it, and they
must be fewer than one in a hundred."""
SHARE = 0.01
"""The largest share of the event loop's time for samples: a long sample causes a long pause."""


class ResponseSampler:
    """Samples responses; owned by the event loop.

    Attributes:
        next_at: monotonic time (s) before which no response should be sampled.
    """

    def __init__(
        self,
        metrics: RankingMetrics,
        drift: DriftMonitor | None = None,
        *,
        every_s: float = EVERY_S,
    ) -> None:
        """Record on `metrics` and `drift`, at most once in `every_s` (s); see `SHARE` too."""
        self._metrics = metrics
        self._drift = drift
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self.next_at = 0.0

    def sample(
        self,
        now: float,
        model: Model,
        features: RequestFeatures,
        ranker: Ranker,
        ranked: RankedRequest,
    ) -> None:
        """Sample this response soon, and no other before `next_at`; `now` is monotonic (s)."""
        self.next_at = now + self._every_s
        self._loop.call_soon(self._sample, model, features, ranker, ranked)

    def _sample(
        self, model: Model, features: RequestFeatures, ranker: Ranker, ranked: RankedRequest
    ) -> None:
        began = time.monotonic()
        if self._drift is not None:
            self._drift.observe(model, features, ranked.scores)
        name = model.manifest.name
        self._metrics.scores_sampled(name, ranker.tasks, ranked.scores, ranked.rank_score)
        if ranker.shadow is not None:
            self._compare(features, ranker, ranker.shadow, ranked)
        self.pause_after(time.monotonic() - began)

    def pause_after(self, sample_s: float) -> None:
        """Pause for as long as a sample that took so many seconds requires."""
        self.next_at = max(self.next_at, time.monotonic() + sample_s / SHARE)

    def _compare(
        self, features: RequestFeatures, ranker: Ranker, shadow: Ranker, ranked: RankedRequest
    ) -> None:
        if len(ranked.sort_keys) < 2:
            return
        name = shadow.policy.multiplier
        multiplier = None if name is None else features.candidate_column(name)[:, 0]  # [n, 1] → [n]
        other = shadow.sort_keys(ranked.scores, multiplier)
        tau, overlap = compare_orders(ranked.sort_keys, other)
        assert tau is not None
        self._metrics.shadow_compared(
            ranker.policy.name, shadow.policy.name, tau=tau, overlap=overlap
        )
