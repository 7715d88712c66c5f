"""Rank candidates with httpx, in threads or in asyncio.

python score.py URL MODEL REQUEST.json [BUDGET_MS] [--async]

The budget covers everything: connecting, tries and pauses. What is left of it goes along as the
deadline, so that the server never works for a caller that is gone. Where the server is busy, 429 or
503, it says in Retry-After when to come again; if that is within the budget, it is done, a little
later by chance, lest all callers come again at once. A call changes nothing: it may be repeated.
"""

import asyncio
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx

BUSY = (429, 503)


class Patience:
    """What is left of a budget."""

    def __init__(self, budget_s: float) -> None:
        self._end = time.monotonic() + budget_s

    def left_s(self) -> float:
        return max(self._end - time.monotonic(), 0.001)

    def call(self) -> dict[str, Any]:
        """Arguments of one call: the deadline, told to the server and kept here."""
        left_s = self.left_s()
        deadline = {"x-request-timeout-ms": str(max(int(left_s * 1000), 1))}
        return {"headers": deadline, "timeout": left_s}

    def pause_s(self, answer: httpx.Response) -> float | None:
        """How long to wait before the next try; None if there is none to come."""
        if answer.status_code not in BUSY:
            return None
        stated = answer.headers.get("retry-after", "")
        pause_s = (int(stated) if stated.isdecimal() else 1) * random.uniform(1, 1.25)
        return pause_s if pause_s < self.left_s() else None


def score(client: httpx.Client, model: str, request: bytes, budget_s: float) -> httpx.Response:
    """Return the server's last word."""
    patience = Patience(budget_s)
    while True:
        answer = client.post(f"/v1/models/{model}/score", content=request, **patience.call())
        pause_s = patience.pause_s(answer)
        if pause_s is None:
            return answer
        time.sleep(pause_s)


async def score_async(
    client: httpx.AsyncClient, model: str, request: bytes, budget_s: float
) -> httpx.Response:
    """Return the server's last word."""
    patience = Patience(budget_s)
    while True:
        answer = await client.post(f"/v1/models/{model}/score", content=request, **patience.call())
        pause_s = patience.pause_s(answer)
        if pause_s is None:
            return answer
        await asyncio.sleep(pause_s)


async def _in_asyncio(told: dict[str, Any], call: tuple[str, bytes, float]) -> httpx.Response:
    async with httpx.AsyncClient(**told) as client:
        return await score_async(client, *call)


def main(url: str, model: str, path: str, budget_ms: str = "1000", how: str = "") -> int:
    headers = {"content-type": "application/json"}
    if key := os.environ.get("GATEHOUSE_KEY"):
        headers["authorization"] = f"Bearer {key}"
    told: dict[str, Any] = {"base_url": url, "headers": headers}
    call = (model, Path(path).read_bytes(), int(budget_ms) / 1000)
    try:
        if how == "--async":
            answer = asyncio.run(_in_asyncio(told, call))
        else:
            with httpx.Client(
                **told
            ) as client:  # one for the life of a process: it keeps connections
                answer = score(client, *call)
    except httpx.TransportError as error:
        print(f"no answer: {type(error).__name__}", file=sys.stderr)
        return 1
    if answer.is_error:
        print(answer.status_code, answer.text, file=sys.stderr)
        return 1
    print(answer.text)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
