"""Distributions in a few bins, and the population stability index between two of them."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from app.artifacts.distributions import MOST_BINS, Distributions, IdBins, NumberBins

RANDOM = np.random.default_rng(5)
Numbers = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=200)


def naive_index(expected, actual):
    floor = [max(share, 1e-4) for share in expected], [max(share, 1e-4) for share in actual]
    pairs = zip(*([x / sum(shares) for x in shares] for shares in floor), strict=True)
    return sum((a - e) * np.log(a / e) for e, a in pairs)


@given(Numbers)
def test_every_number_is_in_one_bin_and_its_own_distribution_is_no_drift(values):
    column = np.array(values, np.float32)
    bins = NumberBins.of(column)
    assert bins is not None
    counts = bins.counts(column)
    assert counts.sum() == len(values)
    assert len(bins.shares) <= MOST_BINS
    for number, share in enumerate(bins.shares):
        low = -np.inf if number == 0 else bins.edges[number - 1]
        high = np.inf if number == len(bins.edges) else bins.edges[number]
        inside = ((column > np.float32(low)) & (column <= np.float32(high))).sum()
        assert inside == counts[number]
        assert share == pytest.approx(inside / len(values), abs=1e-5)
    assert bins.stability_index(counts) == pytest.approx(0, abs=1e-3)
    assert NumberBins.model_validate_json(bins.model_dump_json()) == bins


@given(st.lists(st.integers(-1, 60), min_size=1, max_size=300))
def test_frequent_ids_and_the_unknown_one_have_bins_of_their_own(ids):
    column = np.array(ids, np.int64)
    bins = IdBins.of(column, unknown=0, padding=-1)
    real = [row for row in ids if row != -1]
    if not real:
        assert bins is None
        return
    assert bins is not None
    assert len(bins.shares) <= MOST_BINS
    assert 0 in bins.rows
    counts = bins.counts(column)
    assert counts.sum() == len(real)
    for row, count, share in zip(bins.rows, counts, bins.shares, strict=False):
        assert count == real.count(row)
        assert share == pytest.approx(real.count(row) / len(real), abs=1e-5)
    others = set(real) - set(bins.rows)
    assert all(real.count(row) <= max(map(real.count, bins.rows)) for row in others)


def test_index_is_that_of_its_definition_and_grows_with_a_shift():
    bins = NumberBins.of(RANDOM.normal(size=5000))
    assert bins is not None
    found = []
    for shift in (0.0, 0.3, 1.0):
        counts = bins.counts(RANDOM.normal(shift, size=5000))
        index = bins.stability_index(counts)
        assert index == pytest.approx(naive_index(bins.shares, counts / counts.sum()))
        found.append(index)
    assert found[0] < 0.02 < found[1] < 0.25 < found[2]


def test_new_ids_drift_and_a_different_order_does_not():
    ids = RANDOM.integers(0, 10, 2000)
    bins = IdBins.of(ids, unknown=0)
    assert bins is not None
    assert bins.stability_index(bins.counts(ids[::-1])) < 1e-3
    assert bins.stability_index(bins.counts(ids + 100)) > 0.25


def test_without_values_there_are_no_bins():
    assert NumberBins.of(np.array([np.nan])) is None
    assert IdBins.of(np.array([-1, -1]), unknown=0, padding=-1) is None


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"kind": "number", "edges": [2, 1], "shares": [0.2, 0.4, 0.4]}, "edges must ascend"),
        ({"kind": "number", "edges": [1], "shares": [0.2, 0.4, 0.4]}, "one share more than edges"),
        ({"kind": "number", "edges": [1], "shares": [0.2, 0.4]}, "must add up to 1"),
        ({"kind": "id", "rows": [1, 1], "shares": [0.2, 0.4, 0.4]}, "rows must ascend"),
        ({"kind": "id", "rows": [1], "shares": [1.0]}, "one share more than rows"),
        ({"kind": "number", "edges": [], "shares": [1.0], "x": 1}, "Extra inputs"),
    ],
)
def test_wrong_bins_are_refused(document, problem):
    with pytest.raises(ValidationError, match=problem):
        Distributions(features={"age": document})
