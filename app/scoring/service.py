"""The state of serving: models, policies, lanes and readiness."""

from collections.abc import Sequence

from app.engine.batcher import Batcher
from app.engine.lanes import Lane
from app.engine.state import EngineState, engine_state
from app.lifecycle.policies import Policies
from app.lifecycle.readiness import Readiness
from app.lifecycle.registry import Registry
from app.scoring.drift import DriftMonitor


class Service:
    """The parts that score calls, the API and the server share; owned by the event loop.

    Attributes:
        registry: the active models.
        policies: how their scores are ranked.
        readiness: whether the server accepts requests.
        batcher: scores requests on the lanes.
        drift: how far recent requests are from the training data.
    """

    def __init__(self, registry: Registry, batcher: Batcher, lanes: Sequence[Lane]) -> None:
        """Serve the models of `registry` on the lanes of `batcher`."""
        self.registry = registry
        self.policies = Policies()
        registry.on_freed.append(self.policies.forget)
        self.readiness = Readiness(registry)
        self.batcher = batcher
        self.drift = DriftMonitor(registry)
        self._lanes = lanes

    @property
    def is_ready(self) -> bool:
        """Whether the server accepts requests."""
        return self.readiness.is_ready

    @property
    def is_draining(self) -> bool:
        """Whether the server is shutting down; see `Readiness`."""
        return self.readiness.is_draining

    @property
    def lane_count(self) -> int:
        """How many lanes there are."""
        return len(self._lanes)

    def is_alive(self, hang_s: float) -> bool:
        """Whether every lane lives and no batch has kept it busy for longer than `hang_s`."""
        return all(lane.is_alive(hang_s) for lane in self._lanes)

    def state(self, hang_s: float) -> EngineState:
        """Return what the engine is doing now; see `is_alive` for `hang_s`."""
        return engine_state(self.batcher, self._lanes, hang_s=hang_s)
