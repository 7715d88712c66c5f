"""Loads one version: verify its files, load its program, check its golden examples, warm it up."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import torch

from app.artifacts.artifact_files import read_manifest
from app.artifacts.loader import Model, load
from app.artifacts.store import Artifact, Fingerprint
from app.engine.request import RequestFeatures
from app.errors import ArtifactInvalid
from app.files import reason_without_path
from app.lifecycle.background import BackgroundThread
from app.lifecycle.loaded_files import LoadedFiles
from app.lifecycle.refusals import Refusals
from app.lifecycle.registry import Registry
from app.lifecycle.table_follower import TableFollower
from app.lifecycle.warm_up import BatchTimings, WarmUp

logger = logging.getLogger(__name__)


class VersionLoader:
    """Loads versions, or refuses them; owned by the event loop."""

    def __init__(
        self,
        registry: Registry,
        refusals: Refusals[Artifact],
        files: LoadedFiles,
        tables: TableFollower,
        background: BackgroundThread,
        warm_up: WarmUp,
        *,
        device: torch.device,
        on_warm: Callable[[Model, BatchTimings], None],
        recorded: Callable[[Model], list[RequestFeatures]] | None,
    ) -> None:
        """Load nothing yet.

        Args:
            registry: says whether something is served, so that loading must not take its cores.
            refusals: gets the versions that cannot be loaded.
            files: remembers what a version was loaded from.
            tables: opens the tables that a version needs.
            background: loads versions once something is served.
            warm_up: runs the first batches of a version.
            device: models are loaded onto it.
            on_warm: called with the cost of a version's batches.
            recorded: returns recorded requests to warm a version up with; runs on any thread.
        """
        self._registry = registry
        self._refusals = refusals
        self._files = files
        self._tables = tables
        self._background = background
        self._warm_up = warm_up
        self._device = device
        self._on_warm = on_warm
        self._recorded = recorded

    async def load(self, artifact: Artifact, circumstances: object) -> Model | None:
        """Load and warm up a version; None if it is refused, now or with these files before.

        Args:
            artifact: the version.
            circumstances: what it would be examined with, if it must pass an examination to have
                its role: one that failed it is not loaded again for nothing.
        """
        fingerprint: Fingerprint | None = None
        try:
            fingerprint = await asyncio.to_thread(artifact.fingerprint)
            if self._refusals.repeat(artifact, fingerprint, circumstances):
                return None
            manifest = await asyncio.to_thread(read_manifest, artifact)
            if missing := await self._tables.prepare(manifest):
                self._refusals.add(artifact, missing)  # until a table of the right kind is there
                return None
            model = await self._background.run(
                partial(load, artifact, self._device), beside_requests=self._registry.has_started
            )
            await self._warm(model)
            await self._tables.examine_fold(model)
        except ArtifactInvalid as error:
            self._refusals.add(artifact, str(error), fingerprint)
        except OSError as error:  # it may pass: the next refresh tries again
            self._refusals.add(artifact, f"cannot be read now: {reason_without_path(error)}")
        except Exception as error:
            # Whatever one artifact does, the others must be looked at.
            logger.exception("artifact %s could not be loaded", artifact)
            self._refusals.add(artifact, f"{type(error).__name__}: {error}", fingerprint)
        else:
            self._tables.assign(model)
            self._files.add(model, artifact, fingerprint)
            return model
        return None

    async def _warm(self, model: Model) -> None:
        """Warm a version up, with recorded requests too if there are any."""
        recorded: list[RequestFeatures] = []
        if self._recorded is not None:
            try:
                recorded = await self._background.run(partial(self._recorded, model))
            except Exception:
                logger.exception("recorded traffic cannot be read to warm up %s", model)
        is_beside = self._registry.has_started
        self._on_warm(model, await self._warm_up.run(model, recorded, beside_requests=is_beside))
        if recorded:
            logger.info("model %s is warmed up with %d recorded requests", model, len(recorded))
