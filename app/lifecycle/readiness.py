"""Readiness: whether new requests are welcome, at the server and at each of its models."""

import time

from app.artifacts.loader import Model
from app.artifacts.model_tables import NO_TABLES
from app.errors import Draining, NotReady
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
        """Whether `check` passes."""
        try:
            self.check()
        except (Draining, NotReady):
            return False
        return True

    def check(self) -> None:
        """Check that the server accepts requests to one of its models at least.

        Raises:
            Draining: it is shutting down.
            NotReady: models are still loading, none is active, or each has a table that is too old.
        """
        self.check_started()
        if reason := self._why_none_ready():
            raise NotReady(reason)

    def check_started(self) -> None:
        """Check that the server has loaded its store and is not shutting down.

        Raises:
            Draining: it is shutting down.
            NotReady: models are still loading, or none is active.
        """
        if self.is_draining:
            raise Draining("the server is shutting down")
        if not self._registry.active_models():
            raise NotReady("no model is active yet")
        if not self._registry.has_started:
            raise NotReady("models are still loading")

    def _why_none_ready(self) -> str:
        """Return why no active version is ready; "" if one of them is, or none is active."""
        reasons = []
        for model in self._registry.active_models():
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
