"""Damaged inference requests: `python -m tests.protocol.open_inference.fuzz [cases] [seed]`.

Valid requests, in JSON or binary, are damaged at random, once or several times, in their document,
their bytes or their headers. The answer must be scores or a client error, never a server error.
"""

import asyncio
import copy
import gzip
import io
import json
import math
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import orjson
from rich.console import Console
from starlette.types import ASGIApp

from app.artifacts.store import Store
from app.main import gatehouse
from app.server.in_process import post
from app.settings import Settings
from models.training import experiment, train
from tests import TINY_EXPERIMENT
from tests.protocol.open_inference.tensors import in_binary, in_json, inputs_of

PATH = "/v2/models/tiny/infer"
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 4, 2**31, 2**53, 2**63 - 1, 2**64 - 1, -(2**63)),
    *(
        0.5,
        -0.0,
        math.nan,
        math.inf,
        1e308,
        1e39,
        "",
        "x",
        "\x00",
        "é",
        "FP32",
        "INT64",
        "BYTES",
        "quality",
        "item_id",
    ),
    *([], {}, [[]], [1], [3, 2], [1, 1], [0, 2], [2**62, 4], {"name": "click"}, [None], ["a"]),
    *({"binary_data_size": 8}, {"binary_data": True}, {"shared_memory_region": "r"}, [[1, 2]] * 3),
)
MEMBERS = ("id", "parameters", "inputs", "outputs", "name", "shape", "datatype", "data")
SETTINGS = ("priority", "timeout", "policy", "weights.click", "sequence_id", "binary_data_output")


class Damage:
    """Damages requests, the same ones for the same seed."""

    def __init__(self, valid: list[tuple[Any, bytes]], seed: int) -> None:
        """Take valid requests: each a document and the binary data that follows it."""
        self._valid = valid
        self._random = random.Random(seed)

    def request(self) -> tuple[bytes, dict[str, str]]:
        """Return a damaged request: its body and its headers."""
        draw = self._random
        document, binary = copy.deepcopy(draw.choice(self._valid))
        for _ in range(draw.choice((0, 1, 1, 1, 2, 5))):
            document = self._document(document)
        if draw.random() < 0.3:
            binary = self._bytes(binary)
        head = json.dumps(document).encode()  # writes NaN and integers of any size
        body, headers = head + binary, {"content-type": "application/json"}
        if binary or draw.random() < 0.2:
            headers["inference-header-content-length"] = str(len(head))
        if draw.random() < 0.2:
            body = self._bytes(body)
        if draw.random() < 0.1:
            length = draw.choice((0, 1, len(body) - 1, len(body), len(body) + 1, 10**18, "-1", "x"))
            headers["inference-header-content-length"] = str(length)
        if draw.random() < 0.05:
            squeezed = gzip.compress(body)
            body = squeezed if draw.random() < 0.5 else self._bytes(squeezed)
            headers["content-encoding"] = draw.choice(("gzip", "deflate", "br"))
        return body, headers

    def _document(self, document: Any) -> Any:
        """Damage one place of a document."""
        draw = self._random
        place = document
        while isinstance(place, dict | list) and place and draw.random() < 0.8:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            inside = place[key]
            if not (isinstance(inside, dict | list) and inside and draw.random() < 0.7):
                self._put(place, key)
                return document
            place = inside
        if isinstance(place, dict):
            place[draw.choice(MEMBERS + SETTINGS)] = copy.deepcopy(draw.choice(JUNK))
        elif isinstance(place, list):
            place.append(copy.deepcopy(draw.choice(JUNK)))
        return document

    def _put(self, place: Any, key: Any) -> None:
        draw = self._random
        match draw.randrange(4):
            case 0:
                del place[key]
            case 1 if isinstance(place[key], int):
                place[key] += draw.choice((-1, 1, 4, -4))
            case 2 if isinstance(place, list):
                place.append(copy.deepcopy(place[key]))
            case _:
                place[key] = copy.deepcopy(draw.choice(JUNK))

    def _bytes(self, content: bytes) -> bytes:
        draw = self._random
        at = draw.randrange(len(content) + 1)
        some = draw.randbytes(draw.choice((1, 1, 4, 16)))
        match draw.randrange(3):
            case 0:
                return content[:at]
            case 1:
                return content[:at] + some + content[at:]
            case _:
                return content[:at] + some + content[at + len(some) :]


async def requests_of(client: httpx.AsyncClient) -> list[tuple[Any, bytes]]:
    """Return valid requests to `tiny`: a document, and the binary data that follows it."""
    card = (await client.get("/v1/models/tiny")).json()
    inputs = inputs_of(card["inputs"], card["example_request"])
    parameters = {"priority": 1, "timeout": 5_000_000, "weights.click": 0.5}
    outputs = [{"name": "click", "parameters": {"binary_data": True}}, {"name": "rank_score"}]
    more = {"id": "x", "parameters": parameters, "outputs": outputs}
    valid: list[tuple[Any, bytes]] = [
        (in_json(inputs), b""),
        (in_json(inputs, **more), b""),
        ({"inputs": [tensor.as_json(nested=True) for tensor in inputs]}, b""),
    ]
    for members in ({}, more):
        body, headers = in_binary(inputs, **members)
        length = int(headers["inference-header-content-length"])
        valid.append((orjson.loads(body[:length]), body[length:]))
    return valid


async def fuzz(app: ASGIApp, damage: Damage, cases: int) -> Counter[int]:
    """Send `cases` damaged requests; return the number of answers by status."""
    statuses: Counter[int] = Counter()
    for case in range(cases):
        body, headers = damage.request()
        status, content = await post(app, PATH, body, headers)
        statuses[status] += 1
        assert status < 500 or status == 504, (case, status, content, headers, body)
        if status != 200:
            document = orjson.loads(content)
            assert list(document) == ["error"], (case, content)
            assert document["error"]
    return statuses


async def main(cases: int = 100_000, seed: int = 0) -> None:
    """Train the tiny model and fuzz a service of it."""
    with tempfile.TemporaryDirectory() as folder:
        console = Console(file=io.StringIO())
        read = experiment.read(TINY_EXPERIMENT)
        train.run(read, Store(Path(folder)), quiet=True, console=console)
        async with gatehouse(Settings(store=Path(folder), lanes=1)) as parts:
            await parts.deployment.refresh()
            transport = httpx.ASGITransport(parts.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                damage = Damage(await requests_of(client), seed)
            statuses = await fuzz(parts.app, damage, cases)
    print(f"{cases} cases:", dict(sorted(statuses.items())))


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
