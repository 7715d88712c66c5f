"""The search finds known optima within its bounds."""

import math

import pytest

from app.errors import TuningError
from app.tuning.search import Try, best, search, searched, spread

WEIGHTS = {"click": 1.0, "like": 0.5, "dwell": -0.5}


def test_only_ratios_are_searched_where_only_they_matter():
    assert set(searched(WEIGHTS, None, within=10, anchored=True)) == {"like", "dwell"}
    assert set(searched(WEIGHTS, None, within=10, anchored=False)) == set(WEIGHTS)


def test_weights_stay_within_the_factor_and_the_bounds_and_keep_their_sign():
    bounds = {"like": (0.2, 9.0), "share": (0.0, 2.0)}
    intervals = searched(WEIGHTS, bounds, within=10, anchored=False)
    assert intervals["like"] == (0.2, 5.0)
    assert intervals["share"] == (0.0, 2.0)  # no weight yet: only bounds say how far
    assert intervals["dwell"] == (-5.0, -0.05)


@pytest.mark.parametrize(
    ("weights", "bounds"), [({"click": 1.0}, None), ({"a": 1.0, "b": 2.0}, {"a": (1.0, 1.0)})]
)
def test_nothing_to_search_is_said(weights, bounds):
    with pytest.raises(TuningError, match="nothing to tune"):
        searched(weights, bounds, within=10, anchored=True)


def test_a_known_optimum_is_found_on_plateaus():
    def judge(weights):
        """Piecewise constant, best at like = 2 and dwell = -0.1."""
        away = (math.log(weights["like"] / 2), math.log(weights["dwell"] / -0.1))
        return -float(sum(round(8 * abs(each)) for each in away))

    intervals = searched(WEIGHTS, None, within=10, anchored=True)
    told: list[Try] = []
    tried = search(judge, WEIGHTS, intervals, tries=400, tell=told.append)
    found = best(tried).weights
    assert found["click"] == 1.0
    assert found["like"] == pytest.approx(2, rel=0.15)
    assert found["dwell"] == pytest.approx(-0.1, rel=0.15)
    assert tried[0].weights == WEIGHTS
    assert told == tried
    assert search(judge, WEIGHTS, intervals, tries=400) == tried  # the same seed


def test_weights_have_three_digits_and_a_bound_at_zero_is_searched_too():
    tried = search(lambda w: -abs(w["a"] - 0.123456), {"a": 0.0}, {"a": (0.0, 1.0)}, tries=100)
    assert best(tried).weights["a"] == pytest.approx(0.123, abs=0.002)
    assert all(float(f"{each.weights['a']:.3g}") == each.weights["a"] for each in tried)


def test_drawn_weights_lie_within_the_intervals():
    intervals = searched(WEIGHTS, None, within=10, anchored=True)
    for weights in spread(WEIGHTS, intervals, 50):
        assert weights["click"] == 1.0
        assert all(low <= weights[name] <= high for name, (low, high) in intervals.items())
