"""A bulk histogram has the same samples as one of the client library."""

import threading

import numpy as np
from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from app.telemetry.bulk_histogram import BulkHistogram

BOUNDS = (0.001, 0.01, 1.0, 5.0)


def both():
    """A bulk histogram and one of the client library, each with its registry."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bulk = BulkHistogram("t", "Help.", BOUNDS, ("stage",))
    ours.register(bulk)
    histogram = Histogram("t", "Help.", ("stage",), buckets=BOUNDS, registry=theirs)
    return bulk, histogram, ours, theirs


def text(registry):
    return [
        line
        for line in generate_latest(registry).decode().splitlines()
        if "_created" not in line and "_sum" not in line
    ]


numbers = st.one_of(st.floats(0, 10), st.sampled_from(BOUNDS))


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), numbers, st.booleans())))
def test_samples_equal_those_of_the_client_library(observations):
    bulk, histogram, ours, theirs = both()
    for stage, value, drain in observations:
        bulk.observer(stage)(value)
        histogram.labels(stage).observe(value)
        if drain:
            bulk.drain()
    assert text(ours) == text(theirs)
    for stage in {stage for stage, *_ in observations}:
        sums = [registry.get_sample_value("t_sum", {"stage": stage}) for registry in (ours, theirs)]
        assert abs(sums[0] - sums[1]) <= 1e-9 * max(1, sums[1])


@given(st.lists(numbers, min_size=1), st.lists(numbers))
def test_observe_many_equals_single_observations(together, apart):
    bulk, histogram, ours, theirs = both()
    bulk.observe_many(np.array(together), "a")
    for value in apart:
        bulk.observer("a")(value)
    for value in together + apart:
        histogram.labels("a").observe(value)
    assert text(ours) == text(theirs)


def test_a_series_exists_before_its_first_observation():
    bulk, _, ours, _ = both()
    bulk.observer("a")
    assert ours.get_sample_value("t_count", {"stage": "a"}) == 0


def test_no_observation_of_a_thread_is_lost_during_a_scrape():
    bulk, _, ours, _ = both()
    observe = bulk.observer("a")

    def work():
        for _ in range(20_000):
            observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        bulk.drain()
    assert ours.get_sample_value("t_count", {"stage": "a"}) == 80_000
