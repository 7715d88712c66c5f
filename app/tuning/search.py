"""Search for the weights of a policy that reach a goal best on logged requests.

A goal is piecewise constant in the weights: it changes only where two candidates swap positions. So
there is no gradient, and a simplex search stalls on the plateaus. Differential evolution (Storn and
Price, 1997) needs only values, respects bounds, and does not stop at the first local optimum. A few
weights need a few hundred trials.

Scaling all weights of a sum or a product does not change the order. So the largest weight is fixed,
and the search has one dimension less. A weight is searched on a logarithmic scale, unless its
interval contains 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import TuningError
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker
from app.tuning.bootstrap import Gain
from app.tuning.goal import Goal, MeanOutcome
from app.tuning.log import Floats, Log
from app.tuning.policy_evaluator import PolicyEvaluator
from app.tuning.trade_off import TradeOff, trade_off

Weights = dict[str, float]
Interval = tuple[float, float]

DIGITS = 3
"""Significant digits of a weight that is found; more digits would be noise."""

TRADE_OFF_SAMPLES = 200
"""How many random weights the trade-off evaluates, besides some of the search's trials."""

_TRIALS_PER_GENERATION = 8  # for each weight that is searched


@dataclass(frozen=True, slots=True)
class Trial:
    """Weights that were tried, and the goal's value on the requests that are searched on."""

    weights: Mapping[str, float]
    value: float


@dataclass(frozen=True, slots=True, eq=False)
class TuningResult:
    """The result of a search.

    Attributes:
        before: the policy as it was.
        after: the policy with the weights that were found.
        gains: on held-out requests, by name: the goal first, then each outcome.
        intervals: the intervals that were searched.
        tried: every trial, the present weights first.
        held_out: evaluates weights on the held-out requests.
        goal: the goal of the search.
    """

    before: Policy
    after: Policy
    gains: Mapping[str, Gain]
    intervals: Mapping[str, Interval]
    tried: Sequence[Trial]
    held_out: PolicyEvaluator
    goal: Goal

    @property
    def is_sure(self) -> bool:
        """Whether the goal's gain on held-out requests is above 0 in its whole 95 % interval."""
        return self.gains[str(self.goal)].is_sure

    def trade_off(self) -> TradeOff:
        """Evaluate random weights and every third trial, outcome by outcome."""
        samples = sample_weights(self.before.weights, self.intervals, TRADE_OFF_SAMPLES)
        weights = [*(candidate.weights for candidate in self.tried[::3]), *samples]
        outcomes = list(dict.fromkeys([*self.goal.outcomes, *self.held_out.outcomes]))
        return trade_off(self.held_out, outcomes, self.goal.k, weights, self.after.weights)


