"""Candidates are put in order request by request, as a plain loop does it."""

import numpy as np
from hypothesis import given, strategies as st

from app.tuning.lists import Lists

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(SIZES, st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_what_the_best_are_worth_equals_the_loop(sizes, k, seed):
    random = np.random.default_rng(seed)
    request = np.repeat(np.arange(len(sizes)), sizes)
    sort_keys = random.permutation(len(request)).astype(float)  # no ties
    values = random.normal(size=(len(request), 2))
    discounts = random.random(k)
    expected = np.zeros((len(sizes), 2))
    for each in range(len(sizes)):
        rows = np.flatnonzero(request == each)
        for place, row in enumerate(sorted(rows, key=lambda row: -sort_keys[row])[:k]):
            expected[each] += discounts[place] * values[row]
    assert np.allclose(Lists(request).captured(sort_keys, values, discounts), expected)


def test_ties_do_not_follow_the_order_of_the_log():
    """A log may be sorted by what users liked; a policy that says nothing must not gain by it."""
    request = np.repeat(np.arange(2000), 4)
    values = np.tile([1.0, 0, 0, 0], 2000)[:, None]
    tied = Lists(request).captured(np.zeros(len(request)), values, np.ones(1))
    assert abs(tied.mean() - 0.25) < 0.05
