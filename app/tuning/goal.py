"""Goals: how good an order of logged candidates is, as one number; higher is better.

- `Ndcg`: normalised discounted cumulated gain at k (Järvelin and Kekäläinen, TOIS 2002). The gain
  of a candidate is Σ worth · outcome: `click=1, like=4, dwell=0.05` says that a like is worth four
  clicks, and so are 80 s of dwell. Requests where no candidate has a gain are left out.
- `Mix`: a target for each outcome, as a multiple of what the present policy collects among the k
  best: `click=1, like=1.1` asks for 10 % more likes and no fewer clicks. Its value is the smallest
  outcome / target, so 1 means that every target is reached. Maximising the smallest ratio can find
  every efficient trade-off; a weighted sum misses those in a concave part of the front (Steuer and
  Choo, Mathematical Programming 1983).

Each goal is a function of means over requests, so that it can be bootstrapped by request.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.tuning.bootstrap import Statistic
from app.tuning.log import Floats
from app.tuning.log_view import LogView

MEAN_SHARE = 1e-3
"""The weight of the mean ratio in a mix: of two orders with equal minima the better one wins."""


class Goal(Statistic, Protocol):
    """How good an order is."""

    @property
    def outcomes(self) -> Mapping[str, float]:
        """The outcomes that count, each with its worth or target."""
        ...

    @property
    def k(self) -> int:
        """How many of the best candidates of a request count."""
        ...

    def contributions(self, view: LogView, sort_keys: Floats) -> Floats:
        """Return what each request contributes, `[R, m]`; `value` takes their means."""
        ...


@dataclass(frozen=True, slots=True)
class Ndcg:
    """NDCG at k; `outcomes` has the worth of one unit of each outcome."""

    outcomes: Mapping[str, float]
    k: int

    def __str__(self) -> str:
        return f"NDCG@{self.k}"

    @property
    def discounts(self) -> Floats:
        """The factor of the first candidate, the second, and so on, `[k]`."""
        return np.asarray(1 / np.log2(np.arange(self.k) + 2))

    def contributions(self, view: LogView, sort_keys: Floats) -> Floats:
        """See `Goal`; `[R, 2]`: the NDCG, and 1 if the request has any gain, else 0 and 0."""
        gains, ideal = view.ideal(self.outcomes, self.discounts)  # [n, 1], [R]
        reached = view.top_sums(sort_keys, gains, self.discounts)[:, 0]  # [R]
        has_gain = ideal > 0  # [R]
        ndcg = np.where(has_gain, reached / np.where(has_gain, ideal, 1), 0)
        return np.stack([ndcg, has_gain], axis=1)

    def value(self, mean: Floats, baseline: Floats) -> Floats:  # noqa: ARG002  (Statistic)
        """See `Statistic`: the mean over requests with a gain."""
        return np.asarray(mean[..., 0] / np.maximum(mean[..., 1], 1e-12))


@dataclass(frozen=True, slots=True)
class Mix:
    """Targets for several outcomes, as multiples of what the present policy collects at k."""

    outcomes: Mapping[str, float]
    k: int

    def __str__(self) -> str:
        return f"least outcome@{self.k} / target"

    def contributions(self, view: LogView, sort_keys: Floats) -> Floats:
        """See `Goal`; one column for each outcome."""
        return view.top_outcomes(sort_keys, tuple(self.outcomes), self.k)

    def value(self, mean: Floats, baseline: Floats) -> Floats:
        """See `Statistic`: the smallest ratio of an outcome to its target."""
        targets = np.array(list(self.outcomes.values()))
        ratio = mean / np.maximum(baseline, 1e-12) / targets  # [..., m]
        least = (1 - MEAN_SHARE) * ratio.min(axis=-1)
        return np.asarray(least + MEAN_SHARE * ratio.mean(axis=-1))


@dataclass(frozen=True, slots=True)
class MeanOutcome:
    """The sum of one outcome over a request's k best candidates, averaged over requests."""

    outcome: str
    k: int

    @property
    def outcomes(self) -> Mapping[str, float]:
        """See `Goal`."""
        return {self.outcome: 1.0}

    def contributions(self, view: LogView, sort_keys: Floats) -> Floats:
        """See `Goal`; `[R, 1]`."""
        return view.top_outcomes(sort_keys, [self.outcome], self.k)

    def value(self, mean: Floats, baseline: Floats) -> Floats:  # noqa: ARG002  (Statistic)
        """See `Statistic`."""
        return mean[..., 0]
