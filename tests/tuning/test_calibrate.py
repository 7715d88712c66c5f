"""Calibrations equal those of slow and simple methods, keep the order, and are judged fairly."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st

from app.ranking.calibration import NO_CALIBRATION, Isotonic, Platt, Scale
from app.tuning import calibrate as module
from app.tuning.calibrate import (
    FitFailed,
    calibrate,
    calibration_metrics,
    expected_calibration_error,
    fit_isotonic,
    fit_platt,
    fit_scale,
)
from tests.tuning import worlds


def parts(distort, seed=0):
    """A log whose outcomes follow its scores, which are then distorted."""
    log = worlds.log(1500, seed=seed)
    random = np.random.default_rng(seed)
    truth = random.beta(1, 3, log.rows)
    scores = np.stack([distort(truth), truth, 20 * truth], axis=1).astype(np.float32)
    outcomes = {
        "click": (random.random(log.rows) < truth).astype(float),
        "like": np.where(random.random(log.rows) < 0.5, np.nan, 1.0),
        "dwell": truth * random.gamma(2.0, 15.0, log.rows),
    }
    return replace(log, scores=scores, outcomes=outcomes).split(0.3)


def calibrated(parts, task, kind, method):
    fit, held_out = parts
    return calibrate(fit, held_out, task, kind, NO_CALIBRATION, method)


def overconfident(p):
    """Three times the logit, like a model that was trained for too long."""
    return 1 / (1 + ((1 - p) / np.maximum(p, 1e-9)) ** 3)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_distorted_probabilities_are_corrected(method):
    found = calibrated(parts(overconfident), "click", "binary", method)
    assert found.gain.is_sure
    assert found.after.error < found.before.error / 3
    assert found.after.loss < found.before.loss
    assert found.after.ratio == pytest.approx(1, abs=0.1)
    if isinstance(found.calibration, Platt):
        assert found.calibration.slope == pytest.approx(1 / 3, abs=0.04)


def test_cross_validation_picks_the_better_method():
    assert isinstance(calibrated(parts(overconfident), "click", "binary", None).calibration, Platt)
    fit, held_out = parts(lambda p: np.where(p < 0.3, p / 30, p))  # not a sigmoid of the logit
    found = calibrated((fit, held_out), "click", "binary", None)
    assert isinstance(found.calibration, Isotonic)


def test_a_duration_is_scaled():
    found = calibrated(parts(overconfident), "dwell", "duration", "scale")
    assert isinstance(found.calibration, Scale)
    assert found.calibration.factor == pytest.approx(1.5, abs=0.1)
    assert found.before.ratio == pytest.approx(1 / 1.5, abs=0.05)
    assert found.gain.is_sure


def test_calibrated_scores_gain_nothing():
    found = calibrated(parts(lambda p: p), "click", "binary", "platt")
    assert not found.gain.is_sure
    assert abs(found.gain.change) < 0.002


def test_too_few_or_equal_outcomes_are_not_fitted():
    with pytest.raises(FitFailed, match=r"all \d+ outcomes are equal"):
        calibrated(parts(overconfident), "like", "binary", None)
    fit, held_out = worlds.log(10).split(0.3)
    with pytest.raises(FitFailed, match="at least 100 are needed"):
        calibrate(fit, held_out, "click", "binary", NO_CALIBRATION, None)


def test_metrics_equal_their_definitions():
    predicted, observed = np.array([0.1, 0.4, 0.8]), np.array([0.0, 1.0, 1.0])
    found = calibration_metrics("binary", predicted, observed)
    assert found.loss == pytest.approx(-(math.log(0.9) + math.log(0.4) + math.log(0.8)) / 3)
    assert found.error == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    assert found.ratio == pytest.approx(1.3 / 2)
    seconds = calibration_metrics("duration", predicted, observed)
    assert seconds.loss == pytest.approx((0.01 + 0.36 + 0.04) / 3)
    assert seconds.error == pytest.approx((0.1 + 0.6 + 0.2) / 3)


def test_calibration_error_is_the_gap_of_bins_not_of_rows():
    predicted = np.repeat(np.linspace(0.05, 0.95, 15), 100)
    right = np.tile(np.linspace(0, 1, 100), 15) < predicted
    assert expected_calibration_error(predicted, right.astype(float)) < 0.01
    assert expected_calibration_error(predicted, np.zeros(1500)) == pytest.approx(0.5)


def drawn(rows=4000, *, slope=0.7, intercept=-0.4, seed=0):
    """Scores, and outcomes drawn with a sigmoid of the scores' logits."""
    random = np.random.default_rng(seed)
    logit = random.normal(-1, 1.5, rows)
    p = 1 / (1 + np.exp(-(slope * logit + intercept)))
    return 1 / (1 + np.exp(-logit)), (random.random(rows) < p).astype(float)


