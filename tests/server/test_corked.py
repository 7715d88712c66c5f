"""Head and body go together, and nothing is held back that nobody would fetch."""

import pytest

from app.server.corked import Corked

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Transport:
    """Takes down what it is told."""

    def __init__(self):
        self.told: list[bytes | str] = []

    def write(self, data):
        self.told.append(data)

    def close(self):
        self.told.append("close")


@pytest.fixture
def transport():
    return Transport()


def test_a_head_goes_with_its_body(transport):
    corked = Corked(transport)
    corked.write(HEAD)
    assert transport.told == []
    corked.write(b"{}")
    assert transport.told == [HEAD + b"{}"]


def test_further_parts_of_a_body_go_at_once(transport):
    corked = Corked(transport)
    for data in (HEAD, b"1", b"2", b""):
        corked.write(data)
    assert transport.told == [HEAD + b"1", b"2", b""]


def test_a_call_to_go_on_is_not_held_back(transport):
    corked = Corked(transport)
    corked.write(CONTINUE)
    assert transport.told == [CONTINUE]
    corked.write(HEAD)
    corked.write(b"{}")
    assert transport.told == [CONTINUE, HEAD + b"{}"]


def test_a_head_that_stays_without_a_body_goes_before_the_end(transport):
    corked = Corked(transport)
    corked.write(HEAD)
    corked.close()
    assert transport.told == [HEAD, "close"]
