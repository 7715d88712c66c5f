"""How well two rankings of the same candidates agree."""

import numpy as np
import numpy.typing as npt

from app.ranking.formulas import SortKeys
from app.ranking.ranker import order

MOST_COMPARED = 500
"""The most candidates of a request that are compared, evenly spaced: comparing takes n² bytes."""
TOP = 10


def compare_orders(before: SortKeys, after: SortKeys) -> tuple[float | None, float]:
    """Compare the orders of two rankings `[n]` of the same candidates, at least one.

    Of more than `MOST_COMPARED` candidates, as many are compared, evenly spaced.

    Returns:
        Kendall's τ-b, -1 to 1, or None for a single candidate; the overlap of the `TOP` best, 0 to
        1.
    """
    n = len(before)
    m = min(n, MOST_COMPARED)
    chosen = np.arange(m) * n // m  # [m]
    before, after = before[chosen], after[chosen]
    tau = kendall_tau(before, after) if m > 1 else None
    return tau, overlap(before, after, TOP)


def overlap(before: SortKeys, after: SortKeys, k: int) -> float:
    """Return the share of the `k` best by `before` that are also among the `k` best by `after`."""
    k = min(k, len(before))
    return len(np.intersect1d(order(before, k), order(after, k))) / k


def kendall_tau(before: SortKeys, after: SortKeys) -> float:
    """Return Kendall's τ-b of two rankings `[n]`, from -1 to 1; 1 if one of them is all ties.

    Counts pairs as Knight (1966) does, but compares all pairs at once instead of merge sorting.
    That is faster in NumPy for a few hundred candidates, and needs n² bytes.
    """
    n = len(before)
    a, b = _ranks(before), _ranks(after)
    pairs = n * (n - 1) // 2
    tied_a, tied_b = _tied_pairs(a), _tied_pairs(b)
    if pairs in (tied_a, tied_b):
        return 1.0
    tied_in_both = _tied_pairs(a * n + b)
    b_by_a = b[np.lexsort((b, a))]  # [n], b sorted by a; where a ties, b ascends
    if n < 2**15:
        b_by_a = b_by_a.astype(np.int16)  # half the memory, half the time
    # [n, n]: row i is the later candidate of a pair, column j the earlier one.
    discordant = np.count_nonzero((b_by_a[None, :] > b_by_a[:, None]) & np.tri(n, dtype=bool))
    concordant_less_discordant = pairs - tied_a - tied_b + tied_in_both - 2 * discordant
    tau = concordant_less_discordant / np.sqrt(float(pairs - tied_a) * float(pairs - tied_b))
    return float(np.clip(tau, -1.0, 1.0))


def _ranks(values: SortKeys) -> npt.NDArray[np.integer]:
    """Return each value's rank among the distinct values, `[n]` from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _tied_pairs(values: npt.NDArray[np.integer]) -> int:
    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())
