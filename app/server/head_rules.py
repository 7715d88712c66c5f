"""Rules for the head of a request that the HTTP parser does not enforce."""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus

Header = tuple[bytes, bytes]
"""The name in lower case, and the value."""

MOST_HEADERS = 100
_UPGRADE = (b"upgrade", b"http2-settings")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
"""Characters of a host and its port (RFC 3986, section 3.2). Some invalid orders are accepted."""


def head_refusal(version: str, headers: Sequence[Header]) -> HTTPStatus | None:
    """Return the status with which a head must be refused; None if it may be read on.

    Args:
        version: of HTTP, such as "1.1".
        headers: in the order in which they arrived.
    """
    if len(headers) > MOST_HEADERS:
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    if version not in ("1.0", "1.1"):  # the parser also takes 0.9 and 2.0
        return HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value.strip()):
                return HTTPStatus.BAD_REQUEST
        elif name == b"transfer-encoding":
            if version == "1.0":  # its framing is not certain (RFC 9112, section 6.1)
                return HTTPStatus.BAD_REQUEST
            if value.strip().lower() != b"chunked":
                return HTTPStatus.NOT_IMPLEMENTED
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return HTTPStatus.BAD_REQUEST  # RFC 9112, section 3.2
    return None


def head_without_upgrade(
    method: bytes, target: bytes, version: str, headers: Iterable[Header]
) -> bytes:
    """Return the head of a request, with its last empty line, but without an offer to upgrade.

    A server may ignore the offer and continue in HTTP/1.1 (RFC 9110, section 7.8).
    """
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    for name, value in headers:
        if name == b"connection":
            lines.append(b"connection: " + _without_upgrade_options(value))
        elif name not in _UPGRADE:
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])


def _without_upgrade_options(connection: bytes) -> bytes:
    options = (option.strip() for option in connection.split(b","))
    return b", ".join(option for option in options if option.lower() not in _UPGRADE)
