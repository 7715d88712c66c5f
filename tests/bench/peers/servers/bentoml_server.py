"""BentoML: a service with an adaptive batcher. Its requests are JSON."""

import bentoml
import numpy as np
from reference import BATCH, WAIT_MS, WORKERS, Reference


@bentoml.service(workers=WORKERS, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Ranking:
    """Scores batches of rows."""

    def __init__(self) -> None:
        """Load the model."""
        self._reference = Reference()

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=BATCH * 50, max_latency_ms=60_000)
    def score(self, x: np.ndarray) -> np.ndarray:
        """Return the scores of all rows."""
        return self._reference.score([np.ascontiguousarray(x, np.float32)])[0]


assert WAIT_MS >= 0  # the batcher waits as long as it thinks best
