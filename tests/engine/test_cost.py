"""The line that predicts how long a batch takes."""

import pytest
from hypothesis import given, strategies as st

from app.engine.cost import Cost


def line(rows):
    return 0.002 + 0.00005 * rows


def fitted():
    cost = Cost()
    cost.fit([(rows, line(rows)) for rows in (1, 64, 512)])
    return cost


def test_cost_starts_with_the_line_through_the_measurements():
    cost = fitted()
    assert cost.of(100) == pytest.approx(line(100))
    assert cost.of(1000, batches=2) == pytest.approx(0.004 + 0.05)


def test_equal_sizes_give_a_price_per_row():
    cost = Cost()
    cost.fit([(100, 0.010), (100, 0.012)])
    assert cost.of(200) == pytest.approx(0.022, rel=0.01)


def test_first_batch_is_the_measurement_without_warm_up():
    cost = Cost()
    assert cost.of(10) == 0
    cost.observe(10, 0.010)
    assert cost.of(10) == pytest.approx(0.010, rel=0.01)


def test_large_batches_correct_the_price_of_a_row():
    cost = fitted()
    for _ in range(100):
        cost.observe(512, 2 * line(512))
    assert cost.of(512) == pytest.approx(2 * line(512), rel=0.01)
    assert cost.of(1) == pytest.approx(line(1), rel=0.3)


def test_small_batches_correct_the_price_of_a_batch():
    cost = fitted()
    for _ in range(100):
        cost.observe(1, 3 * line(1))
    assert cost.of(1) == pytest.approx(3 * line(1), rel=0.01)
    assert cost.b_s == pytest.approx(0.00005, rel=0.1)


def test_cost_adapts_to_a_machine_that_becomes_slower():
    cost = fitted()
    for step in range(200):
        rows = (1, 30, 64, 200, 512)[step % 5]
        cost.observe(rows, 1.7 * line(rows))
    for rows in (1, 64, 512):
        assert cost.of(rows) == pytest.approx(1.7 * line(rows), rel=0.1)


def test_margin_is_as_wide_as_recent_predictions_were_wrong():
    cost = fitted()
    assert cost.margin_s(1.0) == 0
    for step in range(200):
        cost.observe(100, line(100) * (1.1 if step % 2 else 0.9))
    assert cost.margin_s(1.0) == pytest.approx(0.2, rel=0.2)
    for _ in range(200):
        cost.observe(100, line(100))
    assert cost.margin_s(1.0) < 0.01


@pytest.mark.parametrize("slow", [1, 64, 512])
def test_slow_batch_at_warm_up_is_forgotten(slow):
    cost = Cost()
    cost.fit([(rows, line(rows) * (30 if rows == slow else 1)) for rows in (1, 64, 512)])
    for step in range(400):
        rows = (1, 30, 64, 200, 512)[step % 5]
        cost.observe(rows, line(rows))
    for rows in (1, 64, 512):
        assert cost.of(rows) == pytest.approx(line(rows), rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(0, 10)), min_size=1, max_size=50))
def test_every_prediction_is_positive_and_grows_with_the_rows(observed):
    cost = Cost()
    for rows, seconds in observed:
        cost.observe(rows, seconds)
    assert 0 < cost.of(1) <= cost.of(2) <= cost.of(4096)
