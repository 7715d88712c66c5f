"""Run a short soak, and test that its checks can fail."""

import math
import random
from pathlib import Path

import httpx
import orjson
import pytest

from tests.soak import tables, versions
from tests.soak.__main__ import growth_mib, soak
from tests.soak.requests import Sent, draw, fault


@pytest.mark.slow
def test_server_answers_a_mixed_load_correctly():
    assert soak(requests=2000, connections=16, seed=1, most_growth_mib=32) == []


@pytest.mark.slow
def test_versions_change_under_load_without_a_failed_or_mixed_answer():
    # Latency depends on what else the machine does; `make soak` checks it.
    failed = versions.soak(4, 2, 1, most_growth_mib=32, most_p99_ratio=math.inf)
    assert failed == []


@pytest.mark.slow
def test_tables_change_under_load_without_a_failed_or_mixed_answer():
    assert tables.soak(3, 6, 1, most_growth_mib=32) == []


def test_rows_of_two_tables_in_one_answer_are_found():
    golden = {
        ("items", "1"): {1: 1001.0, 2: 1002.0},
        ("items", "1.1"): {1: 1001.0, 2: 2002.0},
        ("users", "1"): {5: 5.0},
    }
    calls = tables.Calls(tables.Tables(Path(), None, golden))  # type: ignore[arg-type]

    def fault(label, own):
        scores = {"own": own, "sum": [5 + score for score in own], "version": [1, 1]}
        used = {"items": label, "users": "1"}
        document = {"version": 1, "tables": used, "scores": scores}
        return calls.fault(httpx.Response(200, json=document), 5, [1, 2], is_v2=False)

    assert fault("1", [1001, 1002]) == fault("1.1", [1001, 2002]) == ""
    assert "mixed answer" in fault("1", [1001, 2002])
    assert "never published" in fault("2", [1001, 1002])


def test_answers_of_two_versions_are_found():
    calls, sums = versions.Calls(), [1.0, 2.0]
    for scores, expected in (([3, 3], ""), ([3, 4], "mixed answer"), ([4, 4], "mixed")):
        document = {"version": 3, "scores": {"version": scores, "sum": sums}}
        assert expected in calls._fault(httpx.Response(200, json=document), sums)
        assert bool(expected) == bool(calls._fault(httpx.Response(200, json=document), sums))
    assert "status 503" in calls._fault(httpx.Response(503, text="no"), sums)


def valid_request(number=7) -> Sent:
    """Return the first valid native request that is drawn."""
    rng = random.Random(0)
    while True:
        sent = draw(number, rng)
        if sent.statuses == {200} and not sent.is_binary and len(sent.candidates) > 1:
            return sent


def response_to(sent, *, user=None, version=3, claimed=3) -> bytes:
    user = sent.user if user is None else user
    scores = {
        "sum": [user + c for c in sent.candidates],
        "own": list(sent.candidates),
        "version": [version] * len(sent.candidates),
    }
    return orjson.dumps({"scores": scores, "version": claimed})


def test_scores_of_other_requests_or_versions_are_found():
    sent = valid_request()
    assert fault(sent, 200, {}, response_to(sent)) is None
    assert "wrong sum scores" in str(fault(sent, 200, {}, response_to(sent, user=8)))
    assert "wrong version scores" in str(fault(sent, 200, {}, response_to(sent, claimed=4)))
    fewer = Sent(sent.content, sent.user, sent.candidates[1:], sent.statuses)
    assert "wrong sum scores" in str(fault(fewer, 200, {}, response_to(sent)))


def test_unexpected_or_incomplete_errors_are_found():
    sent = valid_request()
    assert "status 500" in str(fault(sent, 500, {}, b"{}"))
    hurried = Sent(sent.content, sent.user, sent.candidates, frozenset((200, 503)))
    problem = orjson.dumps({"status": 503, "type": "/problems/deadline-unmeetable"})
    assert fault(hurried, 503, {"retry-after": "1"}, problem) is None
    assert "incomplete error" in str(fault(hurried, 503, {}, problem))
    assert "incomplete error" in str(fault(hurried, 503, {"retry-after": "1"}, b'{"status": 500}'))


def test_growth_compares_the_last_tenth_with_the_sixth():
    flat = [i << 20 for i in range(50)] + [50 << 20] * 50
    assert growth_mib(flat) == 0
    assert growth_mib([i << 20 for i in range(100)]) == pytest.approx(40)
