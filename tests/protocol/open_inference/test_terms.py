"""A request's own terms: Triton's `priority` and `timeout`, beside those of its headers."""

import pytest

from app.engine.request import Priority, RequestOptions
from app.lifecycle.policies import Policies
from app.protocol.open_inference.infer import OpenInference
from app.scoring.score import Call, Limits
from tests.support.fakes import sums_model

ARRIVAL, DEADLINE = 100.0, 107.0


def terms_of(**parameters) -> RequestOptions:
    """The terms of a request whose headers say: low priority, until 107."""
    model = sums_model()
    call = Call(
        model,
        Policies().of(model),
        [],
        Limits(max_candidates=9, default_timeout_s=1.0),
        RequestOptions(DEADLINE, Priority.LOW),
        ARRIVAL,
    )
    inputs = [
        {"name": name, "shape": [1], "datatype": "FP32", "data": [1.0]} for name in ("u", "c")
    ]
    document = {"inputs": inputs, "parameters": parameters}
    _, terms = OpenInference().read((document, memoryview(b"")), call)
    return terms


@pytest.mark.parametrize(
    ("level", "priority"), [(1, Priority.HIGH), (2, Priority.NORMAL), (3, Priority.LOW)]
)
def test_a_priority_is_one_of_three_levels(level, priority):
    assert terms_of(priority=level).priority == priority


def test_a_timeout_runs_from_the_requests_arrival():
    assert terms_of(timeout=1_500_000).deadline == ARRIVAL + 1.5
    assert terms_of(timeout=600_000_000).deadline == ARRIVAL + 600


def test_what_is_not_said_or_zero_is_left_to_the_headers():
    assert terms_of() == terms_of(priority=0, timeout=0) == RequestOptions(DEADLINE, Priority.LOW)
