"""Readiness: whether new requests are welcome, at the server and at each of its models."""

import time

from app.artifacts.loader import Model
from app.artifacts.model_tables import NO_TABLES
from app.lifecycle.registry import Registry


class Readiness:
    """The answer to a load balancer's question; owned by the event loop, any thread may ask.

    A version is not ready while one of its tables is older than its `max_age_s`. That says nothing
    about other models, so the server is ready as long as one active version is.

    Attributes:
        is_draining: the server finishes what it has and takes no more connections soon.
    """

    def __init__(self, registry: Registry) -> None:
        """Be ready once every model of the store is active or refused, and one is active."""
        self._registry = registry
        self.is_draining = False

    @property
    def is_ready(self) -> bool:
        """Whether the store was loaded, an active version is ready, and the server not draining."""
        registry = self._registry
        is_serving = registry.has_started and bool(registry.models())
        return not self.is_draining and is_serving and not self.why_none_ready()

    def why_none_ready(self) -> str:
        """Return why no active version is ready; "" if one of them is, or none is active."""
        reasons = []
        for model in self._registry.models():
            reason = self.why_not_ready(model)
            if not reason:
                return ""
            reasons.append(reason)
        return "; ".join(reasons)

    def why_not_ready(self, model: Model) -> str:
        """Return which tables of a loaded version are older than they may be, or ""."""
        now = time.time()
        reasons = []
        for bound in self._registry.tables.get(model, NO_TABLES).all:
            table, age_s = bound.table, now - bound.table.created.timestamp()
            if table.max_age_s is not None and age_s > table.max_age_s:
                reasons.append(
                    f"table {bound.kind}/{table.label} of model {model.manifest.name} is "
                    f"{age_s:.0f} s old, limit {table.max_age_s:g} s"
                )
        return "; ".join(reasons)

    def drain(self) -> None:
        """Turn new requests away from now on; there is no way back. The server calls it."""
        self.is_draining = True