def tune_policy(
    fit: Log,
    held_out: Log,
    ranker: Ranker,
    goal: Goal,
    *,
    tries: int = 300,
    within: float = 10.0,
    seed: int = 0,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> TuningResult:
    """Search for the weights of a policy on some requests, and judge them on others.

    Args:
        fit: the requests to search on.
        held_out: the requests to judge on.
        ranker: the policy, without a multiplier, compiled for the model of the log.
        goal: the goal to reach.
        tries: about how many weights are tried.
        within: the largest factor by which a weight may change, up or down.
        seed: seed of the search; the same seed finds the same weights.
        on_trial: called after every trial.

    Raises:
        TuningError: there is nothing to search, or scipy is not installed.
    """
    policy = ranker.policy
    only_ratios_matter = policy.formula != "expression"
    intervals = search_intervals(
        policy.weights, policy.bounds, within=within, fix_largest=only_ratios_matter
    )
    on_fit = PolicyEvaluator(fit, ranker)
    baseline = on_fit.means(goal)
    tried = search(
        lambda weights: float(goal.value(on_fit.means(goal, weights), baseline)),
        policy.weights,
        intervals,
        tries=tries,
        seed=seed,
        on_trial=on_trial,
    )
    after = policy.reweighted(best(tried).weights)
    on_held_out = PolicyEvaluator(held_out, ranker)
    gains = {str(goal): on_held_out.gain(goal, after.weights)}
    for name in on_held_out.outcomes:
        outcome = MeanOutcome(name, goal.k)
        gains[f"{name}@{goal.k}"] = on_held_out.gain(outcome, after.weights)
    return TuningResult(policy, after, gains, intervals, tried, on_held_out, goal)


def search(
    evaluate: Callable[[Weights], float],
    weights: Mapping[str, float],
    intervals: Mapping[str, Interval],
    *,
    tries: int,
    seed: int = 0,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """Search for the weights with the highest value.

    Args:
        evaluate: returns the value of weights; higher is better.
        weights: the start. Weights that `intervals` does not name stay as they are.
        intervals: lowest and highest value of each weight that is searched.
        tries: about how many weights are tried.
        seed: the same seed finds the same weights.
        on_trial: called after every trial.

    Returns:
        Every trial, the start first.

    Raises:
        TuningError: scipy is not installed.
    """
    try:
        from scipy.optimize import differential_evolution
    except ImportError:
        raise TuningError("the search needs scipy: pip install -e '.[tune]'") from None
    axes = [_Axis.of(name, *interval) for name, interval in intervals.items()]
    tried: list[Trial] = []

    def attempt(candidate: Mapping[str, float]) -> float:
        full = {**weights, **candidate}
        tried.append(Trial(full, evaluate(full)))
        on_trial(tried[-1])
        return -tried[-1].value

    def attempt_point(point: Floats) -> float:
        return attempt({a.name: a.weight(x) for a, x in zip(axes, point, strict=True)})

    attempt({})
    population = _TRIALS_PER_GENERATION * len(axes)
    differential_evolution(
        attempt_point,
        [axis.range for axis in axes],
        x0=[axis.coordinate(weights[axis.name]) for axis in axes],
        popsize=_TRIALS_PER_GENERATION,
        maxiter=max(1, round(tries / max(population, 5)) - 1),
        tol=1e-4,
        polish=False,
        rng=np.random.default_rng(seed),
    )
    return tried


def best(tried: Sequence[Trial]) -> Trial:
    """Return the trial with the highest value; of equals, the first."""
    return max(tried, key=lambda candidate: candidate.value)


def sample_weights(
    weights: Mapping[str, float], intervals: Mapping[str, Interval], count: int, *, seed: int = 0
) -> list[Weights]:
    """Draw weights at random from the whole of the intervals."""
    axes = [_Axis.of(name, *interval) for name, interval in intervals.items()]
    low, high = np.array([axis.range for axis in axes]).T  # [d] each
    points = np.random.default_rng(seed).uniform(low, high, (count, len(axes)))  # [count, d]
    return [
        {**weights, **{a.name: a.weight(float(x)) for a, x in zip(axes, point, strict=True)}}
        for point in points
    ]


def search_intervals(
    weights: Mapping[str, float],
    bounds: Mapping[str, Interval] | None,
    *,
    within: float,
    fix_largest: bool,
) -> dict[str, Interval]:
    """Return the weights to search, each with its interval.

    Args:
        weights: the present weights.
        bounds: the policy's bounds, or None if it has none. A weight of 0 is searched only if it
            has bounds.
        within: the largest factor by which a weight may change, up or down.
        fix_largest: leave out the largest weight, because only ratios of weights matter.

    Raises:
        TuningError: there is nothing to search.
    """
    intervals = {}
    for name in {**weights, **(bounds or {})}:
        weight = weights.get(name, 0.0)
        low, high = sorted((weight / within, weight * within))
        if bounds is not None and name in bounds:
            low, high = bounds[name] if weight == 0 else _intersection((low, high), bounds[name])
        if low < high:
            intervals[name] = (low, high)
    if fix_largest:
        intervals.pop(max(weights, key=lambda name: abs(weights[name])), None)
    if not intervals:
        raise TuningError(
            "nothing to tune: the policy has a single weight, or its bounds allow no change"
        )
    return intervals


def _intersection(one: Interval, other: Interval) -> Interval:
    return max(one[0], other[0]), min(one[1], other[1])


@dataclass(frozen=True, slots=True)
class _Axis:
    """One dimension of the search: a weight, or the logarithm of its absolute value.

    Attributes:
        sign: of a weight that is searched on a logarithmic scale; 0 on a linear scale.
    """

    name: str
    low: float
    high: float
    sign: float

    @classmethod
    def of(cls, name: str, low: float, high: float) -> "_Axis":
        sign = 1.0 if low > 0 else -1.0 if high < 0 else 0.0
        return cls(name, low, high, sign)

    @property
    def range(self) -> Interval:
        first, last = sorted((self.coordinate(self.low), self.coordinate(self.high)))
        return first, last

    def coordinate(self, weight: float) -> float:
        inside = min(max(weight, self.low), self.high)
        return math.log(abs(inside)) if self.sign else inside

    def weight(self, coordinate: float) -> float:
        exact = self.sign * math.exp(coordinate) if self.sign else float(coordinate)
        return min(max(float(f"{exact:.{DIGITS}g}"), self.low), self.high)
