"""Ray Serve: a proxy, and replicas that batch with `@serve.batch`."""

import json
import signal

import numpy as np
import ray
from ray import serve
from reference import BATCH, FORM, PORT, WAIT_MS, WORKERS, Reference, rows_of
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=128, ray_actor_options={"num_cpus": 0})
class Ranking:
    """Scores batches of requests."""

    def __init__(self) -> None:
        """Load the model."""
        self._reference = Reference()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_MS / 1e3)
    async def score(self, requests: list[np.ndarray]) -> list[np.ndarray]:
        """Return each request's scores."""
        return self._reference.score(requests)

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        body = await request.body()
        if FORM == "binary":
            scores = await self.score(rows_of(body))
            return Response(scores.tobytes(), media_type="application/octet-stream")
        scores = await self.score(np.array(json.loads(body)["x"], np.float32))
        return Response(json.dumps(scores.tolist()), media_type="application/json")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(
        http_options={"host": "127.0.0.1", "port": PORT},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    serve.run(Ranking.bind())
    signal.pause()
