"""Some requests of a log, under one policy, whose weights are judged again and again."""

from collections.abc import Mapping

import numpy as np

from app.ranking.ranker import Ranker
from app.tuning.gain import Gain, gain
from app.tuning.goal import Goal, LogView
from app.tuning.log import Floats, Log
from app.tuning.varied import Varied

Weights = Mapping[str, float]


class PolicyEvaluator:
    """What weights reach on some requests, beside the weights that the policy has now.

    Attributes:
        outcomes: the names of those that the log holds.
    """

    def __init__(self, log: Log, ranker: Ranker) -> None:
        """Arrange the requests of `log`, whose scores `ranker` calibrates and fuses."""
        self.outcomes = tuple(log.outcomes)
        self._board = LogView(log)
        self._varied = Varied(log, ranker)
        self._now = ranker.policy.weights

    def shares(self, goal: Goal, weights: Weights) -> Floats:
        """Return what each request contributes to a goal under these weights, `[R, m]`."""
        return goal.shares(self._board, self._varied.sort_keys(weights))

    def gain(self, goal: Goal, weights: Weights) -> Gain:
        """Return what a goal gains by these weights."""
        return gain(goal, self.shares(goal, self._now), self.shares(goal, weights))

    def means(self, goal: Goal, weights: Weights | None = None) -> Floats:
        """Return the mean share `[m]` under these weights, or under the present ones."""
        shares = self.shares(goal, self._now if weights is None else weights)
        return np.asarray(shares.mean(axis=0))
