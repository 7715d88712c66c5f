"""The life of a scoring request: encoded features in, scores and an order out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.artifacts.loader import Model
from app.engine.batch import Scored
from app.engine.batcher import Batcher
from app.engine.lanes import BatchResult, Lane
from app.engine.request import RequestFeatures, RequestOptions
from app.engine.state import EngineState, engine_state
from app.lifecycle.policies import Policies
from app.lifecycle.registry import Registry
from app.ranking.explanation import Explanation, explain
from app.ranking.ranker import RankingOptions, order
from app.scoring.shadow import Observation, Ranked, multiplier_of
from app.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets.

    Attributes:
        scores: `[n, K]` float32, in the order of the model's tasks.
        rank_score: `[n]` float32.
        ranking: positions of candidates, best first, at most `top_k`.
        explanation: where the request asked for one.
        stages: seconds by stage: queue, collate, compute, rank; on a GPU the copies too.
    """

    scores: npt.NDArray[np.float32]
    rank_score: npt.NDArray[np.float32]
    ranking: npt.NDArray[np.intp]
    stages: Mapping[str, float]
    explanation: Explanation | None = None


class Service:
    """Scores and ranks with the models of a registry."""

    def __init__(
        self, registry: Registry, batcher: Batcher, lanes: Sequence[Lane], metrics: Metrics
    ) -> None:
        """Serve what `registry` holds, on the lanes that `batcher` feeds."""
        self.registry = registry
        self.policies = Policies()
        self._observation = Observation(metrics.ranking)
        self._batcher = batcher
        self._lanes = lanes
        self.draining = False
        self._metrics = metrics

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome: every model is loaded, and the server not draining."""
        return not self.draining and self.registry.has_started and bool(self.registry.models())

    def is_alive(self, hang_s: float) -> bool:
        """Whether every lane lives and none has been at one batch for longer than `hang_s`."""
        return all(lane.is_alive(hang_s) for lane in self._lanes)

    def state(self, hang_s: float) -> EngineState:
        """Return what goes on in the engine now; see `is_alive` for `hang_s`."""
        return engine_state(self._batcher, self._lanes, hang_s=hang_s)

    def admit_unread(self, model: Model, terms: RequestOptions, body_bytes: int) -> None:
        """Refuse a request before its body is read, by the least number of rows it can have.

        That is worth its time only while others are being refused.

        Raises:
            Overloaded, DeadlineUnmeetable: see `Batcher.admit`.
        """
        if self._batcher.is_refusing:
            row_bytes = self._batcher.backlog.queue(model).row_bytes
            rows = max(1, int(body_bytes / row_bytes)) if row_bytes else 1
            self._batcher.admit(model, rows, terms)

    def learn_size(self, model: Model, body_bytes: int, rows: int) -> None:
        """Take note that a body of so many bytes had so many rows."""
        if rows:
            queue = self._batcher.backlog.queue(model)
            queue.row_bytes = max(body_bytes / rows, queue.row_bytes * 0.999)

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return len(self._lanes)

    async def score(
        self,
        model: Model,
        request: RequestFeatures,
        wanted: RankingOptions,
        *,
        terms: RequestOptions,
    ) -> Answer:
        """Score a request's candidates and rank them.

        Args:
            model: who scores.
            request: one user and n candidates; none is fine.
            wanted: how they are to be ranked.
            terms: until when and how urgently the caller waits.

        Raises:
            Overloaded, DeadlineUnmeetable, DeadlineExceeded, InferenceFailed, ClientDisconnected: see
                `Batcher.score`.
        """
        self._metrics.unknown(model.manifest.name, request.unknown_ids)
        if request.rows == 0:
            none = np.empty((0, len(model.manifest.tasks)), np.float32)
            scored = Scored(none, 0.0, BatchResult(none))
        else:
            scored = await self._batcher.score(model, request, terms)
        began = time.perf_counter()
        ranker = wanted.ranker
        multiplier = multiplier_of(ranker, request)
        sort_keys = ranker.sort_keys(scored.scores, multiplier)
        rank_score = ranker.rank_scores(sort_keys)
        ranking = order(sort_keys, wanted.top_k)
        outcome = scored.outcome
        explanation = None
        if wanted.explain:
            explanation = explain(ranker, scored.scores, sort_keys, ranking, multiplier)
        self._metrics.ranking.applied(ranker.policy.name)
        if self._observation.is_due():
            seen = Ranked(request, ranker, scored.scores, sort_keys, rank_score)
            self._observation.look_later(model.manifest.name, seen)
        stages = {
            "queue": scored.queue_s,
            "collate": outcome.collate_s,
            "compute": outcome.compute_s,
            "rank": time.perf_counter() - began,
        }
        if outcome.copy_in_s:
            stages["copy_in"] = outcome.copy_in_s
            stages["copy_out"] = outcome.copy_out_s
        return Answer(scored.scores, rank_score, ranking, stages, explanation)
