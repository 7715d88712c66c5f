"""Task scores to one rank score per candidate, and the order of the candidates."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from app.ranking.policy import Policy

Scores = npt.NDArray[np.float32]
Merit = npt.NDArray[np.float64]

SMALLEST_SCORE = 1e-9
"""The ε of `power_product`: a score of zero must not erase what the other tasks say."""

_LARGEST = float(np.finfo(np.float32).max)


def merit(scores: Scores, tasks: Sequence[str], policy: Policy) -> Merit:
    """Return what the candidates are ordered by: the rank score, of a product its logarithm.

    In float64 it neither overflows nor meets ties that are none, whatever the weights.

    Args:
        scores: `[n, K]` float32, one column a task, in the order of `tasks`.
        tasks: the K task names.
        policy: its weights may name some of the tasks; the others have no influence.

    Returns:
        `[n]` float64, always finite; higher ranks first.
    """
    weights = np.array([policy.weights.get(task, 0.0) for task in tasks])  # [K] float64
    if policy.formula == "power_product":
        scores_or_logs = np.log(np.maximum(scores, SMALLEST_SCORE, dtype=np.float64))  # [n, K]
    else:
        scores_or_logs = scores.astype(np.float64)  # [n, K]
    merits: Merit = scores_or_logs @ weights  # [n]
    return merits


def rank_scores(merits: Merit, policy: Policy) -> Scores:
    """Return the rank score of each candidate, `[n]` float32: finite, in the order of merit."""
    with np.errstate(over="ignore"):
        exact = np.exp(merits) if policy.formula == "power_product" else merits  # [n] float64
    rounded: Scores = np.clip(exact, -_LARGEST, _LARGEST).astype(np.float32)
    return rounded


def order(merits: Merit, top_k: int | None = None) -> npt.NDArray[np.intp]:
    """Return candidate positions, best first; ties keep the order in which they were sent."""
    return np.argsort(-merits, kind="stable")[:top_k]
