"""The interval of a gain covers the truth, and noise is rarely a sure gain."""

import numpy as np
import pytest

from app.tuning.bootstrap import bootstrap_gain
from app.tuning.goal import MeanOutcome

MEAN = MeanOutcome("click", 10)


def test_the_interval_equals_the_normal_approximation():
    random = np.random.default_rng(0)
    before = random.normal(1.0, 1.0, (2000, 1))
    after = before + random.normal(0.1, 0.5, (2000, 1))
    found = bootstrap_gain(MEAN, before, after, draws=4000)
    change = (after - before)[:, 0]
    half = 1.96 * change.std() / np.sqrt(len(change))
    assert found.change == pytest.approx(change.mean())
    assert found.low == pytest.approx(change.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(change.mean() + half, abs=0.1 * half)
    assert found.is_sure


def test_noise_is_a_sure_gain_in_few_of_100_samples():
    sure = 0
    for seed in range(100):
        before, after = np.random.default_rng(seed).normal(size=(2, 300, 1))
        sure += bootstrap_gain(MEAN, before, after, seed=seed, draws=200).is_sure
    assert sure <= 8  # 2.5 are expected


def test_equal_orders_gain_nothing():
    shares = np.random.default_rng(0).random((50, 1))
    found = bootstrap_gain(MEAN, shares, shares)
    assert (found.change, found.low, found.high, found.is_sure) == (0, 0, 0, False)


def test_resampling_in_chunks_gives_the_same_interval(monkeypatch):
    shares = np.random.default_rng(0).random((2, 40, 1))
    whole = bootstrap_gain(MEAN, *shares)
    monkeypatch.setattr("app.tuning.bootstrap._MAX_COUNTS", 41)
    chunked = bootstrap_gain(MEAN, *shares)
    assert chunked.low == pytest.approx(whole.low, abs=0.03)
    assert chunked.after == whole.after
