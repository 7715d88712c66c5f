"""The text format: the same bytes as the library's, whatever the names, labels and values."""

import math

import numpy as np
import prometheus_client
import pytest
from hypothesis import given, strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Summary,
    generate_latest,
)

from app.telemetry.bulk_histogram import BulkHistogram
from app.telemetry.exposition import TextRenderer, number
from app.telemetry.gates import GateCell
from app.telemetry.metrics import Metrics
from tests.support.series import fill

VALUES = st.floats() | st.integers(-(10**12), 10**12).map(float)


@pytest.fixture(params=[False, True], ids=["as served", "with times of creation"], autouse=True)
def _created(request):
    """A serving process has no series of the times at which others were created."""
    if request.param:
        yield
        return
    prometheus_client.disable_created_metrics()
    yield
    prometheus_client.enable_created_metrics()


def without_process(text):
    """The lines whose values do not change between two scrapes."""
    return [line for line in text.splitlines() if not line.startswith(b"process_")]


def test_metrics_of_a_large_server_are_the_bytes_of_the_library():
    metrics = Metrics()
    fill(metrics)
    first, second = metrics.render(), metrics.render()
    assert without_process(first) == without_process(generate_latest(metrics.registry))
    assert without_process(first) == without_process(second)
    assert len([line for line in first.splitlines() if not line.startswith(b"#")]) > 7000


def test_series_that_change_between_scrapes_are_the_bytes_of_the_library():
    metrics = Metrics()
    fill(metrics, models=2)
    metrics.render()
    fill(metrics, models=1)
    metrics.loop_lagged(0.1)
    assert without_process(metrics.render()) == without_process(generate_latest(metrics.registry))
    metrics.ranking.shadow_compared("policy-0", "shadow", tau=-0.7, overlap=0.1)
    metrics.gates.observe("model-1/1", [GateCell("1", "a", "b")] * 64, np.full(64, 0.5))
    text = metrics.render()
    assert without_process(text) == without_process(generate_latest(metrics.registry))
    assert b'gatehouse_gate_weight_count{expert="expert-0",gate="task-0",level="1"' in text


def test_series_that_go_away_and_come_back_are_written_anew():
    metrics = Metrics()
    fill(metrics, models=2)
    metrics.render()
    metrics.freed("model-0/1")
    metrics.versions.show_roles("model-0", [])
    metrics.versions.retired("model-0", 1, "0" * 64)
    assert without_process(metrics.render()) == without_process(generate_latest(metrics.registry))
    fill(metrics, models=3)
    assert without_process(metrics.render()) == without_process(generate_latest(metrics.registry))


@given(st.text(), VALUES, st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=5))
def test_any_label_and_value_is_the_bytes_of_the_library(label, value, observed):
    registry = CollectorRegistry()
    Gauge("a_gauge", "Help with \\ and\na line.", ("name",), registry=registry).labels(label).set(
        value
    )
    counter = Counter("a_total", "Counts.", ("z", "a"), registry=registry)
    counter.labels(label, "x").inc(abs(value) if math.isfinite(value) else 1)
    for name, bounds in (("own", (0.5, 1e7)), ("negative", (-1.0, 2.0))):
        own = BulkHistogram(name, "Own.", bounds, ("name",))
        registry.register(own)
        for observation in observed:
            own.observer(label)(observation)
    assert TextRenderer().render(registry) == generate_latest(registry)


def test_types_that_the_service_does_not_use_are_the_bytes_of_the_library():
    registry = CollectorRegistry()
    Info("build", "An info.", registry=registry).info({"version": "1"})
    Summary("a_summary", "A summary.", registry=registry).observe(2)
    Histogram("a_histogram", "A histogram.", ("x",), registry=registry).labels("1").observe(2)
    Counter("empty", "Without series.", ("x",), registry=registry)
    assert TextRenderer().render(registry) == generate_latest(registry)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0"),
        (-0.5, "-0.5"),
        (999_999.5, "999999.5"),
        (1e6, "1e+06"),
        (math.inf, "+Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_are_written_as_go_writes_them(value, text):
    assert number(value) == text
