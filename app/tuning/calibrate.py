"""Fit calibrations to logged outcomes, and judge them on held-out requests.

The methods are those of `app.ranking.calibration`:

- `platt`: maximum likelihood over the score's logit. The targets are Platt's (1999), just inside 0
  and 1, so that the optimum is finite even where a threshold separates positives from negatives.
- `isotonic`: weighted pool-adjacent-violators over at most `MAX_BINS` bins of equally many rows.
  Each pool has one knot, at its centre (centred isotonic regression, Oron and Flournoy, 2017).
  Between knots different scores stay different; constant pieces would tie candidates. For the same
  reason the outermost lines extend to the lowest and the highest score.
- `scale`: Σ outcome / Σ score.

Both losses are proper scoring rules: log loss of outcomes that are 0 or 1, squared error of other
numbers. If no method is asked for, five-fold cross-validation by request picks one.

Needs scipy, which is in the extra `tune`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from app.errors import TuningError
from app.ranking.calibration import MIN_PROBABILITY, Calibration, Isotonic, Platt, Scale
from app.tuning.bootstrap import Gain, bootstrap_gain
from app.tuning.log import Floats, Log
from app.tuning.log_file import Kind

METHODS: Mapping[Kind, Sequence[str]] = {
    "binary": ("platt", "isotonic"),
    "duration": ("scale", "isotonic"),
    "regression": ("scale", "isotonic"),
}
"""The methods that suit a kind of task."""

MAX_BINS = 50
MIN_ROWS = 100
FOLDS = 5
ERROR_BINS = 15
_MIN_LOSS_PROBABILITY = 1e-7  # keeps the log loss finite for calibrated probabilities of 0 and 1
_MIN_PARAMETER, _MAX_PARAMETER = 1e-6, 1e6  # the range that a policies file accepts

Fitted: TypeAlias = Platt | Isotonic | Scale
Requests: TypeAlias = npt.NDArray[np.int64]


class FitFailed(TuningError):
    """No calibration keeps the order of the scores. The message says why."""


@dataclass(frozen=True, slots=True)
class CalibrationMetrics:
    """How well the scores of a task match its outcomes.

    Attributes:
        loss: mean log loss, or mean squared error.
        error: for outcomes of 0 and 1 the expected calibration error: the mean gap between
            predicted and observed in 15 bins of equally many rows. For numbers the mean absolute
            error.
        ratio: Σ predicted / Σ observed; 1 is best.
    """

    loss: float
    error: float
    ratio: float


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """The calibration found for one task, and how good it is on held-out requests.

    Attributes:
        calibration: the fitted calibration.
        before: metrics of the present calibration.
        after: metrics of the fitted calibration.
        gain: by how much the loss falls; see `Gain`.
        rows: number of held-out rows.
    """

    calibration: Fitted
    before: CalibrationMetrics
    after: CalibrationMetrics
    gain: Gain
    rows: int


def calibrate(
    fit: Log, held_out: Log, task: str, kind: Kind, present: Calibration, method: str | None
) -> CalibrationResult:
    """Fit a task's calibration on some requests, and judge it on others.

    Args:
        fit: the requests to fit on.
        held_out: the requests to judge on.
        task: the task whose scores and outcomes are used.
        kind: the kind of the task.
        present: the calibration that the task has now, perhaps `none`.
        method: a key of `FITS`, or None to pick one by cross-validation.

    Raises:
        FitFailed: there are too few outcomes, or no method can keep the order.
        TuningError: scipy is not installed.
    """
    scores, outcomes, request = _rows(fit, task)
    if len(scores) < MIN_ROWS:
        raise FitFailed(f"{len(scores)} rows with an outcome, at least {MIN_ROWS} are needed")
    if np.all(outcomes == outcomes[0]):
        raise FitFailed(f"all {len(scores)} outcomes are equal")
    fitted = FITS[method or _best_method(scores, outcomes, request, kind)](scores, outcomes)
    scores, outcomes, request = _rows(held_out, task)
    if not len(scores):
        raise FitFailed("no held-out row has an outcome")
    before, after = (
        _losses(kind, calibration(scores), outcomes) for calibration in (present, fitted)
    )
    by_request = [_by_request(losses, request, held_out.requests) for losses in (before, after)]
    return CalibrationResult(
        calibration=fitted,
        before=calibration_metrics(kind, present(scores), outcomes),
        after=calibration_metrics(kind, fitted(scores), outcomes),
        gain=bootstrap_gain(_NegativeLoss(), *by_request),
        rows=len(scores),
    )


def fit_platt(scores: Floats, outcomes: Floats) -> Platt:
    """Fit σ(slope · logit + intercept) to outcomes of 0 and 1.

    Raises:
        FitFailed: higher scores do not come with more positives.
        TuningError: scipy is not installed.
    """
    p = np.clip(scores, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    logit = np.log(p) - np.log1p(-p)  # [n]
    positives = outcomes.sum()
    negatives = len(outcomes) - positives
    target = np.where(outcomes > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))  # [n]
    design = np.stack([logit, np.ones_like(logit)], axis=1)  # [n, 2]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = design @ parameters  # [n]
        gradient = design.T @ (_sigmoid(z) - target) / len(z)  # [2]
        return float(np.mean(np.logaddexp(0, z) - target * z)), gradient

    def hessian(parameters: Floats) -> Floats:
        p = _sigmoid(design @ parameters)
        return np.asarray((design * (p * (1 - p))[:, None]).T @ design / len(p))  # [2, 2]

    _require_scipy()
    from scipy.optimize import minimize

    optimum = minimize(
        loss, x0=(1.0, 0.0), jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-9}
    )
    slope, intercept = map(float, optimum.x)
    if not slope > _MIN_PARAMETER:
        raise FitFailed("higher scores do not come with more positives")
    return Platt(method="platt", slope=_rounded(slope), intercept=_rounded(intercept))


def fit_isotonic(scores: Floats, outcomes: Floats) -> Isotonic:
    """Fit straight lines through ascending knots.

    Raises:
        FitFailed: all scores are equal, or higher scores do not come with higher outcomes.
        TuningError: scipy is not installed.
    """
    _require_scipy()
    from scipy.optimize import isotonic_regression

    order = np.argsort(scores, kind="stable")
    levels, first = np.unique(scores[order], return_index=True)
    # A bin begins where a new score begins, so that equal scores are always in one bin.
    begins = np.unique(first[np.searchsorted(first, _quantiles(len(scores)), side="right") - 1])
    counts = np.diff(np.append(begins, len(scores)))  # [bins], as are x and y
    x = np.add.reduceat(scores[order], begins) / counts
    y = np.add.reduceat(outcomes[order], begins) / counts
    pools = isotonic_regression(y, weights=counts).blocks[:-1].astype(np.int64)
    weight = np.add.reduceat(counts, pools)  # [pools], as are the next two
    centres = np.add.reduceat(x * counts, pools) / weight
    values = np.add.reduceat(y * counts, pools) / weight
    if len(pools) == 1:
        raise FitFailed("higher scores do not come with higher outcomes")
    knots_x, knots_y = _extended(centres, values, float(levels[0]), float(levels[-1]))
    if outcomes.min() >= 0:
        knots_y = np.maximum(knots_y, 0)
    if outcomes.max() <= 1:
        knots_y = np.minimum(knots_y, 1)
    knots = {_rounded(x): _rounded(y) for x, y in zip(knots_x, knots_y, strict=True)}
    return Isotonic(method="isotonic", scores=tuple(knots), calibrated=tuple(knots.values()))


def fit_scale(scores: Floats, outcomes: Floats) -> Scale:
    """Fit the factor that makes the scores add up to the sum of the outcomes.

    Raises:
        FitFailed: a sum is not positive, or the factor is outside 1e-6 to 1e6.
    """
    predicted, observed = float(scores.sum()), float(outcomes.sum())
    if not (predicted > 0 and observed > 0):
        raise FitFailed("the sum of the scores or of the outcomes is not positive")
    factor = observed / predicted
    if not _MIN_PARAMETER < factor < _MAX_PARAMETER:
        raise FitFailed(
            f"the factor {factor:g} is outside {_MIN_PARAMETER:g} to {_MAX_PARAMETER:g}"
        )
    return Scale(method="scale", factor=_rounded(factor))


FITS: Mapping[str, Callable[[Floats, Floats], Fitted]] = {
    "platt": fit_platt,
    "isotonic": fit_isotonic,
    "scale": fit_scale,
}
"""The function that fits each method: scores `[n]` and outcomes `[n]` in, the calibration out."""


def calibration_metrics(kind: Kind, predicted: Floats, observed: Floats) -> CalibrationMetrics:
    """Compare predictions `[n]` with outcomes `[n]`."""
    loss = float(_losses(kind, predicted, observed).mean())
    error = float(np.abs(predicted - observed).mean())
    if kind == "binary":
        error = expected_calibration_error(predicted, observed)
    total = float(observed.sum())
    ratio = float(predicted.sum()) / total if total else float("nan")
    return CalibrationMetrics(loss, error, ratio)


def expected_calibration_error(predicted: Floats, observed: Floats) -> float:
    """Return the mean |predicted - observed| of up to 15 bins of equally many rows (Naeini, 2015).

    The sort is stable, so rows with equal predictions keep their order and may share bins.
    """
    order = np.argsort(predicted, kind="stable")
    bins = np.array_split(order, min(ERROR_BINS, len(order)))
    gaps = [abs(float((predicted[rows] - observed[rows]).sum())) for rows in bins]
    return sum(gaps) / len(order)


class _NegativeLoss:
    """The mean loss of a row with its sign changed, so that higher is better; a `Statistic`."""

    def value(self, mean: Floats, baseline: Floats) -> Floats:  # noqa: ARG002
        return np.asarray(-mean[..., 0] / np.maximum(mean[..., 1], 1e-12))


def _by_request(losses: Floats, request: Requests, requests: int) -> Floats:
    """Return the sum of losses and the number of rows of each request, `[R, 2]`."""
    sums = np.bincount(request, weights=losses, minlength=requests)
    return np.stack([sums, np.bincount(request, minlength=requests)], axis=1)


def _losses(kind: Kind, predicted: Floats, observed: Floats) -> Floats:
    """Return each row's loss, `[n]`."""
    if kind != "binary":
        return np.asarray((predicted - observed) ** 2)
    p = np.clip(predicted, _MIN_LOSS_PROBABILITY, 1 - _MIN_LOSS_PROBABILITY)
    return np.asarray(-np.log(np.where(observed > 0, p, 1 - p)))


