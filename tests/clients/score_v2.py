"""Rank candidates with tritonclient, using the Open Inference Protocol with binary tensors.

Needs tritonclient: `pip install 'tritonclient[http]'`.

python score_v2.py URL MODEL REQUEST.json [BUDGET_MS]

REQUEST.json is a request of the native API; this program converts its features to tensors. Budget,
deadline and retries work as in score.py, but with a fixed pause of one second, because tritonclient
does not return the Retry-After header.
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.http as triton

BUSY = ("429", "503")
DTYPES = {"FP32": np.float32, "INT64": np.int64, "BYTES": np.object_}
PAUSE_S = 1.0


def tensors(metadata: dict[str, Any], request: dict[str, Any]) -> list[triton.InferInput]:
    """Return one input per feature: `[1, d]` for the user, `[n, d]` for candidates."""
    inputs: list[triton.InferInput] = []
    for each in metadata["inputs"]:
        name, datatype = each["name"], each["datatype"]
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
    """Return the rank score of each candidate."""
    end = time.monotonic() + budget_s
    inputs = tensors(client.get_model_metadata(model), request)
    outputs = [triton.InferRequestedOutput("rank_score")]
    while True:
        left_ms = max(int((end - time.monotonic()) * 1000), 1)
        headers = {"x-request-timeout-ms": str(left_ms)}
        if key := os.environ.get("GATEHOUSE_KEY"):
            headers["authorization"] = f"Bearer {key}"
        try:
            answer = client.infer(model, inputs, outputs=outputs, headers=headers)
        except triton.InferenceServerException as error:
            pause_s = PAUSE_S * random.uniform(1, 1.25)
            if error.status() not in BUSY or pause_s >= end - time.monotonic():
                raise
            time.sleep(pause_s)
        else:
            scores: list[float] = answer.as_numpy("rank_score").reshape(-1).tolist()
            return scores


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
    except OSError as error:
        print(f"no response: {type(error).__name__}", file=sys.stderr)
        return 1
    keys = request.get("candidate_keys", range(len(scores)))
    best_first = sorted(range(len(scores)), key=lambda i: -scores[i])  # ties by position
    print(json.dumps({"rank_score": scores, "ranking": [keys[i] for i in best_first]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
