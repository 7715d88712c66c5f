"""What a request states in its body: Triton's parameters `priority` and `timeout`."""

import orjson
import pytest

from app.engine.request import Priority
from app.lifecycle.policies import Policies
from app.protocol.dialect import ParseContext
from app.protocol.open_inference.infer import OpenInference
from tests.support.fakes import sums_model


def stated(**parameters: object) -> tuple[float | None, Priority | None]:
    """Return the timeout (s) and the priority of a request with these parameters."""
    model = sums_model()
    context = ParseContext(model, Policies().of(model), {}, max_candidates=9)
    inputs = [
        {"name": name, "shape": [1], "datatype": "FP32", "data": [1.0]} for name in ("u", "c")
    ]
    body = orjson.dumps({"inputs": inputs, "parameters": parameters})
    parsed = OpenInference().parse(body, context)
    return parsed.timeout_s, parsed.priority


@pytest.mark.parametrize(
    ("level", "priority"), [(1, Priority.HIGH), (2, Priority.NORMAL), (3, Priority.LOW)]
)
def test_priority_is_one_of_three_levels(level, priority):
    assert stated(priority=level) == (None, priority)


def test_timeout_is_stated_in_microseconds():
    assert stated(timeout=1_500_000) == (1.5, None)
    assert stated(timeout=600_000_000) == (600, None)


def test_headers_apply_if_parameters_are_missing_or_zero():
    assert stated() == stated(priority=0, timeout=0) == (None, None)
