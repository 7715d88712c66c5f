"""Content codings: what was compressed comes back, and nothing bad gets far."""

import gzip
import random
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from app.errors import MalformedBody, Overloaded, PayloadTooLarge
from app.scoring.budget import ByteBudget, Share
from app.scoring.content_coding import WORTH_BYTES, accepts_gzip, encoded, inflated
from app.telemetry.metrics import Metrics

MIB = 1 << 20
CODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
}


async def inflate(body: bytes, coding: bytes = b"gzip", *, max_bytes: int = 8 * MIB) -> bytes:
    with Share(ByteBudget(64 * MIB, Metrics())) as share:
        return await inflated(body, coding, share, max_bytes=max_bytes)


NOISE = random.Random(7).randbytes(3 * MIB)


@pytest.mark.parametrize("coding", CODERS)
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3 * MIB])
@pytest.mark.parametrize("kind", ["noise", "spaces"])
async def test_what_was_compressed_comes_back(coding, size, kind):
    content = NOISE[:size] if kind == "noise" else b" " * size
    assert await inflate(CODERS[coding](content), coding) == content


@pytest.mark.parametrize("size", [0, 100, 65_536, MIB])
async def test_the_limit_is_that_of_the_content(size):
    body = gzip.compress(b" " * (size + 1))
    assert len(await inflate(body, max_bytes=size + 1)) == size + 1
    with pytest.raises(PayloadTooLarge, match=f"decompressed, is larger than {size} bytes"):
        await inflate(body, max_bytes=size)


async def test_a_bomb_is_let_out_no_further_than_the_limit():
    budget = ByteBudget(64 * MIB, Metrics())
    with Share(budget) as share:
        with pytest.raises(PayloadTooLarge):
            await inflated(gzip.compress(bytes(32 * MIB)), b"gzip", share, max_bytes=2 * MIB)
        assert budget.held <= 3 * MIB


async def test_what_a_body_becomes_is_counted():
    budget = ByteBudget(MIB, Metrics())
    with Share(budget) as share, pytest.raises(Overloaded):
        await inflated(gzip.compress(bytes(3 * MIB)), b"gzip", share, max_bytes=8 * MIB)
    assert budget.held == 0


# mtime=0, so that every worker gives a test the same name.
SHORT = gzip.compress(b"[1,2,3]", mtime=0)
LONG = gzip.compress(NOISE[:200_000], mtime=0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        SHORT[:-1],
        SHORT[:5],
        LONG[:100_000],
        LONG[:-1],
        SHORT + b"\n",
        SHORT + SHORT,
        LONG + b"\x00",
        SHORT + NOISE[: 2 * MIB],
        gzip.compress(NOISE, mtime=0)[: 2 * MIB],
        SHORT[:-5] + b"\x00" * 5,
        zlib.compress(b"[1]"),
    ],
    ids=lambda body: str(body[:12]),
)
async def test_what_is_not_gzip_is_malformed(body):
    with pytest.raises(MalformedBody, match="gzip"):
        await inflate(body)


@given(st.binary(max_size=60), st.integers(0, 30), st.integers(0, 255))
async def test_any_damage_is_malformed_or_harmless(content, place, value):
    body = bytearray(gzip.compress(content))
    body[place % len(body)] = value
    try:
        assert await inflate(bytes(body)) == content
    except MalformedBody:
        return


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("identity;q=0, *;q=0.1", True),
        ("br;q=1.0, gzip; q=0.2", True),
        ("", False),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("*, gzip;q=0", False),
        ("*;q=0", False),
        ("gzip;q=0.5, identity", False),
        ("gzip;q=nan", False),
        ("gzip;q=2", False),
        ("gzip;q=", False),
        ("gzip;q", False),
        ("gzipped", False),
    ],
)
def test_gzip_is_for_those_who_take_it(value, taken):
    assert accepts_gzip([(b"accept-encoding", value.encode())]) is taken


def test_who_names_no_coding_gets_none():
    assert not accepts_gzip([(b"accept", b"gzip")])


def test_several_headers_are_one_list():
    headers = [(b"accept-encoding", b"br"), (b"accept-encoding", b"gzip")]
    assert accepts_gzip(headers)


GZIP = [(b"accept-encoding", b"gzip")]


async def test_a_short_answer_stays_as_it_is():
    content = b" " * (WORTH_BYTES - 1)
    assert await encoded(content, GZIP) == (content, ())


@pytest.mark.parametrize("size", [WORTH_BYTES, MIB])
async def test_a_long_answer_says_that_it_varies_and_is_always_the_same_bytes(size):
    content = NOISE[: size // 2] + b" " * (size // 2)
    plain, headers = await encoded(content, [])
    assert plain == content
    assert list(headers) == [(b"vary", b"accept-encoding")]
    first, headers = await encoded(content, GZIP)
    assert gzip.decompress(first) == content
    assert list(headers) == [(b"vary", b"accept-encoding"), (b"content-encoding", b"gzip")]
    assert (await encoded(content, GZIP))[0] == first
