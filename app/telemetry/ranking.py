"""Metrics of ranking: the policies in use, what they rank, and the distributions of scores.

Scores are counted many at a time: one `observe` for each of the 1 500 scores of a request would
cost a microsecond each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.telemetry.bulk_histogram import BulkHistogram

Numbers = npt.NDArray[np.floating]

SCORE_BUCKETS = (
    *(0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0),
)
"""Suits probabilities and seconds."""
RANK_SCORE_BUCKETS = (
    *(0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1e3, 1e4),
)
"""From 0: in the exposition format a histogram with negative buckets has no sum."""
TAU_BUCKETS = (-0.5, 0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
"""Has negative buckets, so the histogram has no sum (a sum must not fall): use quantiles."""
OVERLAP_BUCKETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class RankingMetrics:
    """Metrics of policies and scores. Updated on the event loop; any thread may scrape them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create every metric on `registry`."""
        self._histograms: list[BulkHistogram] = []
        self._registry = registry
        self._create_for_policies(registry)
        self._create_for_scores(registry)
        self._create_for_versions(registry)

    def _create_for_policies(self, registry: CollectorRegistry) -> None:
        self._set = Gauge(
            "gatehouse_policy_set_info",
            "Version of the policy set in use. The value is always 1.",
            ("version",),
            registry=registry,
        )
        self.applied = Counter(
            "gatehouse_policy_applied_total",
            "Responses, by the policy that ranked them.",
            ("policy",),
            registry=registry,
        )

    def _create_for_scores(self, registry: CollectorRegistry) -> None:
        pair = ("policy", "shadow")
        self._tau = self._histogram(
            registry,
            "gatehouse_shadow_kendall_tau",
            "Kendall rank correlation, -1 to 1, of the orders of a policy and its shadow, over a "
            "sample of responses.",
            TAU_BUCKETS,
            pair,
        )
        self._overlap = self._histogram(
            registry,
            "gatehouse_shadow_top_10_overlap",
            "Share, 0 to 1, of a policy's 10 best candidates that are among its shadow's 10 best, "
            "over a sample of responses.",
            OVERLAP_BUCKETS,
            pair,
        )
        self._scores = self._histogram(
            registry,
            "gatehouse_task_score",
            "Scores of each task, over a sample of responses: probabilities, or values in the "
            "unit of the task such as seconds.",
            SCORE_BUCKETS,
            ("model", "task"),
        )
        self._rank_scores = self._histogram(
            registry,
            "gatehouse_rank_score",
            "Rank scores of each model, over a sample of responses.",
            RANK_SCORE_BUCKETS,
            ("model",),
        )

    def _create_for_versions(self, registry: CollectorRegistry) -> None:
        trial = ("model", "role")
        self._comparisons = Counter(
            "gatehouse_version_comparisons_total",
            "Requests to be scored by two versions of a model, by the role of the one on trial and "
            "result: compared, dropped while lanes were busy, or failed.",
            (*trial, "result"),
            registry=registry,
        )
        self._version_tau = self._histogram(
            registry,
            "gatehouse_version_kendall_tau",
            "Kendall rank correlation, -1 to 1, of the orders of the active version and of the one "
            "on trial, shadow or canary.",
            TAU_BUCKETS,
            trial,
        )
        self._version_overlap = self._histogram(
            registry,
            "gatehouse_version_top_10_overlap",
            "Share, 0 to 1, of the 10 best candidates of one version that are among the 10 best of "
            "the other, for the active version and the one on trial.",
            OVERLAP_BUCKETS,
            trial,
        )
        self._version_differences = self._histogram(
            registry,
            "gatehouse_version_score_difference",
            "Mean absolute difference of a task's scores in one request, between the active "
            "version and the one on trial.",
            SCORE_BUCKETS,
            (*trial, "task"),
        )

    def _histogram(
        self,
        registry: CollectorRegistry,
        name: str,
        help_: str,
        buckets: tuple[float, ...],
        labels: tuple[str, ...],
    ) -> BulkHistogram:
        histogram = BulkHistogram(name, help_, buckets, labels)
        registry.register(histogram)
        self._histograms.append(histogram)
        return histogram

    def drain(self) -> None:
        """Count pending observations; called regularly, so that few are pending."""
        for histogram in self._histograms:
            histogram.drain()

    def watch_drift(
        self,
        features: Callable[[], Mapping[tuple[str, str], float]],
        scores: Callable[[], Mapping[tuple[str, str], float]],
    ) -> None:
        """Export the drift of features and of scores, by model and name; read at each scrape."""
        index = "Population stability index"
        for name, labels, help_, read in (
            (
                "feature_drift",
                ("model", "feature"),
                f"{index} of a feature of recent requests against the training data: 0 is no "
                "change, above 0.25 a large one.",
                features,
            ),
            (
                "score_drift",
                ("model", "task"),
                f"{index} of a task's recent scores against those in training: 0 is no change, "
                "above 0.25 a large one.",
                scores,
            ),
        ):
            self._registry.register(_ExternalGauge(f"gatehouse_{name}", help_, labels, read))

    def show_policy_set(self, version: str) -> None:
        """Show this policy set as the one in use."""
        self._set.clear()
        self._set.labels(version).set(1)

    def shadow_compared(self, policy: str, shadow: str, *, tau: float, overlap: float) -> None:
        """Record how well the order of a shadow agrees with that of the response."""
        self._tau.observer(policy, shadow)(tau)
        self._overlap.observer(policy, shadow)(overlap)

    def version_compared(self, model: str, role: str, result: str) -> None:
        """Count a request that two versions score, or should have scored."""
        self._comparisons.labels(model, role, result).inc()

    def versions_differed(
        self, model: str, role: str, *, tau: float, overlap: float, differences: Mapping[str, float]
    ) -> None:
        """Record how far two versions differ on one request; `differences` are by task."""
        self._version_tau.observer(model, role)(tau)
        self._version_overlap.observer(model, role)(overlap)
        for task, difference in differences.items():
            self._version_differences.observer(model, role, task)(difference)

    def scores_sampled(
        self, model: str, tasks: Sequence[str], scores: Numbers, rank_score: Numbers
    ) -> None:
        """Count the scores `[n, K]` and rank scores `[n]` of one response."""
        for task, column in zip(tasks, scores.T, strict=True):
            self._scores.observe_many(column, model, task)
        self._rank_scores.observe_many(rank_score, model)


class _ExternalGauge(Collector):
    """A gauge whose series are kept elsewhere and read at each scrape."""

    def __init__(
        self,
        name: str,
        help_: str,
        labels: tuple[str, ...],
        read: Callable[[], Mapping[tuple[str, str], float]],
    ) -> None:
        self._name, self._help, self._labels, self._read = name, help_, labels, read

    def collect(self) -> Iterator[Metric]:
        """Return the current values."""
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for values, value in self._read().items():
            family.add_metric(values, value)
        yield family
