"""LitServe: FastAPI in front, batches in worker processes. Its requests are JSON."""

import litserve
import numpy as np
from reference import BATCH, PORT, WAIT_MS, WORKERS, Reference


class Ranking(litserve.LitAPI):
    """Scores batches of requests."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model."""
        self._reference = Reference()

    def decode_request(self, request):
        """Return a request's rows."""
        return np.array(request["x"], np.float32)

    def batch(self, inputs):
        """Keep requests apart: they have different numbers of rows."""
        return inputs

    def predict(self, x):
        """Return each request's scores; without batches, `x` is one request."""
        return self._reference.score(x) if isinstance(x, list) else self._reference.score([x])[0]

    def unbatch(self, output):
        """Return the scores one request after the other."""
        return output

    def encode_response(self, output):
        """Return the response's document."""
        return {"scores": output.tolist()}


if __name__ == "__main__":
    api = Ranking(max_batch_size=BATCH, batch_timeout=WAIT_MS / 1e3)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=WORKERS, timeout=60, track_requests=False
    )
    server.run(port=PORT, host="127.0.0.1", generate_client_file=False, log_level="error")
