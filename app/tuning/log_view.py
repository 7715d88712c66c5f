"""A log arranged so that one sort orders the candidates of thousands of requests.

Requests of similar size (up to the same power of two) share a block, padded to the widest of them.
The candidates of each request are shuffled once. So where a policy ties candidates, their order is
random and not the order of the log, which may depend on what users liked.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from app.tuning.log import Floats, Log

Block: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Requests `[r]` and their rows `[r, w]`; a row number of n is padding."""


class LogView:
    """The R requests of a log, ready to be ordered many times.

    Attributes:
        log: the log.
    """

    def __init__(self, log: Log, *, seed: int = 0) -> None:
        """Arrange the rows of a log; `seed` is that of the shuffle."""
        self.log = log
        self._blocks = list(_blocks(log.request, seed))
        self._ideals: dict[tuple[object, ...], tuple[Floats, Floats]] = {}

    def top_sums(self, sort_keys: Floats, values: Floats, discounts: Floats) -> Floats:
        """Sum the values of each request's k best candidates.

        Args:
            sort_keys: `[n]`; higher ranks first.
            values: `[n, m]`, m values of each candidate.
            discounts: `[k]`, the factor of the first candidate, the second, and so on.

        Returns:
            `[R, m]`: Σ over the k best of discount · value.
        """
        padded = np.append(values, np.zeros((1, values.shape[1])), axis=0)  # [n + 1, m]
        sums = np.empty((self.log.requests, values.shape[1]))
        for members, best in self._best(sort_keys, len(discounts)):
            sums[members] = np.einsum("rkm,k->rm", padded[best], discounts[: best.shape[1]])
        return sums

    def top_outcomes(self, sort_keys: Floats, names: Sequence[str], k: int) -> Floats:
        """Sum the named outcomes over each request's k best candidates, `[R, m]`."""
        columns = np.stack([self._outcome(name) for name in names], axis=1)  # [n, m]
        return self.top_sums(sort_keys, columns, np.ones(k))

    def ideal(self, worth: Mapping[str, float], discounts: Floats) -> tuple[Floats, Floats]:
        """Return each row's gain, `[n, 1]`, and the best sum that each request can have, `[R]`.

        The result is kept, because a search asks for the same one hundreds of times.

        Args:
            worth: the gain of one unit of an outcome, by outcome.
            discounts: `[k]`, as for `top_sums`.
        """
        key = (*worth.items(), len(discounts))
        if key not in self._ideals:
            gain = sum(value * self._outcome(name) for name, value in worth.items())
            gains = np.asarray(gain)[:, None]  # [n, 1]
            self._ideals[key] = gains, self.top_sums(gains[:, 0], gains, discounts)[:, 0]
        return self._ideals[key]

    def _outcome(self, name: str) -> Floats:
        """Return an outcome, `[n]`; an undefined outcome counts as 0."""
        return np.nan_to_num(self.log.outcomes[name])

    def _best(self, sort_keys: Floats, k: int) -> Iterator[Block]:
        """Yield requests and their best rows, `[r, min(k, w)]`, best first."""
        padded = np.append(-sort_keys, np.inf)  # [n + 1]; padding ranks last
        for members, rows in self._blocks:
            best = np.argsort(padded[rows], axis=1)[:, :k]  # [r, k]
            yield members, np.take_along_axis(rows, best, axis=1)


def _blocks(request: npt.NDArray[np.int64], seed: int) -> Iterator[Block]:
    """Arrange rows by `request`, int64 `[n]`, ascending from 0 without a gap."""
    rows = len(request)
    sizes = np.bincount(request)  # [R]
    starts = np.cumsum(sizes) - sizes  # [R]
    random = np.random.default_rng(seed)
    shuffled = np.lexsort((random.random(rows), request))  # [n]
    exponents = np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)  # [R]
    for exponent in np.unique(exponents):
        members = np.flatnonzero(exponents == exponent)  # [r]
        column = np.arange(sizes[members].max())  # [w]
        source = np.minimum(starts[members, None] + column, rows - 1)  # [r, w]
        is_row = column < sizes[members, None]  # [r, w]
        yield members, np.where(is_row, shuffled[source], rows)
