"""Starts, evaluates and ends the canaries that traffic files ask for."""

import logging

from app.artifacts.loader import Model
from app.lifecycle.canary import Canary
from app.lifecycle.registry import Registry, Role
from app.lifecycle.traffic import TRAFFIC, CanarySettings
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Canaries:
    """The canary of each model; owned by the event loop.

    The registry has their state: in `canaries` those that get traffic, in `last_canaries` those
    that are over, too. A canary that is over does not start again until its settings change.
    """

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        """Change the roles of `registry`; `metrics` counts the canaries that are over."""
        self._registry = registry
        self._metrics = metrics

    def due(self, name: str) -> CanarySettings | None:
        """Return the canary of a model that should start now: its version may have to be loaded."""
        traffic = self._registry.traffic.get(name)
        settings = None if traffic is None else traffic.canary
        active = self._registry.active_version(name)
        if settings is None or not active or settings.version == active:
            return None
        canary = self._registry.last_canaries.get(name)
        if canary is None:
            return settings
        has_active_changed = (
            canary.state == "running" and canary.active is not self._registry.active(name)
        )
        return settings if has_active_changed else None

    def start(self, name: str, settings: CanarySettings, model: Model) -> str:
        """Give a loaded version its share of a model's traffic; return why it cannot be, or ""."""
        registry = self._registry
        canary = Canary(settings, registry.active(name), model)
        if canary.key_feature and canary.key_feature not in model.manifest.user_names:
            return f"{TRAFFIC}: canary.key: the model has no such user feature"
        registry.last_canaries[name] = registry.canaries[name] = canary
        registry.assign(model, Role.CANARY)
        event = f"canary {model} gets {settings.share:g} of the traffic of {canary.active}"
        registry.events.add("traffic", event)
        logger.info(
            "canary %s gets %g of the traffic of %s for %s, by %s",
            model,
            settings.share,
            canary.active,
            settings.for_,
            canary.key_feature or "request id",
        )
        return ""

    def evaluate(self, name: str) -> None:
        """Evaluate the gates of a model's canary; promote or end it, and log the figures."""
        registry = self._registry
        canary = registry.last_canaries.get(name)
        if canary is None or canary.state != "running":
            return
        canary.evaluate()
        if canary.state == "running":
            return
        registry.canaries.pop(name, None)
        registry.compare(name)
        if canary.state == "promoted":
            logger.info("canary %s is promoted: %s", canary.model, canary.report())
            registry.events.add("traffic", f"canary {canary.model} is promoted")
            registry.switch(canary.model)
        else:
            registry.assign(canary.model, Role.PREVIOUS)
            logger.error("canary %s is ended: %s: %s", canary.model, canary.reason, canary.report())
            event = f"canary {canary.model} is ended: {canary.reason}"
            registry.events.add("traffic", event, is_problem=True)
        canary.close()
        self._metrics.versions.canary_over(name, canary.state)

    def stop(self, name: str) -> None:
        """Send no more traffic to a model's canary, compare it no more, and forget how it went."""
        canary = self._registry.last_canaries.pop(name, None)
        self._registry.canaries.pop(name, None)
        if canary is not None and canary.state == "running":
            if self._registry.role(canary.model) == Role.CANARY:
                self._registry.assign(canary.model, Role.PREVIOUS)
            canary.close()
        self._registry.compare(name)

    def stop_running(self, name: str) -> None:
        """Stop a model's canary if it is not over: it was compared with another active version."""
        canary = self._registry.last_canaries.get(name)
        if canary is not None and canary.state == "running":
            self.stop(name)

    def stop_outdated(self, name: str) -> None:
        """Stop a canary whose settings have changed, or whose version another way made active."""
        traffic = self._registry.traffic.get(name)
        canary = self._registry.last_canaries.get(name)
        if canary is None or traffic is None:
            return
        if canary.settings != traffic.canary:
            self.stop(name)
        elif canary.settings.version == self._registry.active_version(name):
            self.stop_running(name)

    def promoted_version(self, name: str) -> int | None:
        """Return the version of a model's canary that was promoted, and not replaced since."""
        canary = self._registry.last_canaries.get(name)
        if canary is None or canary.state != "promoted":
            return None
        return canary.settings.version
