"""Agreement of two rankings, compared with a plain count of pairs."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.ranking.agreement import MOST_COMPARED, TOP, compare_orders, kendall_tau, overlap

sort_keys = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 9), min_size=n, max_size=n)] * 2)
)


def by_pairs(before, after) -> float:
    a, b = (np.sign(keys[:, None] - keys[None, :]) for keys in (before, after))
    untied = math.sqrt(float((a != 0).sum()) * float((b != 0).sum()))
    return float((a * b).sum() / untied) if untied else 1.0


@given(sort_keys)
def test_kendalls_tau_equals_a_count_of_all_pairs(pair):
    before, after = (np.array(keys, np.float64) for keys in pair)
    assert kendall_tau(before, after) == pytest.approx(by_pairs(before, after), abs=1e-12)


def test_kendalls_tau_by_hand():
    """Four candidates have six pairs: one is reversed; then one is tied on one side."""
    scores = np.array([4, 3, 2, 1], np.float64)
    assert kendall_tau(scores, scores) == 1
    assert kendall_tau(scores, -scores) == -1
    assert kendall_tau(scores, np.array([3, 4, 2, 1], np.float64)) == pytest.approx(4 / 6)
    tied = np.array([4, 4, 2, 1], np.float64)
    assert kendall_tau(scores, tied) == pytest.approx(5 / math.sqrt(6 * 5))


def test_overlap_is_the_share_of_the_best_k_in_common():
    scores = np.array([5, 4, 3, 2, 1], np.float64)
    other = np.array([5, 1, 4, 2, 3], np.float64)
    assert overlap(scores, other, 2) == 0.5
    assert overlap(scores, other, 9) == 1


def test_orders_are_compared_over_evenly_spaced_candidates():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 3 * MOST_COMPARED))
    tau, best = compare_orders(before, after)
    assert tau == kendall_tau(before[::3], after[::3])
    assert best == overlap(before[::3], after[::3], TOP)
    tau, best = compare_orders(before[:20], after[:20])
    assert tau == kendall_tau(before[:20], after[:20])
    assert best == overlap(before[:20], after[:20], TOP)


def test_the_order_of_one_candidate_has_no_correlation():
    assert compare_orders(np.ones(1), np.zeros(1)) == (None, 1.0)
