"""mosec with the model of `tests.bench.http`: raw float32 rows in, float32 scores out.

    MODEL=store/reference/1/model.ts python -P tests/bench/mosec_worker.py --port 8000

`tests.bench.hot_path --mosec PYTHON` starts it, with the Python of an environment that has mosec,
numpy and torch. It imports nothing of this project. Two workers, batches of up to 32 requests, and
2 ms for a batch to fill, are the best of what was tried on two cores.
"""

import os

import numpy as np
import torch
from mosec import Server, Worker  # type: ignore[import-not-found]

COLUMNS = 100


class Inference(Worker):  # type: ignore[misc]
    """Scores a batch of requests, each the float32 bytes of `[rows, COLUMNS]`."""

    def __init__(self) -> None:
        """Load the model; each worker is a process with one thread for operators."""
        torch.set_num_threads(1)
        self._module = torch.jit.load(os.environ["MODEL"])

    def deserialize(self, data: bytes) -> torch.Tensor:
        """Return a request's rows, `[rows, COLUMNS]` float32."""
        return torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, COLUMNS).copy())

    def forward(self, data: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the scores of each request, `[rows, K]` float32."""
        rows = [len(each) for each in data]
        row_to_request = torch.repeat_interleave(torch.tensor(rows))
        with torch.inference_mode():
            raw = self._module({}, {"x": torch.cat(data)}, row_to_request)
            return list(torch.sigmoid(raw).split(rows))

    def serialize(self, data: torch.Tensor) -> bytes:
        """Return the scores' bytes."""
        scores: bytes = data.numpy().tobytes()
        return scores


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=2, max_batch_size=32, max_wait_time=2)
    server.run()
