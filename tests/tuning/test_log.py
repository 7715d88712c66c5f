"""A log is split by request, and outcomes are weighted by position only if asked for."""

import numpy as np
import pytest

from tests.tuning import worlds


def test_all_rows_of_a_request_are_in_one_part_and_in_the_same_part_of_any_log():
    log = worlds.log(500)
    fit, held_out = log.split(0.3)
    assert set(fit.request_ids).isdisjoint(held_out.request_ids)
    assert sorted([*fit.request_ids, *held_out.request_ids]) == sorted(log.request_ids)
    assert fit.rows + held_out.rows == log.rows
    assert 0.2 < held_out.requests / log.requests < 0.4
    another = worlds.log(700, seed=1).split(0.3)[1]
    assert set(held_out.request_ids) <= set(another.request_ids)


def test_rows_of_a_part_keep_their_scores_outcomes_and_positions():
    log = worlds.log(50, positions=True)
    for part in log.split(0.5):
        assert part.positions is not None
        for row in range(part.rows):
            request_id = part.request_ids[part.request[row]]
            first = np.flatnonzero(log.request == log.request_ids.index(request_id))[0]
            source = first + int(part.positions[row]) - 1
            assert np.array_equal(part.scores[row], log.scores[source])
            for name, outcome in part.outcomes.items():
                assert np.array_equal(outcome[row], log.outcomes[name][source], equal_nan=True)
        assert np.array_equal(np.unique(part.request), np.arange(part.requests))


def test_position_bias_weights_lower_positions_more_and_at_most_tenfold():
    log = worlds.log(50, positions=True)
    assert log.corrected(0) is log
    corrected = log.corrected(2.0).outcomes["dwell"]
    assert log.positions is not None
    clicked = log.outcomes["click"] > 0
    factor = corrected[clicked] / log.outcomes["dwell"][clicked]
    assert factor == pytest.approx(np.minimum(log.positions[clicked] ** 2, 10))
    assert factor.max() == pytest.approx(10)
