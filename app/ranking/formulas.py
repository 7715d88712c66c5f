"""The four formulas, each compiled from a policy for the tasks of one model.

A formula orders candidates by their *merit*: the rank score itself or, for a product, its
logarithm, which in float64 neither overflows nor meets ties that are none, whatever the weights.
Every merit depends on its own candidate's numbers alone, bit for bit and wherever the candidate
stands (a BLAS product does not promise that), so equal candidates tie and ties keep their order.
`rank_position` reads places besides, and equal scores share a place.
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
"""The ε of `power_product`: a score of zero must not erase what the other tasks say."""

STEP = 0.01
"""By what part of itself a task's score is lowered for a finite difference."""

_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_LOG = float(np.log(_LARGEST))


class Formula(Protocol):
    """A policy's formula, bound to the order of a model's tasks.

    Attributes:
        shares: what `terms` are, in words for people.
        is_exact: whether the terms add up to the sort key.
        is_row_wise: whether a candidate's sort key depends on its own scores alone.
    """

    shares: ClassVar[str]
    is_exact: ClassVar[bool]
    is_row_wise: ClassVar[bool]

    def sort_keys(self, scores: Numbers) -> SortKeys:
        """Return `[n]` float64, finite, for calibrated scores `[n, K]`; higher ranks first."""

    def rank_scores(self, sort_keys: SortKeys) -> Scores:
        """Return `[n]` float32, finite, in the order of the sort_keys."""

    def terms(self, scores: Numbers) -> SortKeys:
        """Return each task's share of the merit, `[n, K]` float64."""


class _Plain:
    """Formulas whose merit is the rank score."""

    __slots__ = ()

    def rank_scores(self, sort_keys: SortKeys) -> Scores:
        """Return the sort_keys as float32."""
        return np.minimum(np.maximum(sort_keys, -_LARGEST), _LARGEST).astype(np.float32)


@dataclass(frozen=True, slots=True)
class WeightedSum(_Plain):
    """Σ wₖ·sₖ."""

    weights: SortKeys  # [K]
    shares: ClassVar[str] = "weight x score; they add up to the rank score"
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
    """Π max(sₖ, ε)^wₖ; the merit is its logarithm."""

    weights: SortKeys  # [K]
    shares: ClassVar[str] = "weight x log(score); they add up to the log of the rank score"
    is_exact: ClassVar[bool] = True
    is_row_wise: ClassVar[bool] = True

    def sort_keys(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return weighted(logs(scores), self.weights)

    def rank_scores(self, sort_keys: SortKeys) -> Scores:
        """See `Formula`; what float32 cannot hold becomes its largest number."""
        exact = np.exp(np.minimum(sort_keys, _LARGEST_LOG))  # [n] float64
        return np.minimum(exact, _LARGEST).astype(np.float32)

    def terms(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return logs(scores) * self.weights  # [n, K]


@dataclass(frozen=True, slots=True)
class RankPosition(_Plain):
    """Σ wₖ / (rₖ^αₖ + βₖ)."""

    weights: SortKeys  # [K]
    alpha: SortKeys  # [K]
    beta: SortKeys  # [K]
    shares: ClassVar[str] = "weight / (place^alpha + beta); they add up to the rank score"
    is_exact: ClassVar[bool] = True
    is_row_wise: ClassVar[bool] = False

    def sort_keys(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return weighted(1 / (places(scores) ** self.alpha + self.beta), self.weights)

    def terms(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        return self.weights / (places(scores) ** self.alpha + self.beta)  # [n, K]


@dataclass(frozen=True, slots=True)
class Expressed(_Plain):
    """An expression over the tasks."""

    expression: Expression
    weights: Mapping[str, float]
    tasks: Sequence[str]
    shares: ClassVar[str] = (
        f"finite difference: what the rank score loses when the task's score is {STEP:.0%} lower, "
        f"divided by {STEP}; the remainder is what they leave of the rank score"
    )
    is_exact: ClassVar[bool] = False
    is_row_wise: ClassVar[bool] = True

    def sort_keys(self, scores: Numbers) -> SortKeys:
        """See `Formula`."""
        by_task = scores.astype(np.float64).T  # [K, n]
        return self.expression(dict(zip(self.tasks, by_task, strict=True)), self.weights)

    def terms(self, scores: Numbers) -> SortKeys:
        """See `Formula`; K + 1 evaluations."""
        sort_keys = self.sort_keys(scores)  # [n]
        terms = np.zeros(scores.shape)  # [n, K]
        for column, task in enumerate(self.tasks):
            if task in self.expression.tasks:
                lowered = scores.astype(np.float64)
                lowered[:, column] *= 1 - STEP
                terms[:, column] = (sort_keys - self.sort_keys(lowered)) / STEP
        return terms


def weighted(values: Numbers, weights: SortKeys) -> SortKeys:
    """Return Σ wₖ·vₖ, `[n, K]` → `[n]` float64, each row by itself: see the module."""
    sums: SortKeys = np.vecdot(values, weights)
    return sums


def logs(scores: Numbers) -> SortKeys:
    """Return log max(score, ε) in float64."""
    return np.log(np.maximum(scores, SMALLEST_SCORE, dtype=np.float64))


def places(scores: Numbers) -> SortKeys:
    """Return each score's place in its column, `[n, K]` from 1; equal scores share the best."""
    found = np.empty(scores.shape)
    for column, of_task in enumerate(scores.T):  # [n]
        at_most = np.searchsorted(np.sort(of_task), of_task, side="right")
        found[:, column] = 1 + len(of_task) - at_most
    return found


def compiled(policy: Policy, tasks: Sequence[str]) -> Formula:
    """Return a policy's formula for scores `[n, K]` with one column a task, in this order."""

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
            return Expressed(policy.compiled, policy.weights, tasks)
