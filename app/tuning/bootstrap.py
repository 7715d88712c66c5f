"""Whether a change is worth making: its gain on held-out requests, with a confidence interval.

The interval is the percentile bootstrap (Efron, 1979). It resamples requests, not rows, because
rows of one request are not independent. Before and after are computed on the same draws.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.tuning.log import Floats

DRAWS = 1000
CONFIDENCE = 0.95
_MAX_COUNTS = 5_000_000  # numbers in one chunk of draws, which bounds the memory


class Statistic(Protocol):
    """A number computed from means over requests; higher is better."""

    def value(self, mean: Floats, baseline: Floats) -> Floats:
        """Return the number, `[...]`, from means `[..., m]` of what each request contributes.

        Args:
            mean: means under the order that is judged.
            baseline: means under the present order, on the same requests.
        """
        ...


@dataclass(frozen=True, slots=True)
class Gain:
    """A statistic before and after a change.

    Attributes:
        before: its value under the present order.
        after: its value after the change.
        low: lower end of the 95 % interval of the change.
        high: upper end of the 95 % interval of the change.
    """

    before: float
    after: float
    low: float
    high: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def is_sure(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


def bootstrap_gain(
    statistic: Statistic, before: Floats, after: Floats, *, seed: int = 0, draws: int = DRAWS
) -> Gain:
    """Compare two orders of the same requests.

    Args:
        statistic: computes a value from means over requests.
        before: `[R, m]`, what each request contributes under the present order.
        after: `[R, m]`, what it contributes after the change.
        seed: seed of the draws.
        draws: number of resamples.
    """
    random = np.random.default_rng(seed)
    requests = len(before)
    both = np.concatenate([before, after], axis=1)  # [R, 2m]
    means = [_means(np.ones((1, requests)), both)]  # the sample itself, then the resamples
    chunk = max(1, _MAX_COUNTS // requests)
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        counts = random.multinomial(requests, np.full(requests, 1 / requests), size=size)
        means.append(_means(counts.astype(np.float64), both))
    m = before.shape[1]
    mean_before, mean_after = np.split(np.concatenate(means), [m], axis=1)  # [1 + draws, m] each
    values_before = statistic.value(mean_before, mean_before)  # [1 + draws]
    values_after = statistic.value(mean_after, mean_before)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile((values_after - values_before)[1:], tails)
    return Gain(float(values_before[0]), float(values_after[0]), float(low), float(high))


def _means(counts: Floats, contributions: Floats) -> Floats:
    """Return means `[draws, m]` over requests that were drawn `counts` `[draws, R]` times."""
    return np.asarray(counts @ contributions / counts.sum(axis=1, keepdims=True))
