"""A log's rows under a policy whose weights vary.

Three of the formulas are sums of a term a task, weighted: the terms are computed once, and then
new weights cost one product. An expression is evaluated anew.
"""

from collections.abc import Mapping

import numpy as np

from app.ranking.formulas import Formula, Numbers, compile_formula
from app.ranking.ranker import Ranker
from app.tuning.log import Floats, Log


class Varied:
    """The sort_keys of a log's rows, by the policy's weights."""

    def __init__(self, log: Log, ranker: Ranker) -> None:
        """Calibrate the scores of `log` as `ranker` does, whose policy has no multiplier."""
        self._ranker = ranker
        self._scores = ranker.calibrated(log.scores)  # [n, K]
        self._terms: Floats | None = None
        if ranker.formula.is_exact:
            once = ranker.policy.reweighted(dict.fromkeys(ranker.tasks, 1.0))
            self._terms = _terms(compile_formula(once, ranker.tasks), self._scores, log)  # [n, K]

    def sort_keys(self, weights: Mapping[str, float]) -> Floats:
        """Return the sort_keys, `[n]`, with these weights instead of the policy's."""
        if self._terms is not None:
            column = [weights.get(task, 0.0) for task in self._ranker.tasks]  # K
            return np.asarray(self._terms @ np.array(column))
        policy = self._ranker.policy.reweighted(weights)
        return compile_formula(policy, self._ranker.tasks).sort_keys(self._scores)


def _terms(formula: Formula, scores: Numbers, log: Log) -> Floats:
    """Compute terms request by request: places are places among a request's own candidates."""
    ends = np.flatnonzero(np.diff(log.request, append=-1)) + 1  # [R]
    parts = np.split(scores, ends[:-1])
    return np.concatenate([formula.terms(each) for each in parts])
