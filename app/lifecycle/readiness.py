"""Readiness: whether new requests are welcome."""

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
        """Whether the store was loaded, a model is active, and the server is not draining."""
        registry = self._registry
        return not self.is_draining and registry.has_started and bool(registry.models())

    def drain(self) -> None:
        """Turn new requests away from now on; there is no way back. The server calls it."""
        self.is_draining = True
