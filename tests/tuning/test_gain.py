"""The interval of a gain covers the truth, and no gain is found where there is none."""

import numpy as np
import pytest

from app.tuning.gain import gain
from app.tuning.goal import Gathered

MEAN = Gathered("click", 10)


def test_the_interval_is_that_of_the_normal_approximation():
    random = np.random.default_rng(0)
    before = random.normal(1.0, 1.0, (2000, 1))
    after = before + random.normal(0.1, 0.5, (2000, 1))
    found = gain(MEAN, before, after, draws=4000)
    change = (after - before)[:, 0]
    half = 1.96 * change.std() / np.sqrt(len(change))
    assert found.change == pytest.approx(change.mean())
    assert found.low == pytest.approx(change.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(change.mean() + half, abs=0.1 * half)
    assert found.is_sure


def test_noise_is_sure_no_more_often_than_it_may_be():
    sure = 0
    for seed in range(100):
        before, after = np.random.default_rng(seed).normal(size=(2, 300, 1))
        sure += gain(MEAN, before, after, seed=seed, draws=200).is_sure
    assert sure <= 8  # 2.5 are expected


def test_equal_orders_gain_nothing():
    shares = np.random.default_rng(0).random((50, 1))
    found = gain(MEAN, shares, shares)
    assert (found.change, found.low, found.high, found.is_sure) == (0, 0, 0, False)


def test_many_requests_are_resampled_in_pieces(monkeypatch):
    shares = np.random.default_rng(0).random((2, 40, 1))
    whole = gain(MEAN, *shares)
    monkeypatch.setattr("app.tuning.gain._AT_ONCE", 41)
    pieces = gain(MEAN, *shares)
    assert pieces.low == pytest.approx(whole.low, abs=0.03)
    assert pieces.after == whole.after
