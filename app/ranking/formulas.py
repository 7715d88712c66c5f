"""The four formulas, each compiled from a policy for the tasks of one model.

A formula orders candidates by their *sort keys*. A sort key is the rank score itself; for a product
it is the logarithm of the rank score, because in float64 the logarithm neither overflows nor rounds
different products to the same number, whatever the weights.

A sort key depends only on its own candidate's numbers, to the bit, and not on the candidate's row
(a BLAS matrix product does not guarantee that). So equal candidates tie, and ties keep their order.
Only `rank_position` also depends on the other candidates: through positions, which equal scores
share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from app.ranking.expression import Expression
from app.ranking.policy import Policy

Numbers = npt.NDArray[np.floating]
SortKeys = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]

SMALLEST_SCORE = 1e-9
"""The ε of `power_product`: a score of 0 must not cancel the other tasks."""

STEP = 0.01
"""The relative step of a finite difference: a task's score is lowered by this share."""

_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_LOG = float(np.log(_LARGEST))


class Formula(Protocol):
    """A policy's formula, bound to the order of a model's tasks.

    Attributes:
        share_meaning: what `terms` returns, in words for an explanation.
        is_exact: whether the terms add up to the sort key.
        is_row_wise: whether a candidate's sort key depends on its own scores alone.
    """

    share_meaning: ClassVar[str]
    is_exact: ClassVar[bool]
    is_row_wise: ClassVar[bool]

    def sort_keys(self, scores: Numbers) -> SortKeys:
        """Return `[n]` float64, finite, from calibrated scores `[n, K]`; higher ranks first."""

    def rank_scores(self, sort_keys: SortKeys) -> Scores:
        """Return `[n]` float32, finite, in the same order as the sort keys."""

    def terms(self, scores: Numbers) -> SortKeys:
        """Return each task's share of the sort key, `[n, K]` float64."""


class _KeyIsRankScore:
    """Formulas whose sort key is the rank score."""

    __slots__ = ()

    def rank_scores(self, sort_keys: SortKeys) -> Scores:
        """Return the sort keys as float32, clipped to its range."""
        return np.minimum(np.maximum(sort_keys, -_LARGEST), _LARGEST).astype(np.float32)


@dataclass(frozen=True, slots=True)
class WeightedSum(_KeyIsRankScore):
    """Σ wₖ·sₖ."""

    weights: SortKeys  # [K]
    share_meaning: ClassVar[str] = "weight x score; they add up to the rank score"
    is_exact: ClassVar[bool] = True
    is_row_wise: ClassVar[bool] = True

    def sort_keys(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return weighted(scores, self.weights)

    def terms(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return scores * self.weights  # [n, K]


@dataclass(frozen=True, slots=True)
class PowerProduct:
    """Π max(sₖ, ε)^wₖ; the sort key is its logarithm."""

    weights: SortKeys  # [K]
    share_meaning: ClassVar[str] = "weight x log(score); they add up to the log of the rank score"
    is_exact: ClassVar[bool] = True
    is_row_wise: ClassVar[bool] = True

    def sort_keys(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return weighted(logs(scores), self.weights)

    def rank_scores(self, sort_keys: SortKeys) -> Scores:
        """See `Formula`; a product above float32's range becomes its largest number."""
        exact = np.exp(np.minimum(sort_keys, _LARGEST_LOG))  # [n] float64
        return np.minimum(exact, _LARGEST).astype(np.float32)

    def terms(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return logs(scores) * self.weights  # [n, K]


@dataclass(frozen=True, slots=True)
class RankPosition(_KeyIsRankScore):
    """Σ wₖ / (rₖ^αₖ + βₖ)."""

    weights: SortKeys  # [K]
    alpha: SortKeys  # [K]
    beta: SortKeys  # [K]
    share_meaning: ClassVar[str] = "weight / (position^alpha + beta); they add up to the rank score"
    is_exact: ClassVar[bool] = True
    is_row_wise: ClassVar[bool] = False

    def sort_keys(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return weighted(1 / (positions(scores) ** self.alpha + self.beta), self.weights)

    def terms(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return self.weights / (positions(scores) ** self.alpha + self.beta)  # [n, K]


@dataclass(frozen=True, slots=True)
class ExpressionFormula(_KeyIsRankScore):
    """An expression over the tasks."""

    expression: Expression
    weights: Mapping[str, float]
    tasks: Sequence[str]
    share_meaning: ClassVar[str] = (
        f"finite difference: how much the rank score falls when the task's score is {STEP:.0%} "
        f"lower, divided by {STEP}; the remainder is the rank score less all shares"
    )
    is_exact: ClassVar[bool] = False
    is_row_wise: ClassVar[bool] = True

    def sort_keys(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        by_task = scores.astype(np.float64).T  # [K, n]
        return self.expression(dict(zip(self.tasks, by_task, strict=True)), self.weights)

    def terms(self, scores: Numbers) -> SortKeys:
        """See `Formula`; evaluates the expression up to K + 1 times."""
        sort_keys = self.sort_keys(scores)  # [n]
        terms = np.zeros(scores.shape)  # [n, K]
        for column, task in enumerate(self.tasks):
            if task in self.expression.tasks:
                lowered = scores.astype(np.float64)
                lowered[:, column] *= 1 - STEP
                terms[:, column] = (sort_keys - self.sort_keys(lowered)) / STEP
        return terms


def weighted(values: Numbers, weights: SortKeys) -> SortKeys:
    """Return Σ wₖ·vₖ, `[n, K]` → `[n]` float64; a row's sum does not depend on other rows."""
    sums: SortKeys = np.vecdot(values, weights)
    return sums


def logs(scores: Numbers) -> SortKeys:
    """Return log max(score, ε) in float64, of any shape."""
    return np.log(np.maximum(scores, SMALLEST_SCORE, dtype=np.float64))


def positions(scores: Numbers) -> SortKeys:
    """Return each score's position in its column, `[n, K]` from 1; equal scores share the best."""
    positions = np.empty(scores.shape)
    for column, of_task in enumerate(scores.T):  # [n]
        at_most = np.searchsorted(np.sort(of_task), of_task, side="right")
        positions[:, column] = 1 + len(of_task) - at_most
    return positions


def compile_formula(policy: Policy, tasks: Sequence[str]) -> Formula:
    """Return a policy's formula for scores `[n, K]` whose columns are `tasks` in this order."""

    def column(by_name: Mapping[str, float] | None, default: float) -> SortKeys:
        return np.array([(by_name or {}).get(task, default) for task in tasks], np.float64)  # [K]

    weights = column(policy.weights, 0.0)
    match policy.formula:
        case "weighted_sum":
            return WeightedSum(weights)
        case "power_product":
            return PowerProduct(weights)
        case "rank_position":
            return RankPosition(weights, column(policy.alpha, 1.0), column(policy.beta, 0.0))
        case "expression":
            return ExpressionFormula(policy.compiled_expression, policy.weights, tasks)
