"""The search finds a known optimum, within its intervals."""

import math

import pytest

from app.errors import TuningError
from app.tuning.search import Trial, best, sample_weights, search, search_intervals

WEIGHTS = {"click": 1.0, "like": 0.5, "dwell": -0.5}


def test_the_largest_weight_is_fixed_if_only_ratios_matter():
    assert set(search_intervals(WEIGHTS, None, within=10, fix_largest=True)) == {"like", "dwell"}
    assert set(search_intervals(WEIGHTS, None, within=10, fix_largest=False)) == set(WEIGHTS)


def test_intervals_respect_the_factor_the_bounds_and_the_sign():
    bounds = {"like": (0.2, 9.0), "share": (0.0, 2.0)}
    intervals = search_intervals(WEIGHTS, bounds, within=10, fix_largest=False)
    assert intervals["like"] == (0.2, 5.0)
    assert intervals["share"] == (0.0, 2.0)  # has no weight, so its bounds are the interval
    assert intervals["dwell"] == (-5.0, -0.05)


@pytest.mark.parametrize(
    ("weights", "bounds"), [({"click": 1.0}, None), ({"a": 1.0, "b": 2.0}, {"a": (1.0, 1.0)})]
)
def test_nothing_to_search_is_an_error(weights, bounds):
    with pytest.raises(TuningError, match="nothing to tune"):
        search_intervals(weights, bounds, within=10, fix_largest=True)


def test_a_known_optimum_is_found_on_plateaus():
    def evaluate(weights):
        """Piecewise constant, best at like = 2 and dwell = -0.1."""
        away = (math.log(weights["like"] / 2), math.log(weights["dwell"] / -0.1))
        return -float(sum(round(8 * abs(distance)) for distance in away))

    intervals = search_intervals(WEIGHTS, None, within=10, fix_largest=True)
    reported: list[Trial] = []
    tried = search(evaluate, WEIGHTS, intervals, tries=400, on_trial=reported.append)
    found = best(tried).weights
    assert found["click"] == 1.0
    assert found["like"] == pytest.approx(2, rel=0.15)
    assert found["dwell"] == pytest.approx(-0.1, rel=0.15)
    assert tried[0].weights == WEIGHTS
    assert reported == tried
    assert search(evaluate, WEIGHTS, intervals, tries=400) == tried  # the same seed


def test_weights_have_three_digits_and_an_interval_may_contain_0():
    tried = search(lambda w: -abs(w["a"] - 0.123456), {"a": 0.0}, {"a": (0.0, 1.0)}, tries=100)
    assert best(tried).weights["a"] == pytest.approx(0.123, abs=0.002)
    assert all(float(f"{trial.weights['a']:.3g}") == trial.weights["a"] for trial in tried)


def test_sampled_weights_lie_within_the_intervals():
    intervals = search_intervals(WEIGHTS, None, within=10, fix_largest=True)
    for weights in sample_weights(WEIGHTS, intervals, 50):
        assert weights["click"] == 1.0
        assert all(low <= weights[name] <= high for name, (low, high) in intervals.items())
