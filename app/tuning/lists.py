"""Each request's candidates side by side, so that one sort orders thousands of requests.

Requests of about one size (up to the same power of two) stand in one block, padded to its widest.
Candidates of a request are shuffled once: where a policy ties them, the order is one by chance,
and not the order of the log, which may tell what users liked.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from app.tuning.log import Floats

Block: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class Lists:
    """The rows of `R` requests, ready to be ordered again and again."""

    def __init__(self, request: npt.NDArray[np.int64], *, seed: int = 0) -> None:
        """Arrange rows by `request`, int64 `[n]`, ascending from 0 without a gap."""
        self.rows = len(request)
        sizes = np.bincount(request)  # [R]
        starts = np.cumsum(sizes) - sizes  # [R]
        random = np.random.default_rng(seed)
        shuffled = np.lexsort((random.random(len(request)), request))  # [n]
        self.requests = len(sizes)
        self._blocks: list[Block] = []
        exponent = np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)  # [R]
        for each in np.unique(exponent):
            members = np.flatnonzero(exponent == each)  # [r]
            place = np.arange(sizes[members].max())  # [w]
            taken = np.minimum(starts[members, None] + place, len(request) - 1)
            there = place < sizes[members, None]  # [r, w]
            self._blocks.append((members, np.where(there, shuffled[taken], self.rows)))

    def captured(self, sort_keys: Floats, values: Floats, discounts: Floats) -> Floats:
        """Sum what the best candidates of each request are worth.

        Args:
            sort_keys: `[n]`; higher ranks first.
            values: `[n, m]`, what a candidate is worth, in m kinds.
            discounts: `[k]`, how much counts of what stands first, second, and so on.

        Returns:
            `[R, m]`: Σ over the k best of discount · value.
        """
        padded = np.append(values, np.zeros((1, values.shape[1])), axis=0)  # [n + 1, m]
        result = np.empty((self.requests, values.shape[1]))
        for members, best in self._best(sort_keys, len(discounts)):
            result[members] = np.einsum("rkm,k->rm", padded[best], discounts[: best.shape[1]])
        return result

    def _best(self, sort_keys: Floats, k: int) -> Iterator[Block]:
        """Yield requests and their best rows, `[r, min(k, w)]`, best first."""
        padded = np.append(-sort_keys, np.inf)  # [n + 1] and what pads ranks last
        for members, rows in self._blocks:
            best = np.argsort(padded[rows], axis=1)[:, :k]  # [r, k]
            yield members, np.take_along_axis(rows, best, axis=1)
