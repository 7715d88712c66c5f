"""Compare ways to convert a request body to arrays: ``python -m tests.bench.json_path``.

All ways read the same body alternately. Each cell is the minimum time of all turns, and in brackets
the time of json.loads plus numpy.array divided by it: above 1, this way is faster. The first five
read only the matrix and validate nothing. The last three are those of the service, which reads and
validates the whole request: the way for small bodies, the way for large ones, and the one it
selects.
"""

import argparse
import gc
import json
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import orjson
import simdjson

from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.artifacts.manifest import Manifest
from app.protocol.features import encode
from app.protocol.json_body import count_containers, decode, decode_request, read_matrices
from app.protocol.validation import ValidationReport
from tests.support.builders import manifest

MOST = 4096
WIDE = manifest(
    inputs=(
        IdInput(name="user_id", side="user", vocabulary_size=1 << 20),
        IdInput(name="item_id", side="candidate", vocabulary_size=1 << 20),
        DenseInput(name="features", side="candidate", dim=100),
    )
)
FEED = manifest(
    inputs=(
        IdInput(name="user_id", side="user", vocabulary_size=1 << 20),
        IdListInput(name="recent_items", side="user", vocabulary_size=1 << 20, max_length=10),
        IdInput(name="item_id", side="candidate", vocabulary_size=1 << 20),
        IdInput(name="category", side="candidate", vocabulary_size=1 << 20),
        DenseInput(name="features", side="candidate", dim=2),
    )
)


@dataclass(frozen=True)
class Document:
    """A request: its name in the table, its model and its body."""

    name: str
    manifest: Manifest
    body: bytes


class _Columns(msgspec.Struct):
    features: list[list[float]]


class _Request(msgspec.Struct):
    candidates: _Columns


def documents() -> list[Document]:
    rng = np.random.default_rng(0)
    made = []
    for n in (1, 50, 500):
        columns = {"item_id": list(range(n)), "features": rng.normal(size=(n, 100))}
        made.append(_document(f"{n} × 100 numbers", WIDE, {"user_id": 7}, columns))
    small: dict[str, Any] = {
        "item_id": list(range(500)),
        "category": [i % 20 for i in range(500)],
        "features": rng.random((500, 2)),
    }
    user = {"user_id": 7, "recent_items": list(range(10))}
    return [*made, _document("demo feed, 500 candidates", FEED, user, small)]


def _document(
    name: str, model: Manifest, user: Mapping[str, object], columns: dict[str, Any]
) -> Document:
    content = {
        "user": user,
        "candidates": columns | {"features": columns["features"].astype(np.float32)},
        "candidate_keys": [f"v{i}" for i in range(len(columns["item_id"]))],
    }
    return Document(name, model, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


def ways(document: Document) -> dict[str, Callable[[], Any]]:
    """Return all ways to read a document. The first is the reference."""
    body, model = document.body, document.manifest
    typed = msgspec.json.Decoder(_Request)
    width = len(orjson.loads(body)["candidates"]["features"][0])
    pack = struct.Struct(f"{width}f").pack

    def packed() -> Any:
        rows = orjson.loads(body)["candidates"]["features"]
        return np.frombuffer(b"".join([pack(*row) for row in rows]), np.float32)

    def served(content: Any) -> Any:
        report = ValidationReport()
        request = encode(model, content["user"], content["candidates"], report, max_candidates=MOST)
        report.raise_any()
        return request

    def with_simdjson() -> Any:
        return read_matrices(body, frozenset(("features",)), count_containers(body, len(body)))

    assert with_simdjson() is not None
    return {
        "json, np.array": lambda: np.array(json.loads(body)["candidates"]["features"], np.float32),
        "orjson, np.array": lambda: np.array(
            orjson.loads(body)["candidates"]["features"], np.float32
        ),
        "msgspec, np.array": lambda: np.array(typed.decode(body).candidates.features, np.float32),
        "orjson, struct": packed,
        "simdjson, as_buffer": lambda: np.frombuffer(
            simdjson.Parser().parse(body)["candidates"]["features"].as_buffer(of_type="d")  # type: ignore[union-attr,index]
        ).astype(np.float32),
        "orjson, encode": lambda: served(decode(body)),
        "simdjson, encode": lambda: served(with_simdjson()),
        "as served": lambda: served(decode_request(body, model, max_candidates=MOST)),
    }


def seconds(way: Callable[[], Any], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        way()
    return (time.perf_counter() - began) / repeats


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--turns", type=int, default=51)
    turns = flags.parse_args().turns
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)  # as the server does
    columns = {document.name: document for document in documents()}
    cells: dict[str, list[str]] = {}
    for document in columns.values():
        options = ways(document)
        repeats = max(1, 200_000 // len(document.body))
        times: dict[str, list[float]] = {name: [] for name in options}
        for _ in range(turns):
            for name, way in options.items():
                times[name].append(seconds(way, repeats))
        least = {name: min(took) for name, took in times.items()}
        first, *_ = least.values()
        for name, least_s in least.items():
            cells.setdefault(name, []).append(f"{least_s * 1e6:,.0f} µs ({first / least_s:.1f}×)")
    print(f"| | {' | '.join(columns)} |")
    sizes = [f"{len(document.body) / 1e3:,.0f} kB" for document in columns.values()]
    print(f"| --- |{' --: |' * len(columns)}\n| body | {' | '.join(sizes)} |")
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
