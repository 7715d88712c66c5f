"""What a policy is to reach, as a number for an order of logged candidates; higher is better.

Two goals:

- `Ndcg`: normalised discounted cumulated gain at k (Järvelin and Kekäläinen, TOIS 2002), where a
  candidate's gain is Σ value · outcome: `click=1, like=4, dwell=0.05` says that a like is worth
  four clicks and so are 80 s. Requests in which nothing was gained say nothing, and are left out.
- `Mix`: a target for each outcome, as a multiple of what the present policy gathers among the
  k best: `click=1, like=1.1` asks for 10 % more likes and no click less. Its value is the outcome
  that is furthest behind its target, min outcome / target, so that 1 is: all reached. Maximising
  the least ratio finds every efficient trade-off, where a weighted sum misses those that lie in a
  dent of the front (Steuer and Choo, Mathematical Programming 1983).

Both are means over requests of numbers that each request has of its own, so that they can be
resampled by request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.tuning.lists import Lists
from app.tuning.log import Floats, Log

SHARE_OF_MEAN = 1e-3
"""How much the mean ratio counts in a mix, so that of two equal minima the better one is taken."""


class LogView:
    """Some requests of a log, on which orders are judged again and again."""

    def __init__(self, log: Log, *, seed: int = 0) -> None:
        """Arrange the rows of a log."""
        self.log = log
        self.lists = Lists(log.request, seed=seed)
        self._ideal: tuple[Ndcg, Floats, Floats] | None = None

    def gathered(self, sort_keys: Floats, names: Sequence[str], k: int) -> Floats:
        """Return the outcomes that each request's k best have gathered, `[R, m]`."""
        columns = np.stack([self._outcome(name) for name in names], axis=1)  # [n, m]
        return self.lists.captured(sort_keys, columns, np.ones(k))

    def ideal(self, goal: "Ndcg") -> tuple[Floats, Floats]:
        """Return each row's gain, `[n, 1]`, and the most that each request can reach, `[R]`."""
        if self._ideal is None or self._ideal[0] != goal:
            gain = sum(value * self._outcome(name) for name, value in goal.outcomes.items())
            gains = np.asarray(gain)[:, None]  # [n, 1]
            most = self.lists.captured(gains[:, 0], gains, goal.discounts)[:, 0]  # [R]
            self._ideal = goal, gains, most
        return self._ideal[1:]

    def _outcome(self, name: str) -> Floats:
        """Return an outcome, `[n]`; what is not defined was not gained."""
        return np.nan_to_num(self.log.outcomes[name])


class Valued(Protocol):
    """A number that is a function of means over requests; higher is better."""

    def value(self, mean: Floats, now: Floats) -> Floats:
        """Return it, `[...]`, for mean shares `[..., m]`, beside those of the present order."""
        ...


class Goal(Valued, Protocol):
    """How good an order is."""

    @property
    def outcomes(self) -> Mapping[str, float]:
        """What counts, and how much."""
        ...

    @property
    def at(self) -> int:
        """How many of the best count, k."""
        ...

    def shares(self, board: LogView, sort_keys: Floats) -> Floats:
        """Return each request's share, `[R, m]`: the goal's value is one of their mean."""
        ...


@dataclass(frozen=True, slots=True)
class Ndcg:
    """NDCG at k with a gain for each outcome."""

    outcomes: Mapping[str, float]
    at: int

    def __str__(self) -> str:
        return f"NDCG@{self.at}"

    @property
    def discounts(self) -> Floats:
        """How much counts of what stands first, second, and so on, `[k]`."""
        return np.asarray(1 / np.log2(np.arange(self.at) + 2))

    def shares(self, board: LogView, sort_keys: Floats) -> Floats:
        """See `Goal`: the NDCG, or 0 where nothing was gained, and whether something was."""
        gains, most = board.ideal(self)  # [n, 1], [R]
        reached = board.lists.captured(sort_keys, gains, self.discounts)[:, 0]  # [R]
        some = most > 0
        return np.stack([np.where(some, reached / np.where(some, most, 1), 0), some], axis=1)

    def value(self, mean: Floats, now: Floats) -> Floats:  # noqa: ARG002  (a goal of its own)
        """See `Valued`."""
        return np.asarray(mean[..., 0] / np.maximum(mean[..., 1], 1e-12))


@dataclass(frozen=True, slots=True)
class Mix:
    """Targets, as multiples of what the present policy gathers at k."""

    outcomes: Mapping[str, float]
    at: int

    def __str__(self) -> str:
        return f"least outcome@{self.at} / target"

    def shares(self, board: LogView, sort_keys: Floats) -> Floats:
        """See `Goal`."""
        return board.gathered(sort_keys, tuple(self.outcomes), self.at)

    def value(self, mean: Floats, now: Floats) -> Floats:
        """See `Valued`."""
        targets = np.array(list(self.outcomes.values()))
        ratio = mean / np.maximum(now, 1e-12) / targets  # [..., m]
        least = (1 - SHARE_OF_MEAN) * ratio.min(axis=-1)
        return np.asarray(least + SHARE_OF_MEAN * ratio.mean(axis=-1))


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the k best of a request gather of one outcome, in the mean."""

    outcome: str
    at: int

    @property
    def outcomes(self) -> Mapping[str, float]:
        """See `Goal`."""
        return {self.outcome: 1.0}

    def shares(self, board: LogView, sort_keys: Floats) -> Floats:
        """See `Goal`."""
        return board.gathered(sort_keys, [self.outcome], self.at)

    def value(self, mean: Floats, now: Floats) -> Floats:  # noqa: ARG002
        """See `Valued`."""
        return mean[..., 0]
