"""Measure how long small requests wait while other clients send bodies of 16 MB.

``python -m tests.bench.large_bodies --store STORE`` starts a server, sends it twenty large bodies
at once, and sends small requests until they are done. Each kind of body is expensive to parse for
its size, and none is a valid request.
"""

import argparse
import http.client
import json
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tests.support.server import Server, standalone_server

BODIES = 20
BODY_BYTES = 15_900_000
KINDS = {
    "lists": b"[],",
    "objects": b'{"a":1},',
    "numbers": b"0.12345678,",
    "NaN": b"NaN,",
    "one string": b"x",
}
FLAGS = ("--request-timeout-ms", "30000", "--body-timeout-ms", "30000")


def body_of(kind: str) -> bytes:
    unit = KINDS[kind]
    filler = unit * (BODY_BYTES // len(unit))
    if kind == "one string":
        filler = b'"' + filler + b'",'
    return b'{"user": {}, "candidates": {"item_id": [' + filler + b"1]}}"


def post(server: Server, body: bytes, statuses: Counter[int]) -> None:
    host = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=120)
    connection.request("POST", "/v1/score", body, {"content-type": "application/json"})
    statuses[connection.getresponse().status] += 1
    connection.close()


def waits_meanwhile(server: Server, small: bytes, body: bytes) -> tuple[list[float], Counter[int]]:
    """Return the time of each small request (s) and the statuses of the large ones."""
    waits: list[float] = []
    statuses: Counter[int] = Counter()
    large = [threading.Thread(target=post, args=(server, body, statuses)) for _ in range(BODIES)]
    for thread in large:
        thread.start()
    while any(thread.is_alive() for thread in large):
        began = time.perf_counter()
        post(server, small, Counter())
        waits.append(time.perf_counter() - began)
    return waits, statuses


def resident_bytes(server: Server, field: str) -> int:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise AssertionError(field)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--store", type=Path, required=True, help="store with one model")
    store = flags.parse_args().store
    print("| 20 bodies of 16 MB | answers | small requests: p50 | longest | most memory |")
    print("| --- | --- | --: | --: | --: |")
    for kind in KINDS:
        with (
            tempfile.TemporaryDirectory() as folder,
            standalone_server(store, Path(folder, "log"), *FLAGS) as server,
        ):
            host = server.url.removeprefix("http://")
            connection = http.client.HTTPConnection(host)
            connection.request("GET", "/v1/models")
            (model,) = json.load(connection.getresponse())["models"]
            connection.request("GET", f"/v1/models/{model['name']}")
            small = json.dumps(json.load(connection.getresponse())["example_request"]).encode()
            before = resident_bytes(server, "VmRSS")
            waits, statuses = waits_meanwhile(server, small, body_of(kind))
            more = (resident_bytes(server, "VmHWM") - before) / 1e6
            answers = ", ".join(f"{count} × {status}" for status, count in statuses.items())
            times = f"{np.median(waits) * 1e3:.0f} ms | {max(waits) * 1e3:.0f} ms"
            print(f"| {kind} | {answers} | {times} | + {more:.0f} MB |")


if __name__ == "__main__":
    main()
