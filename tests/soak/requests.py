"""The requests of the soak, and checks of their responses."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import orjson

from app.benchmarking.load import http
from tests.soak.model import NAME

Leaving = Literal["stays", "leaves in the body", "leaves while waiting"]

SCORE, INFER = f"/v1/models/{NAME}/score", f"/v2/models/{NAME}/infer"
MOST_ROWS = 2000
_BAD = (
    (400, b'{"user": {"u": 1}, "candidates": {"c": [1, 2'),
    (422, b'{"user": {"u": 1}, "candidates": {"c": [1, "two", null]}}'),
    (422, b'{"user": {}, "candidates": {"c": [1], "d": [2]}}'),
    (413, json.dumps({"user": {"u": 1}, "candidates": {"c": [1] * 5000}}).encode()),
)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and its expected responses.

    Attributes:
        content: head and body.
        user: value of the user feature; unique for each request.
        candidates: values of the candidate feature.
        statuses: allowed statuses of the response.
        leaving: whether and when the client disconnects.
        patience_s: how long the client waits before it disconnects.
    """

    content: bytes
    user: int
    candidates: range
    statuses: frozenset[int]
    leaving: Leaving = "stays"
    patience_s: float = 0.0

    @property
    def is_binary(self) -> bool:
        """Whether the request is in V2 binary format."""
        return self.content.startswith(f"POST {INFER}".encode())


def draw(number: int, rng: random.Random) -> Sent:
    """Draw a request: most are valid, some have a short deadline, are invalid or disconnect."""
    rows = int(MOST_ROWS ** rng.random())
    candidates = range(first := rng.randrange(1000), first + rows)
    fate = rng.random()
    if fate < 0.05:
        status, body = rng.choice(_BAD)
        headers = {"content-type": "application/json"}
        return Sent(http(SCORE, body, headers), number, candidates, frozenset((status,)))
    timeout_ms, statuses = 60_000, frozenset((200,))
    if fate < 0.15:
        timeout_ms, statuses = rng.choice((1, 2, 5, 10)), frozenset((200, 503, 504))
    make = _binary if rng.random() < 0.5 else _native
    content = make(number, candidates, {"x-request-timeout-ms": str(timeout_ms)})
    if fate > 0.95:
        return Sent(content, number, candidates, statuses, "leaves in the body")
    if fate > 0.90:
        wait_s = rng.random() * 0.010
        return Sent(content, number, candidates, statuses, "leaves while waiting", wait_s)
    return Sent(content, number, candidates, statuses)


def _native(user: int, candidates: range, headers: Mapping[str, str]) -> bytes:
    body = orjson.dumps({"user": {"u": user}, "candidates": {"c": list(candidates)}})
    return http(SCORE, body, {"content-type": "application/json", **headers})


def _binary(user: int, candidates: range, headers: Mapping[str, str]) -> bytes:
    columns = {"u": np.array([user], "<f4"), "c": np.array(candidates, "<f4")}
    tensors = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": [len(column), 1],
            "parameters": {"binary_data_size": column.nbytes},
        }
        for name, column in columns.items()
    ]
    head = orjson.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}})
    body = head + b"".join(column.tobytes() for column in columns.values())
    return http(
        INFER,
        body,
        {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(len(head)),
            **headers,
        },
    )


def fault(sent: Sent, status: int, headers: Mapping[str, str], body: bytes) -> str | None:
    """Return what is wrong with a response, or None."""
    if status not in sent.statuses:
        return f"status {status} instead of one of {sorted(sent.statuses)}: {body[:200]!r}"
    if status != 200:
        return (
            None
            if _is_complete_error(sent, status, headers, body)
            else f"incomplete error: {body[:200]!r}"
        )
    scores, version = _outputs(headers, body) if sent.is_binary else _scores(body)
    own = np.array(sent.candidates, np.float32)
    expected = {
        "sum": own + np.float32(sent.user),
        "own": own,
        "version": np.full_like(own, version),
    }
    for task, column in expected.items():
        if not np.array_equal(scores[task], column):
            return f"wrong {task} scores: user {sent.user}, {len(own)} rows, version {version}"
    return None


def _is_complete_error(sent: Sent, status: int, headers: Mapping[str, str], body: bytes) -> bool:
    document = orjson.loads(body)
    if status == 503 and "retry-after" not in headers:
        return False
    if sent.is_binary:
        return bool(document["error"])
    return bool(document["status"] == status and document["type"].startswith("/problems/"))


def _scores(body: bytes) -> tuple[dict[str, np.ndarray], int]:
    document = orjson.loads(body)
    scores = {name: np.array(column, np.float32) for name, column in document["scores"].items()}
    return scores, document["version"]


def _outputs(headers: Mapping[str, str], body: bytes) -> tuple[dict[str, np.ndarray], int]:
    offset = int(headers["inference-header-content-length"])
    document = orjson.loads(body[:offset])
    found = {}
    for output in document["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = np.frombuffer(body[offset : offset + size], "<f4")
        offset += size
    assert offset == len(body)
    return found, int(document["model_version"])
