"""The files that loaded versions were read from, and whether the store still has them.

A version whose files were removed or damaged keeps serving from memory, but the server could not
start with it again.
"""

import asyncio
import logging
from functools import partial

from app.artifacts.artifact_files import verify
from app.artifacts.loader import Model
from app.artifacts.store import Artifact, Fingerprint
from app.errors import ArtifactInvalid
from app.files import reason_without_path
from app.lifecycle.background import BackgroundThread
from app.lifecycle.registry import Registry
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class LoadedFiles:
    """Remembers and checks the files of loaded versions; owned by the event loop."""

    def __init__(self, registry: Registry, metrics: Metrics, background: BackgroundThread) -> None:
        """Know no version yet.

        Args:
            registry: gets what is wrong with the files of loaded versions.
            metrics: shows whether those of active versions are intact.
            background: hashes files that have changed.
        """
        self._registry = registry
        self._metrics = metrics
        self._background = background
        self._files: dict[str, tuple[Artifact, Fingerprint]] = {}  # by `name/version`

    def add(self, model: Model, artifact: Artifact, fingerprint: Fingerprint) -> None:
        """Remember the files that a version was just loaded from."""
        self._files[model.label] = artifact, fingerprint

    def fingerprint(self, model: Model) -> Fingerprint:
        """Return the files that a version was loaded from."""
        return self._files[model.label][1]

    def forget_freed(self, name: str) -> None:
        """Forget the versions of a model that are not loaded any more."""
        loaded = {model.label for model in self._registry.versions(name)}
        for label, (artifact, _) in list(self._files.items()):
            if artifact.model == name and label not in loaded:
                del self._files[label]

    async def check(self) -> None:
        """Report loaded versions whose files in the store are missing or damaged."""
        for model in self._registry.loaded():
            if model.label in self._files:
                self._report(model, await self._problem(model))
        for model in self._registry.active_models():
            is_intact = model.label not in self._registry.damaged
            self._metrics.versions.show_intact(model.manifest.name, is_intact=is_intact)

    async def _problem(self, model: Model) -> str:
        """Return what is wrong with the files of a version in the store, or ""."""
        artifact, known = self._files[model.label]
        try:
            fingerprint = await asyncio.to_thread(artifact.fingerprint)
            if not fingerprint:
                return "was removed from the store"
            if fingerprint != known:
                await self._background.run(partial(verify, artifact, model.manifest))
                self._files[model.label] = artifact, fingerprint
        except ArtifactInvalid as error:
            return f"its files in the store have changed: {error}"
        except OSError as error:
            return f"its files in the store cannot be read: {reason_without_path(error)}"
        return ""

    def _report(self, model: Model, problem: str) -> None:
        """Log a change of what is wrong with the files of a version."""
        registry, label = self._registry, model.label
        former = registry.damaged.pop(label, "")
        if problem:
            registry.damaged[label] = problem
        if problem == former:
            return
        if problem:
            registry.events.add("version", f"{model} {problem}", is_problem=True)
            logger.error(
                "model %s (%s) %s; it goes on serving until the server stops",
                model,
                registry.role(model),
                problem,
            )
        else:
            registry.events.add("version", f"{model}: its files in the store are intact again")
            logger.info("model %s: its files in the store are intact again", model)