def _rows(log: Log, task: str) -> tuple[Floats, Floats, Requests]:
    """Return scores, outcomes and requests of the rows that have an outcome of the task."""
    outcome = log.outcomes[task]
    defined = ~np.isnan(outcome)
    scores = log.scores[defined, log.tasks.index(task)].astype(np.float64)
    return scores, outcome[defined], log.request[defined]


def _best_method(scores: Floats, outcomes: Floats, request: Requests, kind: Kind) -> str:
    """Return the method with the lowest cross-validated loss.

    Raises:
        FitFailed: every method failed.
    """
    fold = np.random.default_rng(0).permutation(int(request.max()) + 1)[request] % FOLDS  # [n]
    losses: dict[str, float] = {}
    reasons = []
    for method in METHODS[kind]:
        fit, loss = FITS[method], 0.0
        try:
            for k in range(FOLDS):
                inside, outside = fold != k, fold == k
                fitted = fit(scores[inside], outcomes[inside])
                predicted = fitted(scores[outside])
                loss += float(_losses(kind, predicted, outcomes[outside]).sum())
        except FitFailed as error:
            reasons.append(f"{method}: {error}")
        else:
            losses[method] = loss
    if not losses:
        raise FitFailed("; ".join(reasons))
    return min(losses, key=lambda method: losses[method])


def _quantiles(rows: int) -> npt.NDArray[np.int64]:
    """Return the rows where bins of equally many rows begin."""
    return np.arange(MAX_BINS, dtype=np.int64) * rows // MAX_BINS


def _extended(x: Floats, y: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """Extend the first and the last line to `low` and `high`."""
    before = y[0] - (x[0] - low) * (y[1] - y[0]) / (x[1] - x[0])
    after = y[-1] + (high - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])
    if low < x[0]:
        x, y = np.append(low, x), np.append(before, y)
    if high > x[-1]:
        x, y = np.append(x, high), np.append(y, after)
    return x, y


def _sigmoid(z: Floats) -> Floats:
    decay = np.exp(-np.abs(z))  # at most 1, so it cannot overflow
    return np.asarray(np.where(z >= 0, 1.0, decay) / (1 + decay))


def _rounded(number: float) -> float:
    """Return six significant digits: more would be noise in a file that people read."""
    return float(f"{number:.6g}")


def _require_scipy() -> None:
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise TuningError("fitting needs scipy: pip install -e '.[tune]'") from None
