"""Rank candidates with tritonclient, using the Open Inference Protocol with binary tensors.

Needs tritonclient: `pip install 'tritonclient[http]'`.

python score_v2.py URL MODEL REQUEST.json [BUDGET_MS]

REQUEST.json is a request of the native API; this program converts its features to tensors. Budget,
deadline and retries work as in score.py, but the pause after 429 and 503 is always a second and up
to a quarter more, because tritonclient does not return the Retry-After header.
"""

import json
import os
import random
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.http as triton
from geventhttpclient.response import HTTPConnectionClosed

BUSY = ("429", "503")
BAD_GATEWAY = "502"
FAILED = "500"
LOST = (ConnectionError, HTTPConnectionClosed)  # refused, reset, or closed without a response
DTYPES = {"FP32": np.float32, "INT64": np.int64, "BYTES": np.object_}
PAUSE_S = 1.0
BACKOFF_S = 0.05  # doubled for each further retry
MOST_RETRIES = 3


class RetryBudget:
    """Limits the retries of a process: each call adds a tenth of a token, each retry takes one."""

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


def tensors(metadata: dict[str, Any], request: dict[str, Any]) -> list[triton.InferInput]:
    """Return one input per feature: `[1, d]` for the user, `[n, d]` for candidates."""
    inputs: list[triton.InferInput] = []
    for feature in metadata["inputs"]:
        name, datatype = feature["name"], feature["datatype"]
        if name in request["user"]:
            values = [request["user"][name]]
        elif name in request["candidates"]:
            values = request["candidates"][name]
        else:
            continue  # the server uses the default
        array: npt.NDArray[Any] = np.array(values, DTYPES[datatype]).reshape(len(values), -1)
        inputs.append(triton.InferInput(name, array.shape, datatype))
        inputs[-1].set_data_from_numpy(array)  # binary
    return inputs


def rank_scores(
    client: triton.InferenceServerClient, model: str, request: dict[str, Any], budget_s: float
) -> list[float]:
    """Return the rank score of each candidate.

    Raises:
        triton.InferenceServerException: the response is an error.
        OSError, HTTPConnectionClosed: there was no response.
    """
    end = time.monotonic() + budget_s
    inputs = tensors(client.get_model_metadata(model), request)
    outputs = [triton.InferRequestedOutput("rank_score")]
    headers = {"x-request-id": uuid.uuid4().hex}  # the same for all attempts
    if key := os.environ.get("GATEHOUSE_KEY"):
        headers["authorization"] = f"Bearer {key}"
    RETRIES.add_call()
    made = 0
    while True:
        left_ms = max(int((end - time.monotonic()) * 1000), 1)
        headers["x-request-timeout-ms"] = str(left_ms)
        try:
            answer = client.infer(model, inputs, outputs=outputs, headers=headers)
        except (triton.InferenceServerException, *LOST) as error:
            pause_s = pause_after(error, made)
            if pause_s is None or pause_s >= end - time.monotonic() or made == MOST_RETRIES:
                raise
            if not RETRIES.take_retry():
                raise
            made += 1
            time.sleep(pause_s)
        else:
            scores: list[float] = answer.as_numpy("rank_score").reshape(-1).tolist()
            return scores


def pause_after(error: Exception, made: int) -> float | None:
    """Return how long to wait before the next attempt; None if there should be none."""
    status = BAD_GATEWAY
    if isinstance(error, triton.InferenceServerException):
        # Only a response without the service's JSON has details: it is of a proxy.
        is_own = error.debug_details() is None
        status = BAD_GATEWAY if error.status() == FAILED and not is_own else error.status()
    if status in BUSY:
        return PAUSE_S * random.uniform(1, 1.25)
    return BACKOFF_S * 2**made * random.uniform(0.5, 1) if status == BAD_GATEWAY else None


def main(url: str, model: str, path: str, budget_ms: str = "1000") -> int:
    budget_s = int(budget_ms) / 1000
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    address = url.removeprefix("http://")
    try:
        # Use one client for the whole life of a process: it reuses connections.
        with triton.InferenceServerClient(address, network_timeout=budget_s) as client:
            scores = rank_scores(client, model, request, budget_s)
    except triton.InferenceServerException as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, HTTPConnectionClosed) as error:
        print(f"no response: {type(error).__name__}", file=sys.stderr)
        return 1
    keys = request.get("candidate_keys", range(len(scores)))
    best_first = sorted(range(len(scores)), key=lambda i: -scores[i])  # ties by position
    print(json.dumps({"rank_score": scores, "ranking": [keys[i] for i in best_first]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
