"""Starts and ends the shadows that traffic files ask for."""

import logging

from app.artifacts.loader import Model
from app.lifecycle.comparison import Comparison
from app.lifecycle.registry import Registry, Role
from app.lifecycle.traffic import ShadowSettings

logger = logging.getLogger(__name__)


class Shadows:
    """The shadow of each model, which the registry has; owned by the event loop."""

    def __init__(self, registry: Registry) -> None:
        """Change the roles of `registry`."""
        self._registry = registry

    def due(self, name: str) -> ShadowSettings | None:
        """Return the shadow of a model that should start now: its version may have to be loaded."""
        settings = self._settings(name)
        active = self._registry.active_version(name)
        if settings is None or not active or settings.version == active:
            return None
        return None if name in self._registry.shadows else settings

    def stop_outdated(self, name: str) -> None:
        """Stop a shadow that its file does not ask for any more, or that has another live version.

        It starts again when it is due.
        """
        registry, settings = self._registry, self._settings(name)
        shadow = registry.shadows.get(name)
        if shadow is None:
            return
        active = registry.version(name, registry.active_version(name))
        if settings is not None and shadow.live is active:
            has_version = shadow.other.manifest.version == settings.version
            if has_version and shadow.share == settings.share:
                return
        del registry.shadows[name]
        registry.compare(name)
        if registry.role(shadow.other) == Role.SHADOW:
            registry.assign(shadow.other, Role.PREVIOUS)

    def start(self, name: str, settings: ShadowSettings, model: Model) -> None:
        """Let a loaded version score a share of the requests to the active one."""
        registry = self._registry
        active = registry.active(name)
        if model is active:
            return
        registry.shadows[name] = Comparison(active, model, settings.share, "shadow")
        if registry.role(model) != Role.CANARY:
            registry.assign(model, Role.SHADOW)
        logger.info("shadow %s scores %g of the traffic of %s", model, settings.share, active)
        event = f"shadow {model} scores {settings.share:g} of the traffic of {active}"
        registry.events.add("traffic", event)

    def _settings(self, name: str) -> ShadowSettings | None:
        traffic = self._registry.traffic.get(name)
        return None if traffic is None else traffic.shadow
