"""Content codings (RFC 9110, section 8.4): gzip and deflate in, gzip out.

What is large is worked on by a thread, in steps: zlib lets go of the interpreter meanwhile, and the
event loop goes on.
"""

import asyncio
import zlib
from collections.abc import Iterable

from app.errors import MalformedBody, PayloadTooLarge
from app.scoring.budget import Share

Headers = Iterable[tuple[bytes, bytes]]

INFLATABLE = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
"""The codings of requests that are read, and the window bits by which zlib knows them."""

WORTH_BYTES = 16 << 10
"""Shorter answers are not compressed: they fit TCP's first window of ten packets, so that even a
distant caller has them in one round trip, and 25 kB take 0.2 ms."""

_OFF_LOOP_BYTES = 64 << 10  # half a millisecond of work, and what a thread costs is a tenth of it
_STEP_BYTES = 1 << 20


async def inflated(body: bytes, coding: bytes, share: Share, *, max_bytes: int) -> bytes:
    """Undo a content coding.

    No more than `max_bytes` and one are ever made, in steps, so that a small body that claims to be
    huge costs little.

    Args:
        body: as it came.
        coding: one of `INFLATABLE`.
        share: grows with what is made.
        max_bytes: more than this is refused.

    Raises:
        MalformedBody: it is not so coded, it is cut short, or something follows it.
        PayloadTooLarge: it is larger than `max_bytes`.
        Overloaded: the share cannot grow so far.
    """
    inflater = zlib.decompressobj(INFLATABLE[coding])
    name = coding.decode()
    parts: list[bytes] = []
    size = taken = 0
    while not inflater.eof:
        most = min(_STEP_BYTES if parts else _OFF_LOOP_BYTES, max_bytes + 1 - size)
        rest = inflater.unconsumed_tail
        if not rest:  # in pieces, because zlib copies what it leaves
            rest = body[taken : taken + _STEP_BYTES]
            taken += len(rest)
        try:
            if parts:
                part = await asyncio.to_thread(inflater.decompress, rest, most)
            else:
                part = inflater.decompress(rest, most)
        except zlib.error:
            raise MalformedBody(f"the body is not {name}") from None
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise PayloadTooLarge(f"the body, decompressed, is larger than {max_bytes} bytes")
        share.cover(len(body) + size)
        if len(part) < most and taken == len(body) and not inflater.eof:
            raise MalformedBody(f"the body ends before its {name} stream does")
    if inflater.unused_data or taken < len(body):
        raise MalformedBody(f"something follows the body's {name} stream")
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def encoded(content: bytes, request_headers: Headers) -> tuple[bytes, Headers]:
    """Compress an answer if it is worth it and its caller takes it; return it and its headers."""
    if len(content) < WORTH_BYTES:
        return content, ()
    vary = (b"vary", b"accept-encoding")
    if not accepts_gzip(request_headers):
        return content, (vary,)
    if len(content) < _OFF_LOOP_BYTES:
        content = _gzip(content)
    else:
        content = await asyncio.to_thread(_gzip, content)
    return content, (vary, (b"content-encoding", b"gzip"))


def accepts_gzip(request_headers: Headers) -> bool:
    """Say whether a caller takes gzip at least as gladly as the answer as it is (RFC 9110, 12.5.3).

    A caller that names no coding has not asked for any, and gets none.
    """
    weights: dict[bytes, float] = {}
    for name, value in request_headers:
        if name == b"accept-encoding":
            for each in value.lower().split(b","):
                coding, _, parameter = each.partition(b";")
                weights[coding.strip()] = _weight(parameter)
    gzip = weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", 0.0)))
    return gzip > 0.0 and gzip >= weights.get(b"identity", 0.0)


def _weight(parameter: bytes) -> float:
    name, _, value = parameter.partition(b"=")
    if name.strip() != b"q":
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0  # also where it is NaN


def _gzip(content: bytes) -> bytes:
    """Compress at level 1: it takes a fifth of the time of level 6 for 5 to 10 % more bytes."""
    return zlib.compress(content, 1, 31)  # the header has no time: the same answer, the same bytes
