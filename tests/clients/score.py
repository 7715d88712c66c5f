"""Rank candidates with httpx, in threads or with asyncio. Needs httpx: `pip install httpx`.

python score.py URL MODEL REQUEST.json [BUDGET_MS] [--async]

The time budget covers connecting, all attempts and the pauses between them. Each attempt sends the
remaining time as its deadline, so that the server does no work for a client that has given up. A
scoring call changes nothing, so it is safe to repeat: after a failed connection, after 429, 502 and
503, and after a 500 that is not the service's own. At most three retries a call, and one for ten
calls in the long run (`RetryBudget`).
"""

import asyncio
import os
import random
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

try:
    import httpx
except ImportError:
    sys.exit("score.py needs httpx: pip install httpx")

RETRYABLE = (429, 502, 503)
LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
MOST_RETRIES = 3
CONNECT_S = 0.5  # a healthy server accepts a connection within milliseconds
BACKOFF_S = 0.05  # doubled for each further retry


class RetryBudget:
    """Limits the retries of a process, so that they do not make an overload worse.

    A token bucket, as in Finagle's RetryBudget: each call adds a tenth of a token, each retry takes
    one. When every call fails, the load grows by a tenth, and not four times.
    """

    def __init__(self, ratio: float = 0.1, reserve: float = 10) -> None:
        self._ratio, self._reserve = ratio, reserve
        self._tokens = reserve
        self._lock = threading.Lock()

    def add_call(self) -> None:
        with self._lock:
            self._tokens = min(self._tokens + self._ratio, self._reserve)

    def take_retry(self) -> bool:
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


RETRIES = RetryBudget()  # one for all calls of a process to a service


class Call:
    """One call: what each attempt sends, and whether another one follows."""

    def __init__(self, budget_s: float, retries: RetryBudget) -> None:
        self._end = time.monotonic() + budget_s
        self._id = uuid.uuid4().hex  # the same for all attempts: the servers' logs have it
        self._retries, self._made = retries, 0
        retries.add_call()

    def left_s(self) -> float:
        return max(self._end - time.monotonic(), 0.001)

    def attempt(self) -> dict[str, Any]:
        """Return arguments for one attempt: deadline and id in headers, and the timeouts."""
        left_s = self.left_s()
        return {
            "headers": {
                "x-request-timeout-ms": str(max(int(left_s * 1000), 1)),
                "x-request-id": self._id,
            },
            "timeout": httpx.Timeout(left_s, connect=min(left_s, CONNECT_S)),
        }

    def pause_s(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Return how long to wait before the next attempt; None if there should be none."""
        pause_s: float = BACKOFF_S * 2**self._made * random.uniform(0.5, 1)
        if isinstance(outcome, httpx.Response):
            if not _is_retryable(outcome):
                return None
            stated = outcome.headers.get("retry-after", "")
            if stated.isdecimal():  # random, so that clients do not all return at the same moment
                pause_s = max(int(stated) * random.uniform(1, 1.25), pause_s)
        elif not isinstance(outcome, LOST):
            return None
        if self._made == MOST_RETRIES or pause_s >= self.left_s() or not self._retries.take_retry():
            return None
        self._made += 1
        return pause_s


def score(
    client: httpx.Client,
    model: str,
    request: bytes,
    budget_s: float,
    retries: RetryBudget = RETRIES,
) -> httpx.Response:
    """Score, retry if that can help, and return the last response.

    Raises:
        httpx.TransportError: there was no response.
    """
    call = Call(budget_s, retries)
    while True:
        try:
            outcome: httpx.Response | httpx.TransportError = client.post(
                f"/v1/models/{model}/score", content=request, **call.attempt()
            )
        except httpx.TransportError as error:
            outcome = error
        pause_s = call.pause_s(outcome)
        if pause_s is None:
            return _result(outcome)
        time.sleep(pause_s)


async def score_async(
    client: httpx.AsyncClient,
    model: str,
    request: bytes,
    budget_s: float,
    retries: RetryBudget = RETRIES,
) -> httpx.Response:
    """Score, retry if that can help, and return the last response.

    Raises:
        httpx.TransportError: there was no response.
    """
    call = Call(budget_s, retries)
    while True:
        try:
            outcome: httpx.Response | httpx.TransportError = await client.post(
                f"/v1/models/{model}/score", content=request, **call.attempt()
            )
        except httpx.TransportError as error:
            outcome = error
        pause_s = call.pause_s(outcome)
        if pause_s is None:
            return _result(outcome)
        await asyncio.sleep(pause_s)


def _is_retryable(response: httpx.Response) -> bool:
    """Whether another attempt may succeed. The service's own 500 would be the same again."""
    is_own = response.headers.get("content-type") == "application/problem+json"
    return response.status_code in RETRYABLE or (response.status_code == 500 and not is_own)


def _result(outcome: httpx.Response | httpx.TransportError) -> httpx.Response:
    if isinstance(outcome, httpx.TransportError):
        raise outcome
    return outcome


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
