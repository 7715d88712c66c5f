"""Evaluate a policy with many different weights on the requests of a log."""

from collections.abc import Mapping

import numpy as np

from app.ranking.formulas import Formula, Numbers, compile_formula
from app.ranking.ranker import Ranker
from app.tuning.bootstrap import Gain, bootstrap_gain
from app.tuning.goal import Goal
from app.tuning.log import Floats, Log
from app.tuning.log_view import LogView

Weights = Mapping[str, float]


class PolicyEvaluator:
    """What a policy reaches on the requests of a log with given weights.

    Three of the four formulas are a weighted sum of one term for each task. Their terms are
    computed once, and new weights cost one matrix product. An expression is evaluated each time.

    Attributes:
        outcomes: the names of the log's outcomes.
    """

    def __init__(self, log: Log, ranker: Ranker) -> None:
        """Calibrate the scores of `log` as `ranker` does. Its policy must have no multiplier."""
        self.outcomes = tuple(log.outcomes)
        self._view = LogView(log)
        self._ranker = ranker
        self._scores = ranker.calibrated(log.scores)  # [n, K]
        self._terms: Floats | None = None
        if ranker.formula.is_exact:
            unit_weights = ranker.policy.reweighted(dict.fromkeys(ranker.tasks, 1.0))
            formula = compile_formula(unit_weights, ranker.tasks)
            self._terms = _terms(formula, self._scores, log)  # [n, K]

    def sort_keys(self, weights: Weights) -> Floats:
        """Return the sort keys of the log's rows, `[n]`, under these weights."""
        if self._terms is not None:
            column = [weights.get(task, 0.0) for task in self._ranker.tasks]  # K
            return np.asarray(self._terms @ np.array(column))
        policy = self._ranker.policy.reweighted(weights)
        return compile_formula(policy, self._ranker.tasks).sort_keys(self._scores)

    def contributions(self, goal: Goal, weights: Weights) -> Floats:
        """Return what each request contributes to a goal under these weights, `[R, m]`."""
        return goal.contributions(self._view, self.sort_keys(weights))

    def means(self, goal: Goal, weights: Weights | None = None) -> Floats:
        """Return the mean contributions `[m]` under these weights, or the policy's own."""
        contributions = self.contributions(goal, self._present if weights is None else weights)
        return np.asarray(contributions.mean(axis=0))

    def gain(self, goal: Goal, weights: Weights) -> Gain:
        """Compare these weights with the policy's own."""
        before = self.contributions(goal, self._present)
        return bootstrap_gain(goal, before, self.contributions(goal, weights))

    @property
    def _present(self) -> Weights:
        return self._ranker.policy.weights


def _terms(formula: Formula, scores: Numbers, log: Log) -> Floats:
    """Compute terms `[n, K]` request by request, since positions are those within a request."""
    ends = np.flatnonzero(np.diff(log.request, append=-1)) + 1  # [R]
    parts = np.split(scores, ends[:-1])
    return np.concatenate([formula.terms(part) for part in parts])
