"""Convert the values of options and arguments: numbers, times, versions, URLs, lists of pairs.

A converter takes the text of a value. It raises `argparse.ArgumentTypeError` with the rule that the
text breaks; the parser puts the option and the text before it.
"""

import argparse
import math
import re
from urllib.parse import urlsplit

AGE_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
"""The units of an age, in seconds."""

_DURATION_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0}


class UnrepeatableValue(argparse.ArgumentTypeError):
    """A value breaks a rule, and messages must not repeat it: it may contain a secret."""


def positive(text: str, *, below: float = 1e6) -> float:
    """Convert a number above 0."""
    number = _number(text)
    if not 0 < number < below:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and below {below:.0f}")
    return number


def large_positive(text: str) -> float:
    """Convert a number above 0 that may be larger than most, such as requests per second."""
    return positive(text, below=1e7)


def factor(text: str) -> float:
    """Convert a number of 1 or more."""
    number = positive(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def share(text: str) -> float:
    """Convert a number between 0 and 1."""
    number = positive(text)
    if not number < 1:
        raise argparse.ArgumentTypeError("must be below 1")
    return number


def error_share(text: str) -> float:
    """Convert a share that may be 0."""
    number = _number(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError("must be a share from 0 to below 1, such as 0.001")
    return number


def headroom(text: str) -> float:
    """Convert a share that leaves something to use."""
    number = _number(text)
    if not 0 <= number < 0.95:
        raise argparse.ArgumentTypeError("must be a share from 0 to below 0.95, such as 0.3")
    return number


def _number(text: str) -> float:
    """Return a number; NaN, which is in no range, if the text is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def count(text: str) -> int:
    """Convert a whole number that must be above 0."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 7 and int(text) >= 1):
        raise argparse.ArgumentTypeError("must be a whole number of 1 or more")
    return int(text)


def count_or_zero(text: str) -> int:
    """Convert a whole number that may be 0."""
    if not (text.isdecimal() and len(text) <= 12):
        raise argparse.ArgumentTypeError("must be a whole number, 0 or more")
    return int(text)


def process_id(text: str) -> int:
    """Convert the id of one process: a signal to 0 or a negative number goes to many."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) >= 1):
        raise argparse.ArgumentTypeError("must be the id of a process, a whole number of 1 or more")
    return int(text)


def version_number(text: str) -> int:
    """Convert the number of a version or a table."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 16 and int(text) >= 1):
        raise argparse.ArgumentTypeError("must be a version number, such as 7")
    return int(text)


def seconds(text: str) -> float:
    """Convert a number of seconds."""
    number = _number(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return number


def duration(text: str) -> float:
    """Convert `20ms`, `10s` or `2m` to seconds."""
    for unit, length_s in _DURATION_UNITS_S.items():
        if text.endswith(unit):
            number = _number(text.removesuffix(unit)) * length_s
            if 0 < number < 1e6:
                return number
            break
    raise argparse.ArgumentTypeError("must be a time above 0, such as 20ms, 10s or 2m")


def age(text: str) -> float:
    """Convert `90s`, `30m`, `6h` or `2d` to seconds."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)([smhd])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError("must be a time such as 90s, 30m, 6h or 2d")
    return float(match[1]) * AGE_UNITS_S[match[2]]


def server_url(text: str) -> str:
    """Convert the URL of a server.

    A text with an @ may contain a password, so no message repeats any of it.
    """
    wrong = _wrong_url(text)
    if wrong is None:
        return text.rstrip("/?#")
    if "@" in text:
        rule = "must have no user name or password; an API key is given as GATEHOUSE_KEY"
        raise UnrepeatableValue(rule)
    rule, nearest = wrong
    if nearest and _wrong_url(nearest) is None:
        raise argparse.ArgumentTypeError(f"{rule}; did you mean {nearest}?")
    raise argparse.ArgumentTypeError(f"{rule}, as in http://127.0.0.1:8000")


def _wrong_url(text: str) -> tuple[str, str] | None:
    """Return the rule that a URL breaks, and what may have been meant; None if it is right.

    The parser of the standard library drops some characters without a word, so they come first.
    """
    if not text.isprintable() or " " in text:
        return "must have no spaces", "".join(text.split())
    try:
        url = urlsplit(text)
        host = (url.hostname or "").encode("idna").decode()
    except ValueError:
        return "must have a host name or an address; an IPv6 address is in brackets", ""
    if url.scheme not in ("http", "https") or not url.netloc:
        rest = url.path if url.scheme in ("http", "https") else text.rpartition("://")[2]
        return "must begin with http:// or https://", f"http://{rest.lstrip('/')}"
    if "@" in url.netloc:
        return "must have no user name or password", ""
    if not host:
        return "must have a host name or an address", ""
    if not text.isascii():
        return "must be ASCII", text.replace(url.hostname or "", host)
    try:
        has_port = url.port != 0
    except ValueError:
        has_port = False
    if not has_port:
        bracketed = f"[{host}]" if ":" in host else host
        return "the port must be a number from 1 to 65535", f"{url.scheme}://{bracketed}:8000"
    if url.query or url.fragment:
        return "must have no query and no fragment", url._replace(query="", fragment="").geturl()
    return None


def pairs(text: str) -> dict[str, str]:
    """Convert `click=platt,dwell=scale`."""
    values: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, value = pair.strip().partition("=")
        if not (name and equals and value) or name in values:
            raise argparse.ArgumentTypeError("must be NAME=VALUE,NAME=VALUE, each name once")
        values[name] = value
    return values


def numbers_by_name(text: str) -> dict[str, float]:
    """Convert `click=1,like=4`."""
    return {name: positive(number) for name, number in pairs(text).items()}