def naive_pav(values, weights):
    """Pool adjacent violators, one pair at a time."""
    pools = [[v, w, 1] for v, w in zip(values, weights, strict=True)]
    i = 0
    while i < len(pools) - 1:
        if pools[i][0] >= pools[i + 1][0]:
            (a, v, m), (b, w, n) = pools[i], pools.pop(i + 1)
            pools[i] = [(a * v + b * w) / (v + w), v + w, m + n]
            i = max(i - 1, 0)
        else:
            i += 1
    return pools


def test_platt_finds_the_sigmoid_that_the_outcomes_were_drawn_with():
    found = fit_platt(*drawn(40_000))
    assert found.slope == pytest.approx(0.7, abs=0.03)
    assert found.intercept == pytest.approx(-0.4, abs=0.04)


def test_platt_equals_plain_gradient_descent():
    scores, outcomes = drawn(600)
    positives = outcomes.sum()
    target = np.where(
        outcomes > 0, (positives + 1) / (positives + 2), 1 / (len(outcomes) - positives + 2)
    )
    logit = np.log(scores / (1 - scores))
    slope, intercept = 1.0, 0.0
    for _ in range(3000):
        wrong = 1 / (1 + np.exp(-(slope * logit + intercept))) - target
        slope -= 0.5 * float((wrong * logit).mean())
        intercept -= 0.5 * float(wrong.mean())
    found = fit_platt(scores, outcomes)
    assert found.slope == pytest.approx(slope, rel=1e-3)
    assert found.intercept == pytest.approx(intercept, rel=1e-3)


def test_platt_is_finite_if_a_threshold_separates_the_classes():
    scores = np.array([0.0, 0.2, 0.8, 1.0])
    found = fit_platt(scores, (scores > 0.5).astype(float))
    assert 0 < found.slope < 10
    assert math.isfinite(found.intercept)


def test_scores_that_order_backwards_are_refused():
    scores, outcomes = drawn()
    with pytest.raises(FitFailed, match="higher scores"):
        fit_platt(1 - scores, outcomes)
    with pytest.raises(FitFailed, match="higher scores"):
        fit_isotonic(np.arange(100.0), 100 - np.arange(100.0))
    with pytest.raises(FitFailed, match="higher scores"):
        fit_isotonic(np.full(100, 0.5), outcomes[:100])
    with pytest.raises(FitFailed, match="not positive"):
        fit_scale(np.zeros(5), np.ones(5))
    with pytest.raises(FitFailed, match=r"the factor 1e\+07 is outside"):
        fit_scale(np.full(5, 1e-7), np.ones(5))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=3, max_size=60))
def test_isotonic_knots_equal_those_of_naive_pooling(rows):
    scores, outcomes = np.array(rows, float).T
    levels = np.unique(scores)
    means = [outcomes[scores == level].mean() for level in levels]
    counts = [(scores == level).sum() for level in levels]
    pools = naive_pav(means, counts)
    assume(len(pools) > 1)
    found = fit_isotonic(scores, outcomes)
    values = np.array(found.calibrated)
    assert all(np.isclose(values, pool[0], atol=1e-5).any() for pool in pools)
    assert found.scores[0] == levels[0]
    assert found.scores[-1] == levels[-1]
    assert values.min() >= 0
    assert values.max() <= 1


def test_isotonic_has_few_knots_and_keeps_different_scores_different(monkeypatch):
    scores, outcomes = drawn(20_000)
    found = fit_isotonic(scores, outcomes)
    assert len(found.scores) <= module.MAX_BINS + 2
    inside = np.linspace(scores.min(), scores.max(), 500)
    assert (np.diff(found(inside)) > 0).mean() > 0.9
    monkeypatch.setattr(module, "MAX_BINS", 5)
    assert len(fit_isotonic(scores, outcomes).scores) <= 7


def test_isotonic_follows_a_curve():
    random = np.random.default_rng(0)
    scores = random.random(50_000)
    truth = np.maximum(0.1, scores**2)
    found = fit_isotonic(scores, (random.random(50_000) < truth).astype(float))
    grid = np.linspace(0.02, 0.98, 40)
    assert np.abs(found(grid) - np.maximum(0.1, grid**2)).max() < 0.05


def test_scale_makes_the_sums_equal():
    scores = np.random.default_rng(0).gamma(2.0, 5.0, 1000)
    found = fit_scale(scores, 0.7 * scores)
    assert found.factor == pytest.approx(0.7, rel=1e-5)
    assert found(scores).sum() == pytest.approx(0.7 * scores.sum(), rel=1e-5)
