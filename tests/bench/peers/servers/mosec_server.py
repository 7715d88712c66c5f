"""mosec: a Rust front and Python workers that batch requests."""

import json

import numpy as np
from mosec import Server, Worker
from reference import BATCH, FORM, WAIT_MS, WORKERS, Reference, rows_of


class Inference(Worker):
    """Scores a batch of requests."""

    def __init__(self) -> None:
        """Load the model."""
        self._reference = Reference()

    def deserialize(self, data: bytes) -> np.ndarray:
        """Return a request's rows."""
        if FORM == "binary":
            return rows_of(data)
        return np.array(json.loads(data)["x"], np.float32)

    def forward(self, data):
        """Return each request's scores; without batches, `data` is one request."""
        if isinstance(data, list):
            return self._reference.score(data)
        return self._reference.score([data])[0]

    def serialize(self, data: np.ndarray) -> bytes:
        """Return the scores' bytes."""
        return data.tobytes() if FORM == "binary" else json.dumps(data.tolist()).encode()


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Inference, num=WORKERS, max_batch_size=BATCH, max_wait_time=int(WAIT_MS), timeout=60
    )
    server.run()
