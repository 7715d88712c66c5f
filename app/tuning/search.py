"""The search for the weights that reach a goal best.

A goal is piecewise constant in the weights (it changes only where two candidates change places), so
there is no gradient to follow, and a simplex stalls on its plateaus. Differential evolution (Storn
and Price, 1997) needs values only, keeps to its bounds, and does not stop at the first summit; a
handful of weights take it a few hundred tries.

An order does not change when all weights of a sum or of a product grow alike, so the largest one
stays as it is, and one direction less is searched. A weight is searched by its logarithm, unless
its bounds hold 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import TuningError
from app.tuning.log import Floats

Weights = dict[str, float]
Interval = tuple[float, float]

DIGITS = 3
"""Significant digits of a weight that is found: more would be noise, and nobody could say them."""
_POPULATION = 8  # tries a generation, by searched weight


@dataclass(frozen=True, slots=True)
class Try:
    """Weights that were looked at, and what they reached on the requests that were searched."""

    weights: Mapping[str, float]
    value: float


def search(
    judge: Callable[[Weights], float],
    weights: Mapping[str, float],
    intervals: Mapping[str, Interval],
    *,
    tries: int,
    seed: int = 0,
    tell: Callable[[Try], None] = lambda _: None,
) -> list[Try]:
    """Look for the weights that `judge` values most.

    Args:
        judge: what weights are worth; higher is better.
        weights: where to begin; what `intervals` does not name stays as it is.
        intervals: lowest and highest value, of the weights to be searched.
        tries: about how many weights are looked at.
        seed: the same seed finds the same weights.
        tell: called after every try.

    Returns:
        Every try, the beginning first.

    Raises:
        TuningError: scipy is not installed.
    """
    try:
        from scipy.optimize import differential_evolution
    except ImportError:
        raise TuningError("the search needs scipy: pip install -e '.[tune]'") from None
    axes = [_Axis.of(name, *interval) for name, interval in intervals.items()]
    tried: list[Try] = []

    def attempt(candidate: Mapping[str, float]) -> float:
        found = {**weights, **candidate}
        tried.append(Try(found, judge(found)))
        tell(tried[-1])
        return -tried[-1].value

    def at(point: Floats) -> float:
        return attempt({a.name: a.weight(x) for a, x in zip(axes, point, strict=True)})

    attempt({})
    population = _POPULATION * len(axes)
    differential_evolution(
        at,
        [each.range for each in axes],
        x0=[each.place(weights[each.name]) for each in axes],
        popsize=_POPULATION,
        maxiter=max(1, round(tries / max(population, 5)) - 1),
        tol=1e-4,
        polish=False,
        rng=np.random.default_rng(seed),
    )
    return tried


def spread(
    weights: Mapping[str, float], intervals: Mapping[str, Interval], count: int, *, seed: int = 0
) -> list[Weights]:
    """Draw weights from all over the intervals, for a look at what there is."""
    axes = [_Axis.of(name, *interval) for name, interval in intervals.items()]
    low, high = np.array([each.range for each in axes]).T  # [d] each
    points = np.random.default_rng(seed).uniform(low, high, (count, len(axes)))  # [count, d]
    return [
        {**weights, **{a.name: a.weight(float(x)) for a, x in zip(axes, point, strict=True)}}
        for point in points
    ]


def best(tried: Sequence[Try]) -> Try:
    """Return the try that reached most; of equals, the first."""
    return max(tried, key=lambda each: each.value)


def searched(
    weights: Mapping[str, float],
    bounds: Mapping[str, Interval] | None,
    *,
    within: float,
    anchored: bool,
) -> dict[str, Interval]:
    """Say which weights are searched, and how far.

    Args:
        weights: the present ones.
        bounds: what the policy allows, or None where it allows everything. A weight of 0 is
            searched only where bounds say how far.
        within: a weight changes by this factor at most, up or down.
        anchored: whether only the ratios of weights matter.

    Raises:
        TuningError: there is nothing to search.
    """
    intervals = {}
    for name in {**weights, **(bounds or {})}:
        weight = weights.get(name, 0.0)
        low, high = sorted((weight / within, weight * within))
        if bounds is not None and name in bounds:
            low, high = bounds[name] if weight == 0 else _overlap((low, high), bounds[name])
        if low < high:
            intervals[name] = (low, high)
    if anchored:
        intervals.pop(max(weights, key=lambda name: abs(weights[name])), None)
    if not intervals:
        raise TuningError("the policy leaves nothing to tune: one weight alone, or narrow bounds")
    return intervals


def _overlap(one: Interval, other: Interval) -> Interval:
    return max(one[0], other[0]), min(one[1], other[1])


@dataclass(frozen=True, slots=True)
class _Axis:
    """One weight as the search sees it."""

    name: str
    low: float
    high: float
    sign: float  # of a weight that is searched by its logarithm; else 0

    @classmethod
    def of(cls, name: str, low: float, high: float) -> "_Axis":
        sign = 1.0 if low > 0 else -1.0 if high < 0 else 0.0
        return cls(name, low, high, sign)

    @property
    def range(self) -> Interval:
        first, last = sorted((self.place(self.low), self.place(self.high)))
        return first, last

    def place(self, weight: float) -> float:
        inside = min(max(weight, self.low), self.high)
        return math.log(abs(inside)) if self.sign else inside

    def weight(self, place: float) -> float:
        exact = self.sign * math.exp(place) if self.sign else float(place)
        return min(max(float(f"{exact:.{DIGITS}g}"), self.low), self.high)
