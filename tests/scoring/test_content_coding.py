"""Content codings: bodies are decompressed within limits, responses are compressed."""

import asyncio
import gzip
import random
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from app.errors import MalformedBody, Overloaded, PayloadTooLarge
from app.scoring.body import BodyShare, ByteBudget
from app.scoring.content_coding import MIN_COMPRESSED_BYTES, accepts_gzip, compress, decompress
from app.telemetry.metrics import Metrics

MIB = 1 << 20
CODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
}


async def inflate(body: bytes, coding: bytes = b"gzip", *, max_bytes: int = 8 * MIB) -> bytes:
    with BodyShare(ByteBudget(64 * MIB, Metrics())) as share:
        return await decompress(body, coding, share.reserve, max_bytes=max_bytes)


NOISE = random.Random(7).randbytes(3 * MIB)


@pytest.mark.parametrize("coding", CODERS)
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3 * MIB])
@pytest.mark.parametrize("kind", ["noise", "spaces"])
async def test_compressed_body_is_decompressed(coding, size, kind):
    content = NOISE[:size] if kind == "noise" else b" " * size
    assert await inflate(CODERS[coding](content), coding) == content


@pytest.mark.parametrize("size", [0, 100, 65_536, MIB])
async def test_limit_is_that_of_the_decompressed_body(size):
    body = gzip.compress(b" " * (size + 1))
    assert len(await inflate(body, max_bytes=size + 1)) == size + 1
    with pytest.raises(PayloadTooLarge, match=f"decompressed body is larger than {size} bytes"):
        await inflate(body, max_bytes=size)


async def test_decompression_bomb_stops_at_the_limit():
    bomb = gzip.compress(bytes(32 * MIB))
    budget = ByteBudget(64 * MIB, Metrics())
    with BodyShare(budget) as share:
        with pytest.raises(PayloadTooLarge):
            await decompress(bomb, b"gzip", share.reserve, max_bytes=2 * MIB)
        assert budget.held <= 3 * MIB


async def test_decompressed_bytes_are_counted_in_the_budget():
    budget = ByteBudget(MIB, Metrics())
    with BodyShare(budget) as share, pytest.raises(Overloaded):
        await decompress(gzip.compress(bytes(3 * MIB)), b"gzip", share.reserve, max_bytes=8 * MIB)
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
        SHORT + SHORT[:-1],
        SHORT + SHORT + b"\n",
        SHORT + zlib.compress(b"[1]"),
        LONG + b"\x00",
        SHORT + NOISE[: 2 * MIB],
        gzip.compress(NOISE, mtime=0)[: 2 * MIB],
        SHORT[:-5] + b"\x00" * 5,
        zlib.compress(b"[1]"),
    ],
    ids=lambda body: str(body[:12]),
)
async def test_body_that_is_not_gzip_is_malformed(body):
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
    ("value", "accepted"),
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
def test_gzip_is_used_if_the_client_accepts_it(value, accepted):
    assert accepts_gzip(value.encode()) is accepted


def test_client_that_names_no_coding_gets_none():
    assert not accepts_gzip(None)


async def compressed(content: bytes, accept_encoding: bytes | None) -> tuple[bytes, bytes]:
    """Return the header lines and the content that `compress` gives."""
    done: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()
    compress(content, accept_encoding, lambda *result: done.set_result(result))
    return await done


async def test_short_response_is_not_compressed():
    content = b" " * (MIN_COMPRESSED_BYTES - 1)
    assert await compressed(content, b"gzip") == (b"", content)


@pytest.mark.parametrize("size", [MIN_COMPRESSED_BYTES, MIB])
async def test_long_response_varies_and_is_compressed_to_the_same_bytes_each_time(size):
    content = NOISE[: size // 2] + b" " * (size // 2)
    assert await compressed(content, None) == (b"vary: accept-encoding\r\n", content)
    head, first = await compressed(content, b"gzip")
    assert gzip.decompress(first) == content
    assert head == b"vary: accept-encoding\r\ncontent-encoding: gzip\r\n"
    assert await compressed(content, b"gzip") == (head, first)


@pytest.mark.parametrize(
    "sizes", [[7, 13], [0, 20], [20, 0], [65_536, 1], [1, 200_000], [MIB, MIB, 5]], ids=str
)
@pytest.mark.parametrize("kind", ["noise", "spaces"])
async def test_members_of_a_gzip_body_are_joined(sizes, kind):
    contents = [NOISE[:size] if kind == "noise" else b" " * size for size in sizes]
    body = b"".join(map(gzip.compress, contents))
    assert await inflate(body) == b"".join(contents)


async def test_limit_applies_to_all_gzip_members_together():
    member = gzip.compress(b" " * 1000)
    assert len(await inflate(member * 3, max_bytes=3000)) == 3000
    with pytest.raises(PayloadTooLarge):
        await inflate(member * 3, max_bytes=2999)


async def test_many_empty_members_end():
    assert await inflate(gzip.compress(b"") * 1000) == b""


@pytest.mark.parametrize("more", [b"\x00", zlib.compress(b"[1]")], ids=["byte", "stream"])
async def test_deflate_body_has_one_stream(more):
    with pytest.raises(MalformedBody, match="has data after its deflate stream"):
        await inflate(zlib.compress(b"[1,2]") + more, b"deflate")
