"""Readiness: whether new requests are welcome."""

import time

from app.lifecycle.registry import Registry


class Readiness:
    """The answer to a load balancer's question; owned by the event loop.

    Attributes:
        is_draining: the server finishes what it has and takes no more connections soon.
    """

    def __init__(self, registry: Registry) -> None:
        """Be ready once every model of the store is active or refused, and one is active."""
        self._registry = registry
        self.is_draining = False

    @property
    def is_ready(self) -> bool:
        """Whether the store was loaded, a model is active, and the server is not draining.

        A table that is older than it may be makes the server not ready, too.
        """
        registry = self._registry
        is_serving = registry.has_started and bool(registry.models())
        return not self.is_draining and is_serving and not self.stale_tables()

    def stale_tables(self) -> list[str]:
        """Return which tables are older than they may be, one message each."""
        now = time.time()
        return [
            f"table {each.kind}/{each.label} of model {each.model} is {now - each.created_at:.0f} s"
            f" old, limit {each.max_age_s:g} s"
            for each in self._registry.table_figures
            if each.max_age_s is not None and now - each.created_at > each.max_age_s
        ]

    def drain(self) -> None:
        """Turn new requests away from now on; there is no way back. The server calls it."""
        self.is_draining = True
