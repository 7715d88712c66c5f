"""Calibrations equal what slow and simple ways give, and keep the order of scores."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st

from app.tuning import fitting
from app.tuning.fitting import FitFailed, fit_isotonic, fit_platt, fit_scale


def drawn(rows=4000, *, slope=0.7, intercept=-0.4, seed=0):
    """Scores, and outcomes that a sigmoid over the scores' logits draws."""
    random = np.random.default_rng(seed)
    logit = random.normal(-1, 1.5, rows)
    p = 1 / (1 + np.exp(-(slope * logit + intercept)))
    return 1 / (1 + np.exp(-logit)), (random.random(rows) < p).astype(float)


def naive_pav(values, weights):
    """Pool adjacent violators, one pair after the other."""
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


def test_platt_finds_the_sigmoid_that_drew_the_outcomes():
    found = fit_platt(*drawn(40_000))
    assert found.slope == pytest.approx(0.7, abs=0.03)
    assert found.intercept == pytest.approx(-0.4, abs=0.04)


def test_platt_is_the_optimum_of_plain_gradient_descent():
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


def test_platt_stays_finite_where_a_threshold_parts_the_classes():
    scores = np.array([0.0, 0.2, 0.8, 1.0])
    found = fit_platt(scores, (scores > 0.5).astype(float))
    assert 0 < found.slope < 10
    assert math.isfinite(found.intercept)


def test_scores_that_are_turned_round_are_refused():
    scores, outcomes = drawn()
    with pytest.raises(FitFailed, match="higher scores"):
        fit_platt(1 - scores, outcomes)
    with pytest.raises(FitFailed, match="higher scores"):
        fit_isotonic(np.arange(100.0), 100 - np.arange(100.0))
    with pytest.raises(FitFailed, match="higher scores"):
        fit_isotonic(np.full(100, 0.5), outcomes[:100])
    with pytest.raises(FitFailed, match="not positive"):
        fit_scale(np.zeros(5), np.ones(5))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=3, max_size=60))
def test_isotonic_has_its_knots_where_pooling_by_hand_has_them(rows):
    scores, outcomes = np.array(rows, float).T
    levels = np.unique(scores)
    means = [outcomes[scores == each].mean() for each in levels]
    counts = [(scores == each).sum() for each in levels]
    pools = naive_pav(means, counts)
    assume(len(pools) > 1)
    found = fit_isotonic(scores, outcomes)
    values = np.array(found.calibrated)
    assert all(np.isclose(values, pool[0], atol=1e-5).any() for pool in pools)
    assert found.scores[0] == levels[0]
    assert found.scores[-1] == levels[-1]
    assert values.min() >= 0
    assert values.max() <= 1


def test_isotonic_bounds_its_knots_and_keeps_unlike_scores_unlike(monkeypatch):
    scores, outcomes = drawn(20_000)
    found = fit_isotonic(scores, outcomes)
    assert len(found.scores) <= fitting.BINS + 2
    inside = np.linspace(scores.min(), scores.max(), 500)
    assert (np.diff(found(inside)) > 0).mean() > 0.9
    monkeypatch.setattr(fitting, "BINS", 5)
    assert len(fit_isotonic(scores, outcomes).scores) <= 7


def test_isotonic_follows_a_bend():
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
