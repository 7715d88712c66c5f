"""Generate invalid requests: valid documents, damaged as trees and as bytes.

`python -m tests.support.json_fuzz --store STORE --cases 200000` sends them to the complete service
without a socket; `test_json_fuzz.py` sends a few.
"""

import argparse
import asyncio
import copy
import gzip
import json
import math
import random
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from app.api.problems import ERRORS
from app.main import gatehouse
from app.settings import Settings

SECRET = "a-value-that-no-response-may-repeat"
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e39, -1e39, 5e-324, math.nan, math.inf, -math.inf),
    *(2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**30),
    *("", SECRET, "\x00", "é", "\U0001f600", "\ud800", "[{", '"', "\\", "~/", "1", "NaN"),
    *(
        [],
        {},
        [[]],
        [{}],
        [1],
        [0.5, 0.5],
        [[0.5, 0.5]],
        [[[0.5, 0.5], []]],
        {"": 1},
        {"a": SECRET},
    ),
)
TOKENS = (
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\\u", b"\\ud800", b"-", b"+", b".", b"e"),
    *(b"0", b"00", b"1e400", b"1e-400", b"NaN", b"-Infinity", b"null", b"true", b"nul", b"\x00"),
    *(
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc3\x28",
        b"\xef\xbb\xbf",
        b"\n",
        b" ",
        b"/*",
        b"'",
        b"[" * 1100,
    ),
    *(b"9" * 400, b'"candidates":[', b'"a":1,', b"\xf0\x9f\x98\x80", b"\x1f", b"\x7f", b"[],[],"),
)


def valid(rng: random.Random) -> dict[str, Any]:
    """Return a valid request for the tiny model, with candidates as columns or as rows."""
    rows = rng.choice((0, 1, 2, 3, 3, 5, 9)) if rng.random() < 0.95 else rng.randint(200, 1000)
    columns: dict[str, list[Any]] = {
        "item_id": [rng.randint(-1, 60) for _ in range(rows)],
        "category": [rng.randint(0, 6) for _ in range(rows)],
        "quality": [[rng.uniform(-3, 3), round(rng.random(), 3)] for _ in range(rows)],
    }
    objects = [{name: values[row] for name, values in columns.items()} for row in range(rows)]
    document: dict[str, Any] = {
        "user": {"user_id": rng.randint(0, 70), "age_bucket": 3, "recent_items": [4, 7]},
        "candidates": rng.choice((columns, columns, objects)),
    }
    document["user"]["activity"] = [rng.random() for _ in range(4)]
    if rng.random() < 0.5:
        document["candidate_keys"] = [rng.choice((f"v{row}", row)) for row in range(rows)]
    if rng.random() < 0.5:
        document["ranking"] = {"top_k": rng.randint(1, 5), "weights": {"click": 0.5}}
    return document


def damage_tree(rng: random.Random, document: Any) -> Any:
    """Change one value or key of a document. The result may have any shape."""
    places = list(_places(document))
    if not places:
        return rng.choice(ODD)
    where, key = rng.choice(places)
    odd = copy.deepcopy(rng.choice(ODD))
    match rng.randrange(8):
        case 0 | 1 | 2:
            where[key] = odd
        case 3:
            del where[key]
        case 4 if isinstance(where, list):
            where.insert(key, odd)
        case 4:
            where[rng.choice(("", "item_id", "user_id", "x" * 300, "~/", "\ud800", "[{"))] = odd
        case 5:
            where[key] = [where[key]]
        case 6:
            where[key] = [where[key]] * rng.choice((2, 3, 30))
        case 7:
            where[key] = _nested(rng.choice((2, 40, 200)), where[key])
    return document


def damage_bytes(rng: random.Random, body: bytes) -> bytes:
    """Change the text of a document at one position."""
    start = rng.randint(0, len(body))
    end = min(len(body), start + rng.choice((0, 1, 1, 2, 5, 40)))
    match rng.randrange(5):
        case 0:
            return body[:start]
        case 1:
            return body[:start] + body[end:]
        case 2:
            return body[:end] + body[start:]
        case 3:
            return body[:start] + rng.choice(TOKENS) + body[end:]
        case _:
            return body[:start] + rng.randbytes(1) + body[start + 1 :]


