"""Samples what the gates of a mixture of experts choose for live requests.

The forward pass does not return the weights of its gates, and nothing on the hot path computes
them. After a response has been written, at most once a second for each version, the gates are
computed again for some of its candidates, on a thread beside the lanes.
"""

import asyncio
import logging
import math
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np

from app.artifacts.columns import ModelInputs
from app.artifacts.loader import Model
from app.artifacts.program import error_summary
from app.engine.batch import Chunk
from app.engine.lanes import collate
from app.engine.request import QueuedRequest
from app.lifecycle.background import BackgroundThread
from app.telemetry.gates import GateCell, GateMetrics, Means

logger = logging.getLogger(__name__)

EVERY_S = 1.0
"""The least time between two samples of one version."""
MOST_ROWS = 64
"""The most candidates of a sample, evenly spaced: with them it takes a millisecond at most."""


class GateSampler:
    """Samples gates, one request at a time; owned by the event loop."""

    def __init__(self, metrics: GateMetrics) -> None:
        """Record on `metrics`."""
        self._metrics = metrics
        self._thread = BackgroundThread()
        self._loop = asyncio.get_running_loop()
        self._next_at: WeakKeyDictionary[Model, float] = WeakKeyDictionary()  # monotonic time (s)
        self._task: asyncio.Task[None] | None = None

    def sample(self, now: float, request: QueuedRequest) -> None:
        """Sample the gates for this request, unless it is too soon; `now` is monotonic (s)."""
        model, rows = request.model, request.features.rows
        if self._task is not None or now < self._next_at.get(model, 0.0) or not rows:
            return
        self._next_at[model] = now + EVERY_S
        chunk = Chunk(request, request.features, 0, rows)  # a request that is done lets go of them
        self._task = self._loop.create_task(self._run(model, chunk))

    async def _run(self, model: Model, chunk: Chunk) -> None:
        try:
            means = await self._thread.run(partial(mean_weights, model, chunk))
        except Exception as error:  # noqa: BLE001  (scoring goes on, whatever this method raises)
            self._next_at[model] = math.inf
            summary = error_summary(error)
            logger.warning("model %s: its gates are not observed: %s", model, summary)
        else:
            self._metrics.observe(model.label, gate_cells(model), means)
        finally:
            self._task = None


def gate_cells(model: Model) -> list[GateCell]:
    """Return the names of a model's gate weights: level by level, gate by gate."""
    return [
        GateCell(str(number), gate, level.experts[position])
        for number, level in enumerate(model.manifest.gates, 1)
        for gate, positions in zip(level.gates, level.sees, strict=True)
        for position in positions
    ]


def mean_weights(model: Model, chunk: Chunk) -> Means:
    """Return the mean weights `[cells]` over at most `MOST_ROWS` candidates of a request.

    Raises:
        ValueError, RuntimeError: see `Program.gate_weights`.
    """
    inputs = collate([chunk], unfolded=True)
    rows = min(inputs.rows, MOST_ROWS)
    chosen = np.arange(rows) * inputs.rows // rows  # [rows], evenly spaced
    candidate = {name: column[chosen] for name, column in inputs.candidate.items()}
    batch = ModelInputs(inputs.user, candidate, np.zeros(rows, np.int64))
    means: list[float] = []
    levels = zip(model.program.gate_weights(batch), model.manifest.gates, strict=True)
    for weights, level in levels:
        mean = weights.mean(0, dtype=np.float64)  # [gates, experts]
        for gate, positions in enumerate(level.sees):
            means += mean[gate, list(positions)].tolist()
    return np.array(means, np.float64)
