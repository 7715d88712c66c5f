"""The capacity page shows what the calculation gives."""

import pytest

from tests import REPOSITORY
from tests.bench.capacity import Fleet, Request, fleets, per_core

PAGE = (REPOSITORY / "docker" / "CAPACITY.md").read_text(encoding="utf-8")
REQUEST = Request("JSON", 100, cpu_us=1000, model_us=800, body_bytes=10_000)


def test_page_has_the_tables():
    assert per_core() in PAGE
    assert fleets() in PAGE


def test_cores_limit_replicas_with_few_of_them():
    fleet = Fleet(REQUEST, load=1_000_000, cores=2)
    assert fleet.requests == 10_000
    assert fleet.busy_cores == 10
    assert fleet.replicas == 8  # 10 / 0.7 / 2 = 7.1
    assert fleet.gbit_in == pytest.approx(0.8)
    assert Fleet(REQUEST, load=1_000_000, cores=2, usd=0.5).usd_per_hour == 8


def test_event_loops_limit_replicas_with_many_cores():
    fleet = Fleet(REQUEST, load=1_000_000, cores=16)  # 10 cores would be one replica
    assert fleet.replicas == 3  # each request takes 200 µs of a loop: 2 loops, 70 % busy
    assert REQUEST.loop_lanes == 4
