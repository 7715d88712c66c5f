"""Whether a change is worth making: its gain on held-out requests, and how sure that is.

The interval is the percentile bootstrap (Efron, 1979) over requests, both orders judged on the
same draws: requests are alike in nothing else, and rows of one request are not independent.
"""

from dataclasses import dataclass

import numpy as np

from app.tuning.goal import Valued
from app.tuning.log import Floats

DRAWS = 1000
SURE = 0.95
_AT_ONCE = 5_000_000  # numbers of a chunk of draws


@dataclass(frozen=True, slots=True)
class Gain:
    """A goal before and after, and the interval that its change lies in with 95 % confidence."""

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
        """Whether it is better even at the low end."""
        return self.low > 0


def gain(goal: Valued, before: Floats, after: Floats, *, seed: int = 0, draws: int = DRAWS) -> Gain:
    """Compare two orders by what each request contributes to the goal under them.

    Args:
        goal: what is to be reached.
        before: `[R, m]`, see `Goal.shares`.
        after: likewise, of the same requests.
        seed: of the draws.
        draws: how often the requests are resampled.
    """
    random = np.random.default_rng(seed)
    requests = len(before)
    both = np.concatenate([before, after], axis=1)  # [R, 2m]
    mean = _means(np.ones((1, requests)), both)
    means = [mean]
    chunk = max(1, _AT_ONCE // requests)
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        counts = random.multinomial(requests, np.full(requests, 1 / requests), size=size)
        means.append(_means(counts.astype(np.float64), both))
    m = before.shape[1]
    now, then = np.split(np.concatenate(means), [m], axis=1)  # [1 + draws, m] each
    values_now, values_then = goal.value(now, now), goal.value(then, now)
    low, high = np.quantile((values_then - values_now)[1:], [(1 - SURE) / 2, (1 + SURE) / 2])
    return Gain(float(values_now[0]), float(values_then[0]), float(low), float(high))


def _means(counts: Floats, shares: Floats) -> Floats:
    """Return the means over requests drawn so often, `[draws, m]`."""
    return np.asarray(counts @ shares / counts.sum(axis=1, keepdims=True))
