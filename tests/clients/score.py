"""Rank candidates with httpx, in threads or with asyncio. Needs httpx: `pip install httpx`.

python score.py URL MODEL REQUEST.json [BUDGET_MS] [--async]

The budget covers connecting, all attempts and the pauses between them. Each attempt sends the
remaining budget as its deadline, so that the server does no work for a client that has given up. If
the server is busy (429 or 503), the client retries after the seconds in Retry-After plus a random
delay, so that clients do not all return at the same moment. It retries only within the budget. A
scoring call changes nothing, so it is safe to repeat.
"""

import asyncio
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

try:
    import httpx
except ImportError:
    sys.exit("score.py needs httpx: pip install httpx")

BUSY = (429, 503)


class Budget:
    """A time budget (s) that starts when it is created."""

    def __init__(self, budget_s: float) -> None:
        self._end = time.monotonic() + budget_s

    def left_s(self) -> float:
        return max(self._end - time.monotonic(), 0.001)

    def call(self) -> dict[str, Any]:
        """Return arguments for one attempt: the deadline in a header, and the timeout."""
        left_s = self.left_s()
        deadline = {"x-request-timeout-ms": str(max(int(left_s * 1000), 1))}
        return {"headers": deadline, "timeout": left_s}

    def pause_s(self, response: httpx.Response) -> float | None:
        """Return how long to wait before the next attempt; None if there should be none."""
        if response.status_code not in BUSY:
            return None
        stated = response.headers.get("retry-after", "")
        pause_s = (int(stated) if stated.isdecimal() else 1) * random.uniform(1, 1.25)
        return pause_s if pause_s < self.left_s() else None


def score(client: httpx.Client, model: str, request: bytes, budget_s: float) -> httpx.Response:
    """Score, retry while the server is busy, and return the last response."""
    budget = Budget(budget_s)
    while True:
        response = client.post(f"/v1/models/{model}/score", content=request, **budget.call())
        pause_s = budget.pause_s(response)
        if pause_s is None:
            return response
        time.sleep(pause_s)


async def score_async(
    client: httpx.AsyncClient, model: str, request: bytes, budget_s: float
) -> httpx.Response:
    """Score, retry while the server is busy, and return the last response."""
    budget = Budget(budget_s)
    while True:
        response = await client.post(f"/v1/models/{model}/score", content=request, **budget.call())
        pause_s = budget.pause_s(response)
        if pause_s is None:
            return response
        await asyncio.sleep(pause_s)


async def _in_asyncio(options: dict[str, Any], call: tuple[str, bytes, float]) -> httpx.Response:
    async with httpx.AsyncClient(**options) as client:
        return await score_async(client, *call)


def main(url: str, model: str, path: str, budget_ms: str = "1000", how: str = "") -> int:
    headers = {"content-type": "application/json"}
    if key := os.environ.get("GATEHOUSE_KEY"):
        headers["authorization"] = f"Bearer {key}"
    options: dict[str, Any] = {"base_url": url, "headers": headers}
    call = (model, Path(path).read_bytes(), int(budget_ms) / 1000)
    try:
        if how == "--async":
            response = asyncio.run(_in_asyncio(options, call))
        else:
            # Use one client for the whole life of a process: it reuses connections.
            with httpx.Client(**options) as client:
                response = score(client, *call)
    except httpx.TransportError as error:
        print(f"no response: {type(error).__name__}", file=sys.stderr)
        return 1
    if response.is_error:
        print(response.status_code, response.text, file=sys.stderr)
        return 1
    print(response.text)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
