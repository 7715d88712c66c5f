"""The short form of the soak, and that its checks can fail."""

import random

import orjson
import pytest

from tests.soak.__main__ import growth_mib, soak
from tests.soak.requests import Sent, draw, fault


@pytest.mark.slow
def test_a_server_stays_whole_under_a_mixed_load():
    assert soak(requests=2000, connections=16, seed=1, most_growth_mib=32) == []


def good(number=7) -> Sent:
    """The first good native request that is drawn."""
    rng = random.Random(0)
    while True:
        sent = draw(number, rng)
        if sent.statuses == {200} and not sent.is_binary and len(sent.candidates) > 1:
            return sent


def answer(sent, *, user=None, version=3, claimed=3) -> bytes:
    user = sent.user if user is None else user
    scores = {
        "sum": [user + c for c in sent.candidates],
        "own": list(sent.candidates),
        "version": [version] * len(sent.candidates),
    }
    return orjson.dumps({"scores": scores, "version": claimed})


def test_only_a_requests_own_rows_by_one_version_are_right():
    sent = good()
    assert fault(sent, 200, {}, answer(sent)) is None
    assert "is another's" in str(fault(sent, 200, {}, answer(sent, user=8)))
    assert "is another's" in str(fault(sent, 200, {}, answer(sent, claimed=4)))
    fewer = Sent(sent.content, sent.user, sent.candidates[1:], sent.statuses)
    assert "is another's" in str(fault(fewer, 200, {}, answer(sent)))


def test_an_error_must_be_one_that_was_due_and_be_clear():
    sent = good()
    assert "status 500" in str(fault(sent, 500, {}, b"{}"))
    hurried = Sent(sent.content, sent.user, sent.candidates, frozenset((200, 503)))
    problem = orjson.dumps({"status": 503, "type": "/problems/deadline-unmeetable"})
    assert fault(hurried, 503, {"retry-after": "1"}, problem) is None
    assert "unclear" in str(fault(hurried, 503, {}, problem))
    assert "unclear" in str(fault(hurried, 503, {"retry-after": "1"}, b'{"status": 500}'))


def test_growth_is_that_of_the_second_half():
    flat = [i << 20 for i in range(50)] + [50 << 20] * 50
    assert growth_mib(flat) == 0
    assert growth_mib([i << 20 for i in range(100)]) == pytest.approx(40)
