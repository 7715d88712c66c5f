"""A log view orders the candidates of each request as a plain loop does."""

import numpy as np
from hypothesis import given, strategies as st

from app.tuning.log import Log
from app.tuning.log_view import LogView

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def view(request) -> LogView:
    """A view of a log with these requests, without scores and outcomes."""
    ids = [str(number) for number in range(request.max() + 1)]
    scores = np.empty((len(request), 0), np.float32)
    return LogView(Log(tasks=(), request_ids=ids, request=request, scores=scores, outcomes={}))


@given(SIZES, st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_top_sums_equal_a_plain_loop(sizes, k, seed):
    random = np.random.default_rng(seed)
    request = np.repeat(np.arange(len(sizes)), sizes)
    sort_keys = random.permutation(len(request)).astype(float)  # no ties
    values = random.normal(size=(len(request), 2))
    discounts = random.random(k)
    expected = np.zeros((len(sizes), 2))
    for number in range(len(sizes)):
        rows = np.flatnonzero(request == number)
        for position, row in enumerate(sorted(rows, key=lambda row: -sort_keys[row])[:k]):
            expected[number] += discounts[position] * values[row]
    assert np.allclose(view(request).top_sums(sort_keys, values, discounts), expected)


def test_ties_are_in_random_order_and_not_in_the_order_of_the_log():
    """A log may be sorted by what users liked; a policy that ties all must not gain by that."""
    request = np.repeat(np.arange(2000), 4)
    values = np.tile([1.0, 0, 0, 0], 2000)[:, None]
    tied = view(request).top_sums(np.zeros(len(request)), values, np.ones(1))
    assert abs(tied.mean() - 0.25) < 0.05
