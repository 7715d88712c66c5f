"""Why the candidates are in this order: each task's share of a candidate's sort key.

The sort key is the rank score or, for a product, its logarithm (`app.ranking.formulas`). The shares
add up to the sort key. The exception is an expression: its shares are finite differences, and the
remainder is the sort key less all shares.

A lead is a share less the mean share of all candidates. It shows what puts a candidate ahead of the
others or behind them; a share alone may be the same for all candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.ranking.formulas import SMALLEST_SCORE, Numbers, Scores, SortKeys, logs
from app.ranking.ranker import Ranker

MAX_EXPLAINED = 100
"""Only this many candidates are explained, the best ones."""

LEAD_MEANING = "share less the mean share of all candidates: + puts ahead, - puts behind"

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The m best candidates, explained. K columns, one for each task; the multiplier adds another.

    Attributes:
        ranker: the policy that ranked the candidates.
        positions: `[m]`, indices of the candidates, best first.
        sort_keys: `[m]`.
        raw: `[m, K]`, the model's scores.
        calibrated: `[m, K]`, the calibrated scores, which the formula reads.
        shares: `[m, K]` float64.
        leads: `[m, K]` float64.
    """

    ranker: Ranker
    positions: npt.NDArray[np.intp]
    sort_keys: SortKeys
    raw: Numbers
    calibrated: Numbers
    shares: SortKeys
    leads: SortKeys

    @property
    def remainders(self) -> SortKeys:
        """Sort key less all shares, `[m]`; 0 up to rounding, except for an expression."""
        remainders: SortKeys = self.sort_keys - self.shares.sum(axis=1)
        return remainders

    def document(self, keys: Sequence[str | int] | None) -> dict[str, object]:
        """Return the explanation as a document; its numbers are NumPy float32.

        Args:
            keys: the candidates' keys, or None to name candidates by index.
        """
        policy, tasks = self.ranker.policy, self.ranker.tasks
        used = [(k, task) for k, task in enumerate(tasks) if task in policy.tasks]
        columns = {
            "raw": _rows(self.raw),
            "calibrated": _rows(self.calibrated),
            "share": _rows(self.shares),
            "lead": _rows(self.leads),
        }
        sort_keys, remainders = _float32(self.sort_keys), _float32(self.remainders)
        candidates = []
        for row, position in enumerate(self.positions.tolist()):

            def numbers(column: int, row: int = row) -> dict[str, object]:
                return {name: rows[row][column] for name, rows in columns.items()}

            candidate: dict[str, object] = {
                "candidate": position if keys is None else keys[position],
                "total": sort_keys[row],
                "tasks": {task: numbers(k) for k, task in used},
            }
            if policy.multiplier is not None:
                candidate["multiplier"] = numbers(len(tasks))
            if not self.ranker.formula.is_exact:
                candidate["remainder"] = remainders[row]
            candidates.append(candidate)
        return {
            "share": self.ranker.formula.share_meaning,
            "lead": LEAD_MEANING,
            "candidates": candidates,
        }


def explain(
    ranker: Ranker,
    scores: Scores,
    sort_keys: SortKeys,
    ranking: npt.NDArray[np.intp],
    multiplier: Numbers | None = None,
) -> Explanation:
    """Explain a ranking.

    Args:
        ranker: the ranker that made the ranking.
        scores: `[n, K]` float32, the model's output.
        sort_keys: `[n]`, as returned by `ranker`.
        ranking: candidate indices, best first; the first `MAX_EXPLAINED` are explained.
        multiplier: `[n]`, as for `Ranker.sort_keys`.
    """
    raw: Numbers = scores
    calibrated = ranker.calibrated(scores)  # [n, K]
    shares = ranker.formula.terms(calibrated)  # [n, K]
    if multiplier is not None:
        raw = np.column_stack([raw, multiplier])  # [n, K + 1], as the next two
        calibrated = np.column_stack([calibrated, np.maximum(multiplier, SMALLEST_SCORE)])
        shares = np.column_stack([shares, logs(multiplier)])
    best = ranking[:MAX_EXPLAINED]  # [m]
    means = shares.sum(axis=0) / max(1, len(shares))  # [K]
    return Explanation(
        ranker=ranker,
        positions=best,
        sort_keys=sort_keys[best],
        raw=raw[best],
        calibrated=calibrated[best],
        shares=shares[best],
        leads=shares[best] - means,
    )


def _rows(values: Numbers) -> list[list[np.float32]]:
    return [list(row) for row in _float32(values)]


def _float32(values: Numbers) -> Scores:
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float32)
