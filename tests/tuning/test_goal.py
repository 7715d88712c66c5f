"""Goals have the values of their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.tuning.goal import MeanOutcome, Mix, Ndcg
from app.tuning.log_view import LogView
from tests.tuning import worlds


def naive_ndcg(log, sort_keys, gains, k):
    """Mean NDCG by its definition, request by request, over requests with a gain."""
    found = []
    for number in range(log.requests):
        rows = np.flatnonzero(log.request == number)
        gain = {
            row: sum(
                worth * (0 if math.isnan(log.outcomes[name][row]) else log.outcomes[name][row])
                for name, worth in gains.items()
            )
            for row in rows
        }

        def dcg(order, gain=gain):
            return sum(
                gain[row] / math.log2(position + 2) for position, row in enumerate(order[:k])
            )

        ideal = dcg(sorted(rows, key=lambda row: -gain[row]))
        if ideal > 0:
            found.append(dcg(sorted(rows, key=lambda row: -sort_keys[row])) / ideal)
    return sum(found) / len(found)


@given(st.integers(0, 1000), st.integers(1, 14))
def test_ndcg_equals_its_definition(seed, k):
    log = worlds.log(12, seed=seed)
    sort_keys = np.random.default_rng(seed).normal(size=log.rows)
    goal = Ndcg({"click": 1.0, "like": 4.0, "dwell": 0.05}, k)
    if not np.nansum(log.outcomes["click"]):
        return
    mean = goal.contributions(LogView(log), sort_keys).mean(axis=0)
    assert goal.value(mean, mean) == pytest.approx(naive_ndcg(log, sort_keys, goal.outcomes, k))


def test_the_ideal_order_has_ndcg_1_for_each_of_two_goals():
    log = worlds.log()
    view = LogView(log)
    sort_keys = np.random.default_rng(0).normal(size=log.rows)
    for name in ("click", "dwell"):
        goal = Ndcg({name: 2.0}, 5)
        mean = goal.contributions(view, log.outcomes[name]).mean(axis=0)
        assert goal.value(mean, mean) == pytest.approx(1)
        assert np.array_equal(
            goal.contributions(view, sort_keys), goal.contributions(LogView(log), sort_keys)
        )


def test_value_of_a_mix_is_its_smallest_ratio_to_a_target():
    goal = Mix({"click": 1.0, "like": 1.1}, 10)
    now = np.array([2.0, 1.0])
    good = goal.value(np.array([2.0, 1.1]), now)
    assert good == pytest.approx(1)
    assert goal.value(np.array([1.8, 9.9]), now) == pytest.approx(0.9, rel=0.01)
    assert goal.value(np.array([1.8, 9.9]), now) > goal.value(np.array([1.8, 1.1]), now)
    assert goal.value(np.array([[2.0, 1.1], [1.0, 1.0]]), now).shape == (2,)


def test_mean_outcome_counts_the_best_candidates_only():
    log = worlds.log()
    view = LogView(log)
    found = MeanOutcome("click", 1).contributions(view, log.outcomes["click"])[:, 0]
    some = np.bincount(log.request, weights=log.outcomes["click"]) > 0
    assert np.array_equal(found, some.astype(float))
