"""The headers of a score call: which are read, and what they say."""

import pytest

from app.engine.request import Priority
from app.errors import InvalidRequest, MalformedBody, PayloadTooLarge, UnsupportedMediaType
from app.scoring.request_headers import check_body_headers, priority, read_headers, timeout_s

JSON = frozenset((b"application/json",))
BOTH = frozenset((b"application/json", b"application/octet-stream"))


def of_request(**headers: str) -> dict[bytes, bytes]:
    return {f"x-request-{k.replace('_', '-')}".encode(): v.encode() for k, v in headers.items()}


def test_without_headers_a_request_has_the_default_timeout_and_priority():
    assert timeout_s({}, 1.5) == 1.5
    assert priority({}) is Priority.NORMAL


def test_timeout_is_stated_in_milliseconds():
    assert timeout_s(of_request(timeout_ms="250"), 1.5) == 0.25
    assert timeout_s(of_request(timeout_ms="600000"), 1.5) == 600


@pytest.mark.parametrize("said", ["high", "normal", "low", "Low"])
def test_priority_is_read_in_any_case(said):
    assert priority(of_request(priority=said)) is Priority[said.upper()]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "600001", "00000000006000001", "", "soon"])
def test_timeout_must_be_a_whole_number_in_range(value):
    with pytest.raises(InvalidRequest, match="x-request-timeout-ms must be a whole number"):
        timeout_s(of_request(timeout_ms=value), 1.0)


def test_unknown_priority_is_refused():
    with pytest.raises(InvalidRequest, match="x-request-priority must be high, normal or low"):
        priority(of_request(priority="urgent"))


def test_only_headers_that_score_calls_read_are_kept():
    headers = [(b"host", b"x"), (b"x-request-id", b"7"), (b"cookie", b"secret")]
    assert read_headers(headers) == {b"x-request-id": b"7"}


def test_repeated_headers_are_joined_by_commas():
    headers = [(b"accept-encoding", b"br"), (b"host", b"x"), (b"accept-encoding", b"gzip")]
    assert read_headers(headers) == {b"accept-encoding": b"br, gzip"}


@pytest.mark.parametrize("name", ["timeout_ms", "priority"])
def test_repeated_timeout_or_priority_is_refused(name):
    ((header, _),) = of_request(**{name: ""}).items()
    headers = read_headers([(header, b"100"), (header, b"high")])
    with pytest.raises(InvalidRequest):
        (timeout_s(headers, 1.0), priority(headers))


@pytest.mark.parametrize(
    "value",
    [b"application/json", b"application/json; charset=utf-8", b"Application/JSON ;x=y"],
)
def test_json_is_accepted_in_every_spelling(value):
    assert check_body_headers({b"content-type": value}, JSON, 10) == (0, None)


@pytest.mark.parametrize(
    "value",
    [b"text/json", b"application/x-www-form-urlencoded", b"application/jsonp", b"", b"*/*"],
)
def test_other_content_types_are_refused(value):
    with pytest.raises(UnsupportedMediaType, match="content-type must be application/json"):
        check_body_headers({b"content-type": value}, JSON, 10)


def test_missing_content_type_is_accepted():
    assert check_body_headers({}, JSON, 10) == (0, None)


def test_dialect_decides_which_content_types_are_accepted():
    octets = {b"content-type": b"application/octet-stream"}
    assert check_body_headers(octets, BOTH, 10) == (0, None)
    with pytest.raises(UnsupportedMediaType, match="json or application/octet-stream"):
        check_body_headers({b"content-type": b"text/plain"}, BOTH, 10)


@pytest.mark.parametrize(
    ("value", "coding"),
    [(b"gzip", b"gzip"), (b"x-gzip", b"x-gzip"), (b"GZip ", b"gzip"), (b"deflate", b"deflate")],
)
def test_content_coding_is_read_in_any_case(value, coding):
    assert check_body_headers({b"content-encoding": value}, JSON, 10) == (0, coding)


def test_identity_is_not_a_content_coding():
    assert check_body_headers({b"content-encoding": b"Identity"}, JSON, 10) == (0, None)


@pytest.mark.parametrize(
    "values", [[b"br"], [b"identity, gzip"], [b"gzip, gzip"], [b"gzip", b"deflate"], [b""]], ids=str
)
def test_other_content_codings_are_refused(values):
    headers = read_headers([(b"content-encoding", value) for value in values])
    with pytest.raises(UnsupportedMediaType, match="gzip, deflate or identity") as refused:
        check_body_headers(headers, JSON, 10)
    assert refused.value.is_coding


def test_announced_length_may_be_as_large_as_the_limit():
    assert check_body_headers({b"content-length": b"10"}, JSON, 10) == (10, None)
    with pytest.raises(PayloadTooLarge, match="larger than 10 bytes"):
        check_body_headers({b"content-length": b"11"}, JSON, 10)


@pytest.mark.parametrize(
    "value", [b"+5", b"-5", b"5, 5", b"0x5", b"", b"5_0", b"5.0", b"five", b"\xb2"]
)
def test_content_length_that_is_not_a_number_is_refused(value):
    with pytest.raises(MalformedBody, match="content-length must be one whole number"):
        check_body_headers({b"content-length": value}, JSON, 10)


@pytest.mark.parametrize("value", [b"5", b" 5 ", b"05", b"0" * 10_000 + b"5"])
def test_content_length_may_have_zeros_and_spaces_around_it(value):
    assert check_body_headers({b"content-length": value}, JSON, 10) == (5, None)


def test_content_length_of_any_size_is_too_large():
    with pytest.raises(PayloadTooLarge):
        check_body_headers({b"content-length": b"9" * 10_000}, JSON, 10)
