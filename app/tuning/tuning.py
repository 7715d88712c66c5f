"""Tuning: weights found on some requests of a log, and judged on others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.ranking.policy import Policy
from app.ranking.ranker import Ranker
from app.tuning.gain import Gain
from app.tuning.goal import Gathered, Goal
from app.tuning.log import Log
from app.tuning.policy_evaluator import PolicyEvaluator
from app.tuning.search import Interval, Try, best, search, searched, spread
from app.tuning.trade_off import TradeOff, trade_off

LOOKS = 200
"""How many weights are drawn from all over for the trade-off, besides some of those tried."""


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """What came of a search.

    Attributes:
        before: the policy as it was.
        after: the policy with the weights that were found.
        gains: on held-out requests, by what is gained: the goal first, then each outcome.
        intervals: what was searched.
        tried: every try, the present weights first.
        held_out: the requests that it was judged on.
        goal: what was to be reached.
    """

    before: Policy
    after: Policy
    gains: Mapping[str, Gain]
    intervals: Mapping[str, Interval]
    tried: Sequence[Try]
    held_out: PolicyEvaluator
    goal: Goal

    @property
    def is_sure(self) -> bool:
        """Whether the goal is reached better on held-out requests, and not by chance."""
        return self.gains[str(self.goal)].is_sure

    def trade_off(self) -> TradeOff:
        """Judge weights from all over, and some of those tried, by what they cost."""
        drawn = spread(self.before.weights, self.intervals, LOOKS)
        looked = [*(each.weights for each in self.tried[::3]), *drawn]
        outcomes = list(dict.fromkeys([*self.goal.outcomes, *self.held_out.outcomes]))
        return trade_off(self.held_out, outcomes, self.goal.at, looked, self.after.weights)


def tuned(
    fit: Log,
    held_out: Log,
    ranker: Ranker,
    goal: Goal,
    *,
    tries: int = 300,
    within: float = 10.0,
    seed: int = 0,
    tell: Callable[[Try], None] = lambda _: None,
) -> Tuned:
    """Search for the weights of a policy that reach a goal best.

    Args:
        fit: the requests that are searched on.
        held_out: the requests that the find is judged on.
        ranker: the policy, which has no multiplier, for the model of the log.
        goal: what is to be reached.
        tries: about how many weights are looked at.
        within: by which factor a weight changes at most.
        seed: of the search.
        tell: called after every try.

    Raises:
        TuningError: there is nothing to search, or scipy is not installed.
    """
    policy = ranker.policy
    is_expression = policy.formula == "expression"  # else only the ratios of weights matter
    intervals = searched(policy.weights, policy.bounds, within=within, anchored=not is_expression)
    learnt = PolicyEvaluator(fit, ranker)
    now = learnt.means(goal)
    tried = search(
        lambda weights: float(goal.value(learnt.means(goal, weights), now)),
        policy.weights,
        intervals,
        tries=tries,
        seed=seed,
        tell=tell,
    )
    after = policy.reweighted(best(tried).weights)
    judged = PolicyEvaluator(held_out, ranker)
    gains = {str(goal): judged.gain(goal, after.weights)}
    for name in judged.outcomes:
        gains[f"{name}@{goal.at}"] = judged.gain(Gathered(name, goal.at), after.weights)
    return Tuned(policy, after, gains, intervals, tried, judged, goal)
