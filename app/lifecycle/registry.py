"""The registry: the active version of each model.

Owned by the event loop. Activation is one assignment: a request takes its model from the registry
once and keeps it, so that exactly one version computes its answer.
"""

import logging
from collections.abc import Mapping

from app.artifacts.loader import Model
from app.artifacts.store import PROGRAM, Artifact
from app.errors import ModelNotFound, NotReady, VersionNotFound, did_you_mean
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_SHOWN = 64  # characters of a name, and names, in a message


class Registry:
    """Active models by name, and the versions that were refused.

    Attributes:
        has_started: whether every model that the store had at the start is active or refused. A
            deployment sets it to False while it loads them.
        refused: the reason, by artifact.
        ignored: folders of the store that are not artifacts, with the reason, by path in the store.
    """

    def __init__(self, metrics: Metrics, *, default_model: str | None = None) -> None:
        """Start empty; `default_model` answers requests that name none."""
        self.has_started = True
        self.refused: dict[Artifact, str] = {}
        self.ignored: Mapping[str, str] = {}
        self._active: dict[str, Model] = {}
        self._default_model = default_model
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"<Registry active {[str(model) for model in self.models()]}>"

    def models(self) -> list[Model]:
        """Return the active models, by name."""
        return [self._active[name] for name in sorted(self._active)]

    def active_version(self, name: str) -> int:
        """Return the active version of a model, or 0."""
        model = self._active.get(name)
        return 0 if model is None else model.manifest.version

    def active(self, name: str | None, version: int | None = None) -> Model:
        """Return the active model `name`; None means the default model.

        Raises:
            NotReady: no model is active, or this one may still be loading.
            ModelNotFound: no model of this name is active, or none is named and there are several.
            VersionNotFound: `version` is not the active one.
        """
        if not self._active:
            raise NotReady("no model is active yet")
        if name is None:
            name = self._default()
        model = self._active.get(name)
        if model is None:
            if not self.has_started:
                raise NotReady(f'model "{name[:_SHOWN]}" is not active; the store is still loading')
            raise ModelNotFound(
                f'model "{name[:_SHOWN]}" not found; active models: {self._names()}'
                f"{did_you_mean(name[:_SHOWN], self._active)}"
            )
        active = model.manifest.version
        if version is not None and version != active:
            raise VersionNotFound(
                f'version {version} of model "{name}" is not active; active version: {active}'
            )
        return model

    def _default(self) -> str:
        if self._default_model is not None:
            return self._default_model
        if not self.has_started:  # the first model to be loaded is not the default
            raise NotReady("no model is named, and the store is still loading")
        if len(self._active) > 1:
            raise ModelNotFound(
                f"no model is named, and there is no default model; active models: {self._names()}"
            )
        return next(iter(self._active))

    def _names(self) -> str:
        names = sorted(self._active)
        return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

    def activate(self, artifact: Artifact, model: Model) -> None:
        """Make the model of an artifact the active version of its name."""
        manifest = model.manifest
        self.refused.pop(artifact, None)
        former = self._active.get(manifest.name)
        self._active[manifest.name] = model
        if former is not None:
            old = former.manifest
            self._metrics.retired(old.name, old.version, old.files[PROGRAM].sha256)
        self._metrics.activated(manifest.name, manifest.version, manifest.files[PROGRAM].sha256)
        self._metrics.tried(manifest.name, activated=True)
        logger.info("model %s is active", model)

    def refuse(self, artifact: Artifact, reason: str) -> None:
        """Record that an artifact cannot serve, log it and count it."""
        self.refused[artifact] = reason
        self._metrics.tried(artifact.model, activated=False)
        logger.error("artifact %s is refused: %s", artifact, reason)
