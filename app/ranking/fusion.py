"""Task scores to one rank score per candidate, and the order of the candidates."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from app.ranking.policy import Policy

Scores = npt.NDArray[np.float32]

SMALLEST_SCORE = 1e-9
"""The ε of `power_product`: a score of zero must not erase what the other tasks say."""

_LARGEST = float(np.finfo(np.float32).max)


def fuse(scores: Scores, tasks: Sequence[str], policy: Policy) -> Scores:
    """Return the rank score of each candidate.

    Args:
        scores: `[n, K]` float32, one column a task, in the order of `tasks`.
        tasks: the K task names.
        policy: its weights may name some of the tasks; the others have no influence.

    Returns:
        `[n]` float32, always finite; higher ranks first.
    """
    weights = np.array([policy.weights.get(task, 0.0) for task in tasks])  # [K] float64
    if policy.formula == "weighted_sum":
        fused = scores @ weights  # [n]
    else:
        log_scores = np.log(np.maximum(scores, SMALLEST_SCORE, dtype=np.float64))  # [n, K]
        with np.errstate(over="ignore"):
            fused = np.exp(log_scores @ weights)  # [n]
    rank_score: Scores = np.clip(fused, -_LARGEST, _LARGEST).astype(np.float32)
    return rank_score


def order(rank_score: Scores, top_k: int | None = None) -> npt.NDArray[np.intp]:
    """Return candidate positions, best first; ties keep the order in which they were sent."""
    return np.argsort(-rank_score, kind="stable")[:top_k]
