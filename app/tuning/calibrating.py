"""Finding the calibration of one task, and judging it on held-out requests.

The loss is one that only the truth makes least: log loss of outcomes that are 0 or 1, squared error
of numbers. Where no method is asked for, five-fold cross-validation by request picks one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from app.ranking.calibration import Calibration
from app.tuning.fitting import FEWEST_ROWS, FITS, FitFailed, Fitted
from app.tuning.gain import Gain, gain
from app.tuning.log import Floats, Log
from app.tuning.log_file import Kind

METHODS: Mapping[Kind, Sequence[str]] = {
    "binary": ("platt", "isotonic"),
    "duration": ("scale", "isotonic"),
    "regression": ("scale", "isotonic"),
}
"""The methods that fit a kind of task."""
Requests: TypeAlias = npt.NDArray[np.int64]

FOLDS = 5
BINS = 15
_SURE = 1e-7  # a calibrated probability of 0 or 1 must not cost infinitely much


@dataclass(frozen=True, slots=True)
class Figures:
    """How well a task's scores mean what they say, on some rows.

    Attributes:
        loss: log loss, or squared error.
        error: of 0 and 1 the expected calibration error, the mean gap between predicted and
            observed in 15 bins of equally many rows; of numbers the mean absolute error.
        ratio: Σ predicted / Σ observed; 1 is right.
    """

    loss: float
    error: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one task.

    Attributes:
        calibration: what was found.
        before: held-out figures of the present calibration.
        after: of the one that was found.
        gain: of the loss, by which it is lower; see `Gain`.
        rows: held-out rows.
    """

    calibration: Fitted
    before: Figures
    after: Figures
    gain: Gain
    rows: int


def calibrate(
    fit: Log, held_out: Log, task: str, kind: Kind, present: Calibration, method: str | None
) -> Outcome:
    """Find a task's calibration on some requests, and judge it on others.

    Args:
        fit: what it is learnt from.
        held_out: what it is judged by.
        task: whose scores and outcomes.
        kind: of the task.
        present: the calibration that it has now, perhaps none.
        method: one of `FITS`, or None to pick one.

    Raises:
        FitFailed: there are too few outcomes, or none of the methods can keep the order.
    """
    scores, outcomes, request = _rows(fit, task)
    if len(scores) < FEWEST_ROWS or np.all(outcomes == outcomes[0]):
        raise FitFailed(f"fewer than {FEWEST_ROWS} outcomes to fit, or all of them alike")
    found = FITS[method or _picked(scores, outcomes, request, kind)](scores, outcomes)
    scores, outcomes, request = _rows(held_out, task)
    if not len(scores):
        raise FitFailed("no held-out outcomes")
    before, after = (_losses(kind, each(scores), outcomes) for each in (present, found))
    by_request = [_by_request(each, request, held_out.requests) for each in (before, after)]
    return Outcome(
        calibration=found,
        before=figures(kind, present(scores), outcomes),
        after=figures(kind, found(scores), outcomes),
        gain=gain(_Lower(), *by_request),
        rows=len(scores),
    )


def figures(kind: Kind, predicted: Floats, observed: Floats) -> Figures:
    """Return the figures of predictions `[n]` beside what was observed."""
    loss = float(_losses(kind, predicted, observed).mean())
    error = float(np.abs(predicted - observed).mean())
    if kind == "binary":
        error = expected_calibration_error(predicted, observed)
    total = float(observed.sum())
    return Figures(loss, error, float(predicted.sum()) / total if total else float("nan"))


def expected_calibration_error(predicted: Floats, observed: Floats) -> float:
    """Return the mean |predicted - observed| of up to 15 bins of equally many rows (Naeini, 2015).

    Rows of equal prediction are kept in their order: predictions on few levels share bins.
    """
    order = np.argsort(predicted, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    gaps = [abs(float((predicted[each] - observed[each]).sum())) for each in bins]
    return sum(gaps) / len(order)


class _Lower:
    """The mean loss of a row, turned round so that higher is better; a `Goal` for `gain`."""

    def value(self, mean: Floats, now: Floats) -> Floats:  # noqa: ARG002
        return np.asarray(-mean[..., 0] / np.maximum(mean[..., 1], 1e-12))


def _by_request(losses: Floats, request: Requests, requests: int) -> Floats:
    """Return the sum of the losses and the number of rows of each request, `[R, 2]`."""
    sums = np.bincount(request, weights=losses, minlength=requests)
    return np.stack([sums, np.bincount(request, minlength=requests)], axis=1)


def _losses(kind: Kind, predicted: Floats, observed: Floats) -> Floats:
    if kind != "binary":
        return np.asarray((predicted - observed) ** 2)
    p = np.clip(predicted, _SURE, 1 - _SURE)
    return np.asarray(-np.log(np.where(observed > 0, p, 1 - p)))


def _rows(log: Log, task: str) -> tuple[Floats, Floats, Requests]:
    """Return scores, outcomes and requests of the rows where a task's outcome is defined."""
    outcome = log.outcomes[task]
    defined = ~np.isnan(outcome)
    scores = log.scores[defined, log.tasks.index(task)].astype(np.float64)
    return scores, outcome[defined], log.request[defined]


def _picked(scores: Floats, outcomes: Floats, request: Requests, kind: Kind) -> str:
    """Return the method with the least cross-validated loss."""
    fold = np.random.default_rng(0).permutation(int(request.max()) + 1)[request] % FOLDS  # [n]
    losses: dict[str, float] = {}
    reasons = []
    for method in METHODS[kind]:
        try:
            losses[method] = sum(
                float(
                    _losses(
                        kind,
                        FITS[method](scores[fold != k], outcomes[fold != k])(scores[fold == k]),
                        outcomes[fold == k],
                    ).sum()
                )
                for k in range(FOLDS)
            )
        except FitFailed as error:
            reasons.append(f"{method}: {error}")
    if not losses:
        raise FitFailed("; ".join(reasons))
    return min(losses, key=lambda each: losses[each])
