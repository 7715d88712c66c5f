"""Calibrations fitted to what came of logged scores.

- `platt`: maximum likelihood over the score's logit. The targets are Platt's (1999), just inside 0
  and 1, so that the optimum is finite where a threshold parts positives from negatives.
- `isotonic`: pool adjacent violators, weighted, over at most `BINS` bins of equally many scores; a
  knot stands at each pool's centre (centred isotonic regression, Oron and Flournoy, 2017), so that
  between knots unlike scores stay unlike: level pieces would tie candidates. For the same reason
  the outermost lines go on to the lowest and the highest score.
- `scale`: Σ outcome / Σ score.

Needs scipy, which is part of the extra `tune`.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from app.errors import TuningError
from app.ranking.calibration import SMALLEST_DOUBT, Isotonic, Platt, Scale
from app.tuning.log import Floats

BINS = 50
FEWEST_ROWS = 100

Fitted = Platt | Isotonic | Scale


class FitFailed(Exception):
    """There is no calibration that keeps the order of the scores; the message says why."""


def fit_platt(scores: Floats, outcomes: Floats) -> Platt:
    """Fit σ(slope · logit + intercept) to outcomes of 0 and 1.

    Raises:
        FitFailed: higher scores do not go with more positives.
    """
    p = np.clip(scores, SMALLEST_DOUBT, 1 - SMALLEST_DOUBT)
    logit = np.log(p) - np.log1p(-p)  # [n]
    positives = outcomes.sum()
    negatives = len(outcomes) - positives
    target = np.where(outcomes > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))  # [n]
    design = np.stack([logit, np.ones_like(logit)], axis=1)  # [n, 2]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = design @ parameters  # [n]
        slope = design.T @ (_sigmoid(z) - target) / len(z)  # [2]
        return float(np.mean(np.logaddexp(0, z) - target * z)), slope

    def curvature(parameters: Floats) -> Floats:
        p = _sigmoid(design @ parameters)
        return np.asarray((design * (p * (1 - p))[:, None]).T @ design / len(p))  # [2, 2]

    _need_scipy()
    from scipy.optimize import minimize

    found = minimize(
        loss, x0=(1.0, 0.0), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9}
    )
    slope, intercept = map(float, found.x)
    if not slope > _SMALLEST:
        raise FitFailed("higher scores do not go with more positives")
    return Platt(method="platt", slope=_rounded(slope), intercept=_rounded(intercept))


def fit_isotonic(scores: Floats, outcomes: Floats) -> Isotonic:
    """Fit a line that never falls, drawn through knots.

    Raises:
        FitFailed: all scores are equal, or higher ones do not go with more.
    """
    _need_scipy()
    from scipy.optimize import isotonic_regression

    order = np.argsort(scores, kind="stable")
    levels, first = np.unique(scores[order], return_index=True)
    # Bins begin where a new score begins, so that equal scores are never parted.
    begins = np.unique(first[np.searchsorted(first, _quantiles(len(scores)), side="right") - 1])
    counts = np.diff(np.append(begins, len(scores)))
    x = np.add.reduceat(scores[order], begins) / counts
    y = np.add.reduceat(outcomes[order], begins) / counts
    pools = isotonic_regression(y, weights=counts).blocks[:-1].astype(np.int64)
    weight = np.add.reduceat(counts, pools)
    centres = np.add.reduceat(x * counts, pools) / weight
    values = np.add.reduceat(y * counts, pools) / weight
    if len(pools) == 1:
        raise FitFailed("higher scores do not go with more")
    knots_x, knots_y = _lengthened(centres, values, float(levels[0]), float(levels[-1]))
    if outcomes.min() >= 0:
        knots_y = np.maximum(knots_y, 0)
    if outcomes.max() <= 1:
        knots_y = np.minimum(knots_y, 1)
    knots = {_rounded(x): _rounded(y) for x, y in zip(knots_x, knots_y, strict=True)}
    return Isotonic(method="isotonic", scores=tuple(knots), calibrated=tuple(knots.values()))


def fit_scale(scores: Floats, outcomes: Floats) -> Scale:
    """Fit the factor that makes the scores' sum the outcomes' sum.

    Raises:
        FitFailed: one of the sums is not positive.
    """
    predicted, observed = float(scores.sum()), float(outcomes.sum())
    if not (predicted > 0 and observed > 0 and _SMALLEST < observed / predicted < _LARGEST):
        raise FitFailed("the scores' sum, or the outcomes', is not positive")
    return Scale(method="scale", factor=_rounded(observed / predicted))


FITS: Mapping[str, Callable[[Floats, Floats], Fitted]] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
    "scale": fit_scale,
}

_SMALLEST, _LARGEST = 1e-6, 1e6  # that a policy file may hold


def _quantiles(rows: int) -> npt.NDArray[np.int64]:
    return np.arange(BINS, dtype=np.int64) * rows // BINS


def _lengthened(x: Floats, y: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """Go on from the first and the last knot, as the lines there go, to `low` and `high`."""
    before = y[0] - (x[0] - low) * (y[1] - y[0]) / (x[1] - x[0])
    after = y[-1] + (high - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])
    if low < x[0]:
        x, y = np.append(low, x), np.append(before, y)
    if high > x[-1]:
        x, y = np.append(x, high), np.append(y, after)
    return x, y


def _sigmoid(z: Floats) -> Floats:
    sure = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, sure) / (1 + sure))


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def _need_scipy() -> None:
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise TuningError("fitting needs scipy: pip install -e '.[tune]'") from None
