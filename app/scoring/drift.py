"""Drift: how far recent requests and scores are from the training data of the active version.

A sample of requests is counted in the bins that training wrote into the manifest. Artifacts without
them are left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from app.artifacts.distributions import Counts, IdBins, NumberBins
from app.artifacts.inputs import DenseInput, Input
from app.artifacts.loader import Model
from app.engine.request import RequestFeatures
from app.lifecycle.registry import Registry, Role
from app.ranking.formulas import Scores

WINDOW_REQUESTS = 1000
"""Drift is that of the last 1 000 to 2 000 requests of the sample."""
MIN_REQUESTS = 200
"""With fewer requests the index would be mostly noise, and is not shown."""
MOST_ROWS = 50
"""Candidates of a request that are counted, evenly spaced."""
FEATURES_AT_ONCE = 20
"""Features of a request that are counted: one takes 10 µs of the event loop."""


class Drift(NamedTuple):
    """The population stability indices of one model, by feature and by task."""

    features: Mapping[str, float]
    scores: Mapping[str, float]


@dataclass(slots=True)
class _Window:
    """The values of one feature or task in recent requests, in two halves."""

    bins: NumberBins | IdBins
    counts: Counts = field(init=False)
    former: Counts = field(init=False)
    requests: int = 0
    is_full: bool = False

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.bins.shares), np.int64)
        self.former = np.zeros_like(self.counts)

    def add(self, counts: Counts) -> None:
        if self.requests >= WINDOW_REQUESTS:
            self.former, self.counts = self.counts, np.zeros_like(self.counts)
            self.requests, self.is_full = 0, True
        self.counts += counts
        self.requests += 1

    @property
    def index(self) -> float | None:
        if not self.is_full and self.requests < MIN_REQUESTS:
            return None
        return self.bins.stability_index(self.former + self.counts)


class _Version:
    """The windows of one version."""

    def __init__(self, model: Model) -> None:
        manifest = model.manifest
        known = manifest.distributions
        assert known is not None
        self.label = model.label
        self.columns = manifest.task_columns
        sides = {feature.name: feature.side for feature in manifest.inputs}
        # A missing number counts as the default, as it did when the bins were made.
        fills = {
            feature.name: feature.default for feature in manifest.inputs if _is_filled(feature)
        }
        self.features = [
            (name, sides[name], fills.get(name), _Window(bins))
            for name, bins in known.features.items()
            if name in sides
        ]
        self.scores = {
            task: _Window(bins) for task, bins in known.scores.items() if task in self.columns
        }
        self.next = 0


def _is_filled(feature: Input) -> bool:
    """Whether the module itself puts the default in place of NaN."""
    return isinstance(feature, DenseInput) and feature.missing == "nan"


class DriftMonitor:
    """Counts a sample of requests; owned by the event loop, and read by any thread."""

    def __init__(self, registry: Registry) -> None:
        """Start with no requests; only active versions of `registry` are counted."""
        self._registry = registry
        self._versions: dict[str, _Version] = {}  # by model

    def observe(self, model: Model, features: RequestFeatures, scores: Scores) -> None:
        """Count a request `[n, K]` of the sample, if the active version scored it."""
        manifest = model.manifest
        if manifest.distributions is None or self._registry.role(model) != Role.ACTIVE:
            return
        version = self._versions.get(manifest.name)
        if version is None or version.label != model.label:
            version = self._versions[manifest.name] = _Version(model)
        n = len(scores)
        m = min(n, MOST_ROWS)
        if not m:
            return
        chosen = np.arange(m) * n // m  # [m]
        start, total = version.next, len(version.features)
        for number in range(min(total, FEATURES_AT_ONCE)):
            name, side, fill, window = version.features[(start + number) % total]
            of_user = side == "user"
            column = features.user_column(name) if of_user else features.candidate_column(name)
            if not of_user:
                column = column[chosen]
            if fill is not None:
                column = np.where(np.isnan(column), np.asarray(fill, np.float32), column)
            window.add(window.bins.counts(column))
        version.next = (start + FEATURES_AT_ONCE) % max(1, total)
        for task, window in version.scores.items():
            window.add(window.bins.counts(scores[chosen, version.columns[task]]))

    def of(self, name: str) -> Drift | None:
        """Return the drift of a model's active version; None without figures of its training.

        A feature or task without enough requests is left out.
        """
        version = self._versions.get(name)
        active = self._registry.version(name, self._registry.active_version(name))
        if active is None or active.manifest.distributions is None:
            return None
        if version is None or version.label != active.label:
            return Drift({}, {})
        return Drift(
            {
                feature: index
                for feature, _, _, window in version.features
                if (index := window.index) is not None
            },
            {
                task: index
                for task, window in version.scores.items()
                if (index := window.index) is not None
            },
        )

    def features(self) -> dict[tuple[str, str], float]:
        """Return the index of each feature, by model and feature."""
        return {
            (name, feature): index
            for name in list(self._versions)
            if (drift := self.of(name)) is not None
            for feature, index in drift.features.items()
        }

    def scores(self) -> dict[tuple[str, str], float]:
        """Return the index of each task's scores, by model and task."""
        return {
            (name, task): index
            for name in list(self._versions)
            if (drift := self.of(name)) is not None
            for task, index in drift.scores.items()
        }
