"""A calibration is judged on requests that it was not fitted on, by figures that are right."""

import math
from dataclasses import replace

import numpy as np
import pytest

from app.ranking.calibration import UNCALIBRATED, Isotonic, Platt, Scale
from app.tuning.calibrating import calibrate, expected_calibration_error, figures
from app.tuning.fitting import FitFailed
from tests.tuning import worlds


def parts(spoil, seed=0):
    """A log whose clicks happen as its scores say, and which then are spoilt."""
    log = worlds.log(1500, seed=seed)
    random = np.random.default_rng(seed)
    truth = random.beta(1, 3, log.rows)
    scores = np.stack([spoil(truth), truth, 20 * truth], axis=1).astype(np.float32)
    outcomes = {
        "click": (random.random(log.rows) < truth).astype(float),
        "like": np.where(random.random(log.rows) < 0.5, np.nan, 1.0),
        "dwell": truth * random.gamma(2.0, 15.0, log.rows),
    }
    return replace(log, scores=scores, outcomes=outcomes).split(0.3)


def calibrated(parts, task, kind, method):
    fit, held_out = parts
    return calibrate(fit, held_out, task, kind, UNCALIBRATED, method)


def too_sure(p):
    """Three times the logit, as of a model that was trained for too long."""
    return 1 / (1 + ((1 - p) / np.maximum(p, 1e-9)) ** 3)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_spoilt_probabilities_are_mended(method):
    found = calibrated(parts(too_sure), "click", "binary", method)
    assert found.gain.is_sure
    assert found.after.error < found.before.error / 3
    assert found.after.loss < found.before.loss
    assert found.after.ratio == pytest.approx(1, abs=0.1)
    if isinstance(found.calibration, Platt):
        assert found.calibration.slope == pytest.approx(1 / 3, abs=0.04)


def test_the_better_method_is_picked():
    assert isinstance(calibrated(parts(too_sure), "click", "binary", None).calibration, Platt)
    fit, held_out = parts(lambda p: np.where(p < 0.3, p / 30, p))  # no sigmoid of the logit
    found = calibrated((fit, held_out), "click", "binary", None)
    assert isinstance(found.calibration, Isotonic)


def test_seconds_are_scaled():
    found = calibrated(parts(too_sure), "dwell", "duration", "scale")
    assert isinstance(found.calibration, Scale)
    assert found.calibration.factor == pytest.approx(1.5, abs=0.1)
    assert found.before.ratio == pytest.approx(1 / 1.5, abs=0.05)
    assert found.gain.is_sure


def test_what_is_right_gains_nothing():
    found = calibrated(parts(lambda p: p), "click", "binary", "platt")
    assert not found.gain.is_sure
    assert abs(found.gain.change) < 0.002


def test_too_few_outcomes_or_all_alike_are_no_ground_for_a_fit():
    with pytest.raises(FitFailed, match="all of them alike"):
        calibrated(parts(too_sure), "like", "binary", None)
    fit, held_out = worlds.log(10).split(0.3)
    with pytest.raises(FitFailed, match="fewer than"):
        calibrate(fit, held_out, "click", "binary", UNCALIBRATED, None)


def test_figures_are_those_of_their_definitions():
    predicted, observed = np.array([0.1, 0.4, 0.8]), np.array([0.0, 1.0, 1.0])
    found = figures("binary", predicted, observed)
    assert found.loss == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.8)) / 3)
    assert found.error == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    assert found.ratio == pytest.approx(1.3 / 2)
    seconds = figures("duration", predicted, observed)
    assert seconds.loss == pytest.approx((0.01 + 0.36 + 0.04) / 3)
    assert seconds.error == pytest.approx((0.1 + 0.6 + 0.2) / 3)


def test_gaps_within_a_bin_cancel_out_and_those_between_bins_do_not():
    predicted = np.repeat(np.linspace(0.05, 0.95, 15), 100)
    right = np.tile(np.linspace(0, 1, 100), 15) < predicted
    assert expected_calibration_error(predicted, right.astype(float)) < 0.01
    assert expected_calibration_error(predicted, np.zeros(1500)) == pytest.approx(0.5)
