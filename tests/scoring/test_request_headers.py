"""Deadline and priority, read from a request's headers."""

import pytest

from app.engine.request import Priority, never_disconnected
from app.errors import InvalidRequest
from app.scoring.request_headers import IS_DISCONNECTED, terms_of


def scope(**headers):
    return {"headers": [(f"x-request-{k}".encode(), v.encode()) for k, v in headers.items()]}


def test_a_request_that_says_nothing_has_the_default_terms():
    terms = terms_of(scope(), 1.5, 5.0)
    assert (terms.deadline, terms.priority, terms.is_disconnected) == (
        6.5,
        Priority.NORMAL,
        never_disconnected,
    )


def test_the_time_that_a_caller_states_runs_from_now():
    assert terms_of(scope(**{"timeout-ms": "250"}), 1.5, 5.0).deadline == 5.25


@pytest.mark.parametrize("said", ["high", "normal", "low", "Low"])
def test_a_caller_states_its_priority(said):
    assert terms_of(scope(priority=said), 1.0, 0.0).priority is Priority[said.upper()]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "600001", "00000000006000001", "", "soon"])
def test_a_timeout_that_is_no_number_of_milliseconds_is_refused(value):
    with pytest.raises(InvalidRequest, match="x-request-timeout-ms"):
        terms_of(scope(**{"timeout-ms": value}), 1.0, 0.0)


def test_a_priority_that_does_not_exist_is_refused():
    with pytest.raises(InvalidRequest, match="x-request-priority must be high, normal or low"):
        terms_of(scope(priority="urgent"), 1.0, 0.0)


def test_the_connection_says_whether_the_caller_left():
    assert terms_of(scope() | {IS_DISCONNECTED: lambda: True}, 1.0, 0.0).is_disconnected()
