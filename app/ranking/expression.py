"""A safe arithmetic expression over task scores and weights, compiled into NumPy calls.

    click**0.8 * (1 + w.like*like) * log1p(dwell)

Tasks stand there by their names, weights as `w.name`; a task whose name is no identifier cannot be
mentioned. There are + - * / **, signs, brackets, numbers, and the functions abs, clip, exp, expm1,
log, log1p, max, min and sqrt.

The text is never given to Python. It is read by a grammar of its own (`app.ranking.grammar`) that
has no word for an attribute, an index, a text, or a call of anything but those functions, so
nothing else can come of it. Numbers are floats, so no power grows a huge integer. Length, nesting
and nodes are bounded, and with them the time.

Arithmetic is IEEE float64 and never raises. Where the result for a candidate is no number, the
candidate ranks last; an infinity is the largest number of its sign (`LARGEST`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from app.ranking.grammar import LONGEST, Evaluate, ExpressionInvalid, Parser, Values

LARGEST = 1e300
"""Bounds results on both sides, so that differences of two of them are finite."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression.

    Attributes:
        text: what it was compiled from.
        tasks: the tasks that it reads, in the order of their first mention.
        weights: the weights `w.name` that it reads, likewise.
    """

    text: str
    tasks: tuple[str, ...]
    weights: tuple[str, ...]
    _evaluate: Evaluate

    def __call__(self, scores: Mapping[str, Values], weights: Mapping[str, float]) -> Values:
        """Return `[n]` float64, finite: the expression's value for each candidate.

        Args:
            scores: `[n]` float64 by task; other tasks may be there too.
            weights: by name; others may be there too.
        """
        with np.errstate(all="ignore"):
            values = np.asarray(self._evaluate(scores, weights), np.float64)
        return np.nan_to_num(np.clip(values, -LARGEST, LARGEST), copy=False, nan=-LARGEST)


def parse(text: str) -> Expression:
    """Compile an expression.

    Raises:
        ExpressionInvalid: it breaks a rule; nothing of it was evaluated.
    """
    if len(text) > LONGEST:
        raise ExpressionInvalid(f"is longer than {LONGEST} characters", "", 0)
    parser = Parser(text)
    evaluate = parser.whole()
    if not parser.tasks:
        raise ExpressionInvalid("reads no task, so it ranks nothing", text, 0)
    return Expression(text, tuple(parser.tasks), tuple(parser.weights), evaluate)
