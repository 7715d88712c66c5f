"""Why the candidates stand in this order: each task's share of a candidate's merit.

The merit is the rank score or, for a product, its logarithm (`app.ranking.formulas`). Shares add up
to it, but for an expression: there they are finite differences, and what they leave is stated as
the remainder. A lead is a share less the mean share of all candidates, so leads tell what puts a
candidate ahead of the others, or behind, where a share alone may be alike for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.ranking.formulas import SMALLEST_SCORE, Numbers, Scores, SortKeys, logs
from app.ranking.ranker import Ranker

MOST_EXPLAINED = 100
"""So many candidates are explained at most, the best ones: nobody reads more."""

LEADS = "share less the mean share of all candidates: + puts ahead, - puts behind"

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The m best candidates, explained; K tasks, and a column more where there is a multiplier.

    Attributes:
        ranker: by whose policy they stand as they do.
        positions: `[m]`, best first.
        sort_keys: `[m]`.
        raw: `[m, K]`, the model's scores.
        calibrated: `[m, K]`, what was fused.
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
        """What the shares leave of the merit, `[m]`; rounding only, but for an expression."""
        left: SortKeys = self.sort_keys - self.shares.sum(axis=1)
        return left

    def document(self, keys: Sequence[str | int] | None) -> dict[str, object]:
        """Return it as a document to read, for JSON with NumPy's float32.

        Args:
            keys: the candidates' names, or None where positions do.
        """
        policy, tasks = self.ranker.policy, self.ranker.tasks
        reads = [(k, task) for k, task in enumerate(tasks) if task in policy.tasks]
        columns = {
            "raw": _rows(self.raw),
            "calibrated": _rows(self.calibrated),
            "share": _rows(self.shares),
            "lead": _rows(self.leads),
        }
        sort_keys, remainders = _written(self.sort_keys), _written(self.remainders)
        candidates = []
        for row, position in enumerate(self.positions.tolist()):

            def told(column: int, row: int = row) -> dict[str, object]:
                return {name: rows[row][column] for name, rows in columns.items()}

            candidate: dict[str, object] = {
                "candidate": position if keys is None else keys[position],
                "total": sort_keys[row],
                "tasks": {task: told(k) for k, task in reads},
            }
            if policy.multiplier is not None:
                candidate["multiplier"] = told(len(tasks))
            if not self.ranker.formula.is_exact:
                candidate["remainder"] = remainders[row]
            candidates.append(candidate)
        return {"share": self.ranker.formula.shares, "lead": LEADS, "candidates": candidates}


def explain(
    ranker: Ranker,
    scores: Scores,
    sort_keys: SortKeys,
    ranking: npt.NDArray[np.intp],
    multiplier: Numbers | None = None,
) -> Explanation:
    """Explain a ranking.

    Args:
        ranker: which made it.
        scores: `[n, K]` float32, as the model gave them.
        sort_keys: `[n]`, what `ranker` made of them.
        ranking: positions, best first; `MOST_EXPLAINED` of them are explained.
        multiplier: `[n]`, as for `Ranker.sort_keys`.
    """
    raw: Numbers = scores
    calibrated = ranker.calibrated(scores)  # [n, K]
    shares = ranker.formula.terms(calibrated)  # [n, K]
    if multiplier is not None:
        raw = np.column_stack([raw, multiplier])  # [n, K + 1], as are the others
        calibrated = np.column_stack([calibrated, np.maximum(multiplier, SMALLEST_SCORE)])
        shares = np.column_stack([shares, logs(multiplier)])
    best = ranking[:MOST_EXPLAINED]  # [m]
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
    return [list(row) for row in _written(values)]


def _written(values: Numbers) -> Scores:
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float32)
