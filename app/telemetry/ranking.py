"""Series about ranking: which policies are in force and applied, and what comes of them.

Scores are counted many at a time: an `observe` a score would cost a microsecond each, 1 500 of them
for one request.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.telemetry.bulk_histogram import BulkHistogram

Numbers = npt.NDArray[np.floating]

SCORE_EDGES = (
    *(0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0),
)
"""For probabilities and for seconds."""
RANK_EDGES = (
    *(0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1e3, 1e4),
)
"""From 0 on: a histogram with buckets below it has no sum in the exposition format."""
TAU_EDGES = (-0.5, 0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
"""Below 0 too, and so without a sum, which must not fall: ask for quantiles."""
OVERLAP_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class RankingMetrics:
    """Policies and scores. It belongs to the event loop; a scrape may come from another thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create every series on `registry`."""
        self._create_for_policies(registry)
        self._create_for_scores(registry)

    def _create_for_policies(self, registry: CollectorRegistry) -> None:
        self._set = Gauge(
            "gatehouse_policy_set_info",
            "The policy set in force; always 1.",
            ("version",),
            registry=registry,
        )
        self._reloads = Counter(
            "gatehouse_policy_reloads_total",
            "Changed files of policies, by what became of them.",
            ("result",),
            registry=registry,
        )
        for result in ("followed", "refused"):
            self._reloads.labels(result)
        self.applied = Counter(
            "gatehouse_policy_applied_total",
            "Answers by the policy that ranked them.",
            ("policy",),
            registry=registry,
        )

    def _create_for_scores(self, registry: CollectorRegistry) -> None:
        pair = ("policy", "shadow")
        self._tau = Histogram(
            "gatehouse_shadow_kendall_tau",
            "Rank correlation of a policy's order and its shadow's, over a sample of answers.",
            pair,
            buckets=TAU_EDGES,
            registry=registry,
        )
        self._overlap = Histogram(
            "gatehouse_shadow_top_10_overlap",
            "Share of the 10 best that are the shadow's 10 best too, over a sample of answers.",
            pair,
            buckets=OVERLAP_EDGES,
            registry=registry,
        )
        self._scores = BulkHistogram(
            "gatehouse_task_score",
            "Scores by task, over a sample of answers.",
            SCORE_EDGES,
            ("model", "task"),
        )
        self._rank_scores = BulkHistogram(
            "gatehouse_rank_score",
            "Rank scores by model, over a sample of answers.",
            RANK_EDGES,
            ("model",),
        )
        registry.register(self._scores)
        registry.register(self._rank_scores)

    def followed(self, version: str) -> None:
        """Say that this policy set is in force, and no other."""
        self._set.clear()
        self._set.labels(version).set(1)
        self._reloads.labels("followed").inc()

    def refused(self) -> None:
        """Count a file of policies that could not be followed."""
        self._reloads.labels("refused").inc()

    def compared(self, policy: str, shadow: str, *, tau: float, overlap: float) -> None:
        """Record how far a shadow agreed with what was answered."""
        self._tau.labels(policy, shadow).observe(tau)
        self._overlap.labels(policy, shadow).observe(overlap)

    def distributed(
        self, model: str, tasks: Sequence[str], scores: Numbers, rank_score: Numbers
    ) -> None:
        """Count one answer's scores, `[n, K]`, and rank scores, `[n]`, by bucket."""
        for task, of_task in zip(tasks, scores.T, strict=True):
            self._scores.add(of_task, model, task)
        self._rank_scores.add(rank_score, model)
