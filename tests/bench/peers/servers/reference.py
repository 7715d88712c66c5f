"""The reference model as every peer runs it: `MODEL`, a TorchScript file, on one thread.

The scripts of this folder run in the environments of the peers and import nothing else of this
project. `FORM` is how requests and responses are written: `binary`, bare little-endian float32, or
`json`.
"""

import os
from collections.abc import Sequence

import numpy as np
import torch

COLUMNS = 100
TASKS = 3
FORM = os.environ.get("FORM", "binary")
PORT = int(os.environ.get("PORT", "8000"))
WORKERS = int(os.environ.get("WORKERS", "2"))
BATCH = int(os.environ.get("BATCH", "32"))
WAIT_MS = float(os.environ.get("WAIT_MS", "2"))


class Reference:
    """The model; each process that computes has one."""

    def __init__(self) -> None:
        """Load it."""
        torch.set_num_threads(1)
        self._module = torch.jit.load(os.environ["MODEL"])

    def score(self, requests: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the scores `[rows, TASKS]` of each request, float32 `[rows, COLUMNS]`."""
        rows = [len(request) for request in requests]
        x = torch.from_numpy(np.concatenate(requests) if len(requests) > 1 else requests[0])
        row_to_request = torch.repeat_interleave(torch.tensor(rows))
        with torch.inference_mode():
            scores = torch.sigmoid(self._module({}, {"x": x}, row_to_request))
        return [part.numpy() for part in scores.split(rows)]


def rows_of(body: bytes) -> np.ndarray:
    """Return the rows in a binary body; they can be written, as torch expects."""
    return np.frombuffer(bytearray(body), np.float32).reshape(-1, COLUMNS)
