"""What a batch costs: `a + b · rows` seconds, measured at warm-up and corrected by every batch.

A single rate would mispredict: on two cores a model scored 6 400 rows/s one row at a time and
80 000 in batches of 500.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_STEP = 0.1
"""How far one batch moves the line: the last ten or twenty batches count."""
_DEVIATIONS = 2.0
"""How many mean deviations a forecast leaves room for."""
MAX_MARGIN = _DEVIATIONS
"""The largest `Cost.margin_s`, as a part of the wait: deviations are at most 1."""
_MAX_ERROR = 3.0
"""The largest error that is learned, as a part of the prediction: a batch that took more than four
times as long as predicted says little about the next one."""
_LEAST_A_S, _LEAST_B_S = 1e-6, 1e-9
_LEAST_SHARE = 0.1
"""A fitted cost is at least this part of the cheapest batch, or of the cheapest row."""


@dataclass(slots=True)
class Cost:
    """The cost of one version of a model on the lanes of this process; owned by the event loop.

    Attributes:
        a_s: the cost of a batch whatever its size (s).
        b_s: the cost of each row (s).
        typical_rows: the size of recent batches (rows).
        batches: how many batches it was learned from; with none, it predicts 0 s.
        deviation: the mean relative error of recent predictions, 0 to 1.
    """

    a_s: float = 0.0
    b_s: float = 0.0
    typical_rows: float = 1.0
    batches: int = 0
    deviation: float = 0.0

    def of(self, rows: float, batches: float = 1) -> float:
        """Return how long (s) `rows` rows in so many batches keep one lane busy."""
        return self.a_s * batches + self.b_s * rows

    def margin_s(self, wait_s: float) -> float:
        """Return how much longer (s) than forecast a wait may be.

        It uses the mean deviation, which is cheaper than the standard deviation, as TCP's
        retransmission timer does (Jacobson, SIGCOMM '88). What slows one batch down, such as
        another process on the core, also slows the next one. So the margin covers the whole wait.
        """
        return _DEVIATIONS * self.deviation * wait_s

    def fit(self, observed: Sequence[tuple[int, float]]) -> None:
        """Start with a line through batches of different sizes, `(rows, seconds)` each."""
        rows, seconds = np.array(observed).T
        if np.ptp(rows):
            b_s, a_s = np.polyfit(rows, seconds, 1)
            # If one batch was slow by chance, the fit can give a cost of 0. It would stay 0,
            # because costs are corrected in proportion to themselves.
            a_s = max(a_s, _LEAST_SHARE * seconds.min())
            b_s = max(b_s, _LEAST_SHARE * (seconds / rows).min())
        else:
            a_s, b_s = 0.0, seconds.mean() / rows.mean()
        self.a_s, self.b_s = max(float(a_s), _LEAST_A_S), max(float(b_s), _LEAST_B_S)
        self.batches = len(observed)

    def observe(self, rows: int, duration_s: float) -> None:
        """Move the line a little towards a batch that ran.

        This is the correction step of a Kalman filter that is equally unsure of `a` and `b`, each
        in proportion to itself: a large batch corrects the cost of a row, a small one that of a
        batch, and neither ever becomes negative.
        """
        if not self.batches:
            self.fit([(rows, duration_s)])
            return
        self.batches += 1
        self.typical_rows += _STEP * (rows - self.typical_rows)
        predicted_s = self.of(rows)
        error = min(duration_s - predicted_s, _MAX_ERROR * predicted_s)
        self.deviation += _STEP * (min(abs(error) / predicted_s, 1.0) - self.deviation)
        from_a, from_b = self.a_s**2, (self.b_s * rows) ** 2
        step = _STEP * error / (from_a + from_b)
        self.a_s = max(self.a_s + step * from_a, _LEAST_A_S)
        self.b_s = max(self.b_s + step * from_b / rows, _LEAST_B_S)