@dataclass(frozen=True)
class Sent:
    """A request to send."""

    body: bytes
    headers: list[tuple[bytes, bytes]]
    parts: int


def cases(seed: int) -> Iterator[Sent]:
    """Yield requests endlessly, the same ones for the same seed."""
    rng = random.Random(seed)
    while True:
        document: Any = valid(rng)
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            document = damage_tree(rng, document)
        body = _text(rng, document)
        for _ in range(rng.choice((0, 0, 0, 1, 2, 5))):
            body = damage_bytes(rng, body)
        headers = [(b"content-type", b"application/json")]
        if rng.random() < 0.1:
            coding = rng.choice((b"gzip", b"deflate"))
            body = gzip.compress(body, 1, mtime=0) if coding == b"gzip" else zlib.compress(body, 1)
            if rng.random() < 0.5:
                body = damage_bytes(rng, body)
            headers.append((b"content-encoding", coding))
        if rng.random() < 0.1:
            headers.append((b"accept-encoding", b"gzip"))
        yield Sent(body, headers, rng.choice((1, 1, 1, 2, 7)))


async def status_of(app: ASGIApp, sent: Sent) -> int:
    """Send a request, check the response, and return its status."""
    messages = await _exchange(app, sent)
    start, answer = messages[0], b"".join(message.get("body", b"") for message in messages[1:])
    headers = dict(start["headers"])
    assert int(headers[b"content-length"]) == len(answer)
    if headers.get(b"content-encoding") == b"gzip":
        answer = gzip.decompress(answer)
    status: int = start["status"]
    document = json.loads(answer)
    if status == 200:
        rows = {len(scores) for scores in document["scores"].values()}
        assert rows == {len(document["rank_score"])}
        assert all(math.isfinite(number) for number in document["rank_score"])
        return status
    assert 400 <= status < 500, (status, document)
    assert headers[b"content-type"] == b"application/problem+json"
    error = ERRORS[document["type"].removeprefix("/problems/")]
    assert status == error.status == document["status"]
    assert SECRET.encode() not in answer
    assert len(answer) < 20_000
    return status


async def _exchange(app: ASGIApp, sent: Sent) -> list[Message]:
    size = math.ceil(len(sent.body) / sent.parts) or 1
    parts = [sent.body[i : i + size] for i in range(0, len(sent.body), size)] or [b""]
    incoming = [
        {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
        for i, part in enumerate(parts)
    ]
    outgoing: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        outgoing.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/models/tiny/score",
        "headers": sent.headers,
    }
    await app(scope, receive, send)
    return outgoing


def _text(rng: random.Random, document: Any) -> bytes:
    separators = rng.choice(((",", ":"), (", ", ": ")))
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5, separators=separators)
    return text.encode(errors="surrogatepass")


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    todo = [document]
    while todo:
        node = todo.pop()
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            for key in list(keys)[:50]:
                yield node, key
                todo.append(node[key])


def _nested(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = [value]
    return value


async def _run(store: Path, count: int, seed: int) -> None:
    settings = Settings(store=store, lanes=1, max_body_bytes=1 << 20, request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.deployment.refresh()
        began = time.monotonic()
        statuses: Counter[int] = Counter()
        for i, sent in enumerate(cases(seed)):
            if i == count:
                break
            try:
                statuses[await status_of(parts.app, sent)] += 1
            except BaseException:
                print(f"case {i} of seed {seed}: {sent}")
                raise
    seconds = time.monotonic() - began
    print(f"{count} cases in {seconds:.0f} s: {dict(sorted(statuses.items()))}, no failure")


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--store", type=Path, required=True, help="store with the model tiny")
    flags.add_argument("--cases", type=int, default=200_000)
    flags.add_argument("--seed", type=int, default=1)
    options = flags.parse_args()
    asyncio.run(_run(options.store, options.cases, options.seed))
