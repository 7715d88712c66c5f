"""A histogram that is counted later equals one that is counted at once."""

import threading

import numpy as np
from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from app.telemetry.bulk_histogram import BulkHistogram

BOUNDS = (0.001, 0.01, 1.0, 5.0)


def both():
    """The text of a tally and of the client library's own histogram, fed by the caller."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = BulkHistogram("t", "Help.", BOUNDS, ("stage",))
    ours.register(tally)
    histogram = Histogram("t", "Help.", ("stage",), buckets=BOUNDS, registry=theirs)
    return tally, histogram, ours, theirs


def text(registry):
    return [
        line
        for line in generate_latest(registry).decode().splitlines()
        if "_created" not in line and "_sum" not in line
    ]


numbers = st.one_of(st.floats(0, 10), st.sampled_from(BOUNDS))


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), numbers, st.booleans())))
def test_it_says_what_the_client_librarys_histogram_says(observations):
    tally, histogram, ours, theirs = both()
    for stage, value, drain in observations:
        tally.into(stage)(value)
        histogram.labels(stage).observe(value)
        if drain:
            tally.drain()
    assert text(ours) == text(theirs)
    for stage in {stage for stage, *_ in observations}:
        sums = [each.get_sample_value("t_sum", {"stage": stage}) for each in (ours, theirs)]
        assert abs(sums[0] - sums[1]) <= 1e-9 * max(1, sums[1])


@given(st.lists(numbers, min_size=1), st.lists(numbers))
def test_many_values_at_once_count_as_one_by_one(together, apart):
    tally, histogram, ours, theirs = both()
    tally.add(np.array(together), "a")
    for value in apart:
        tally.into("a")(value)
    for value in together + apart:
        histogram.labels("a").observe(value)
    assert text(ours) == text(theirs)


def test_a_label_set_exists_before_its_first_observation():
    tally, _, ours, _ = both()
    tally.into("a")
    assert ours.get_sample_value("t_count", {"stage": "a"}) == 0


def test_threads_lose_no_observation_to_a_scrape():
    tally, _, ours, _ = both()
    observe = tally.into("a")

    def work():
        for _ in range(20_000):
            observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.drain()
    assert ours.get_sample_value("t_count", {"stage": "a"}) == 80_000
