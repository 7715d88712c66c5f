"""The registry: which version of each model answers now.

Owned by the event loop. Activation is one assignment: a request takes its model from the registry
once and keeps it, so each answer comes from exactly one version.
"""

import logging

from app.artifacts.loader import Model
from app.artifacts.store import PROGRAM, Artifact
from app.errors import ModelNotFound, NotReady, VersionNotFound
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Registry:
    """Active models by name, and the versions that were refused.

    Attributes:
        refused: the reason, by artifact.
    """

    def __init__(self, metrics: Metrics, *, default_model: str | None = None) -> None:
        """Start empty; `default_model` answers where a request names none."""
        self.refused: dict[Artifact, str] = {}
        self._active: dict[str, Model] = {}
        self._default_model = default_model
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"<Registry active {[str(model) for model in self.models()]}>"

    def models(self) -> list[Model]:
        """Return the active models, by name."""
        return [self._active[name] for name in sorted(self._active)]

    def active_version(self, name: str) -> int:
        """Return the version of a model that is active, or 0."""
        model = self._active.get(name)
        return 0 if model is None else model.manifest.version

    def active(self, name: str | None, version: int | None = None) -> Model:
        """Return the model that answers requests for `name`; None means the default model.

        Raises:
            NotReady: no model is active yet.
            ModelNotFound: none of that name is, or none was named and there are several.
            VersionNotFound: `version` is not the active one.
        """
        if not self._active:
            raise NotReady("no model is active yet")
        if name is None:
            name = self._default_model
            if name is None and len(self._active) == 1:
                (name,) = self._active
            if name is None:
                raise ModelNotFound("several models are active and none is the default: name one")
        model = self._active.get(name)
        if model is None:
            raise ModelNotFound("no model of this name is active")
        if version is not None and version != model.manifest.version:
            raise VersionNotFound("this version of the model is not active")
        return model

    def activate(self, artifact: Artifact, model: Model) -> None:
        """Let the model of an artifact answer from now on, in place of its former version."""
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
        """Note that an artifact cannot serve, and why."""
        self.refused[artifact] = reason
        self._metrics.tried(artifact.model, activated=False)
        logger.error("artifact %s is refused: %s", artifact, reason)
