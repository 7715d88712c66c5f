"""What the gates of mixtures of experts choose: the mean weight per level, gate and expert.

One observation is the mean over the candidates of one sampled request. They are kept as arrays per
version, and become series at a scrape.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client.metrics_core import Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from app.telemetry.exposition import TextMetric, beginning, number

Means = npt.NDArray[np.float64]

RECENT = 60
"""Requests whose mean is shown as the recent one; a minute under traffic."""


class GateCell(NamedTuple):
    """The names of one weight: of an expert, by a gate, in a level (from 1)."""

    level: str
    gate: str
    expert: str


@dataclass(slots=True)
class _Observed:
    """The observations of one version, each `[cells]`, in the order of `cells`.

    `lines` are how the lines of a cell begin: those of its count and its sum.
    """

    cells: Sequence[GateCell]
    lines: Sequence[tuple[str, str]]
    total: Means
    requests: int = 0
    recent: deque[Means] = field(default_factory=lambda: deque(maxlen=RECENT))
    text: str = ""
    """Its lines as they were written last; empty after an observation."""

    def write(self) -> str:
        """Return the lines of the version."""
        if not self.text:
            requests, totals = number(self.requests), self.total.tolist()
            self.text = "".join(
                f"{count}{requests}\n{sum_}{number(total)}\n"
                for (count, sum_), total in zip(self.lines, totals, strict=True)
            )
        return self.text


class GateMetrics(Collector):
    """The summary `gate_weight`. Any thread may observe and collect."""

    def __init__(self) -> None:
        """Start without series; a version has them from its first observation on."""
        self._observed: dict[str, _Observed] = {}
        self._lock = Lock()

    def observe(self, version: str, cells: Sequence[GateCell], means: Means) -> None:
        """Add the mean weights `[cells]` of one request; `version` is `name/version`."""
        with self._lock:
            observed = self._observed.get(version)
            if observed is None:
                total = np.zeros(len(cells), np.float64)
                lines = [self._beginnings(version, cell) for cell in cells]
                observed = self._observed[version] = _Observed(cells, lines, total)
            observed.total += means
            observed.requests += 1
            observed.recent.append(means)
            observed.text = ""

    def recent(self, version: str) -> tuple[int, Means | None]:
        """Return how many of a version's last requests were observed, and their mean `[cells]`."""
        with self._lock:
            observed = self._observed.get(version)
            if observed is None:
                return 0, None
            mean: Means = np.mean(list(observed.recent), axis=0)
            return len(observed.recent), mean

    def forget(self, version: str) -> None:
        """Remove the series of a version that is not loaded any more."""
        with self._lock:
            self._observed.pop(version, None)

    def keep_only(self, versions: Collection[str]) -> None:
        """Remove the series of all other versions, which a late observation brought back."""
        with self._lock:
            self._observed = {
                v: observed for v, observed in self._observed.items() if v in versions
            }

    def describe(self) -> Iterator[Metric]:
        """Return the metric without samples, for the registry."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        """Return the metric."""
        with self._lock:
            lines = [observed.write() for observed in self._observed.values()]
        yield TextMetric(self._family(), lines, self._samples)

    def _beginnings(self, version: str, cell: GateCell) -> tuple[str, str]:
        model, _, number_ = version.rpartition("/")
        labels = dict(zip(self._labels, (model, number_, *cell), strict=True))
        name = self._family().name
        return beginning(f"{name}_count", labels), beginning(f"{name}_sum", labels)

    def _samples(self) -> list[Sample]:
        family = self._family()
        with self._lock:
            for label, observed in self._observed.items():
                model, _, version = label.rpartition("/")
                for cell, total in zip(observed.cells, observed.total.tolist(), strict=True):
                    family.add_metric((model, version, *cell), observed.requests, total)
        return family.samples

    def _family(self) -> SummaryMetricFamily:
        return SummaryMetricFamily(
            "gatehouse_gate_weight",
            "Mean weight, 0 to 1, that a gate gives to an expert, over the candidates of a sampled "
            "request.",
            labels=self._labels,
        )

    _labels = ("model", "version", "level", "gate", "expert")
