"""Deployment: the newest good version in the store becomes the active one.

A version is verified and loaded on a thread, warmed up on every lane, and only then activated.
Whatever goes wrong before, the version that was active goes on serving.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import torch

from app.artifacts.loader import Model, load
from app.artifacts.store import Artifact, Store
from app.engine.batch import Batch, Chunk
from app.engine.lanes import Lane
from app.engine.request import QueuedRequest, RequestFeatures
from app.errors import ArtifactInvalid
from app.lifecycle.poll_timer import PollTimer
from app.lifecycle.registry import Registry
from app.ranking.policies import NO_POLICIES

logger = logging.getLogger(__name__)

BatchTimings = Sequence[tuple[int, float]]
"""Batches that ran: `(rows, seconds)` each."""

_WARM_UP_PASSES = 3  # the TorchScript executor profiles, then compiles, then runs


class Deployment:
    """Follows a store on behalf of a registry."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        lanes: Sequence[Lane],
        *,
        device: torch.device,
        warm_up: Sequence[Sequence[int]],
        on_warm: Callable[[Model, BatchTimings], None],
    ) -> None:
        """Do nothing yet.

        Args:
            store: where versions are.
            registry: what is told which of them is active.
            lanes: who will run them.
            device: where they are loaded.
            warm_up: batches that every lane runs beforehand, each as the rows of its requests.
            on_warm: told, before a version is active, what its batches cost: `(rows, seconds)`.
        """
        self._store = store
        self._registry = registry
        self._lanes = lanes
        self._device = device
        self._warm_up_sizes = warm_up
        self._on_warm = on_warm
        self._refused_as: dict[Artifact, frozenset[tuple[str, int, int]]] = {}  # its files then

    async def refresh(self) -> None:
        """Activate, of each model in the store, the newest good version above the active one.

        A version that was refused is tried again when its files have changed: it may have been
        seen while somebody was copying it. Removing the active version from the store changes
        nothing until the server starts again: an older model comes back by being published anew.

        Raises:
            ArtifactInvalid: the store has artifacts, but nothing is active and nothing can be.
            OSError: the store cannot be read now.
        """
        artifacts = await asyncio.to_thread(lambda: list(self._store.artifacts()))
        self._forget_all_but(artifacts)
        for name in dict.fromkeys(artifact.model for artifact in artifacts):
            versions = [artifact for artifact in artifacts if artifact.model == name]
            await self._activate_newest(versions)
        if artifacts and not self._registry.models():
            reasons = [f"{artifact}: {why}" for artifact, why in self._registry.refused.items()]
            raise ArtifactInvalid("; ".join(reasons))

    async def follow(self, timer: PollTimer) -> NoReturn:
        """Refresh again and again: a version published later is served without a restart."""
        while True:
            await timer.wait()
            try:
                await self.refresh()
            except ArtifactInvalid:
                continue  # each refusal is in the log; a better version may come
            except OSError as error:  # a network volume that is away for a while
                logger.error("the store cannot be read: %s", error)  # noqa: TRY400
            except Exception:  # what serves goes on, whatever a new version did
                logger.exception("the store could not be followed")

    def _forget_all_but(self, artifacts: Sequence[Artifact]) -> None:
        for gone in self._registry.refused.keys() - set(artifacts):
            del self._registry.refused[gone]
            self._refused_as.pop(gone, None)

    async def _activate_newest(self, versions: Sequence[Artifact]) -> None:
        active = self._registry.active_version(versions[0].model)
        for artifact in reversed(versions):
            if artifact.version <= active:
                return
            try:
                fingerprint = await asyncio.to_thread(artifact.fingerprint)
                if self._refused_as.get(artifact) == fingerprint:
                    continue
                model = await asyncio.to_thread(load, artifact, self._device)
                await self._warm_up(model)
            except ArtifactInvalid as error:
                self._refused_as[artifact] = fingerprint
                self._registry.refuse(artifact, str(error))
            except OSError as error:  # it may pass: the next refresh tries again
                self._registry.refuse(artifact, f"cannot be read now: {error}")
            else:
                self._registry.activate(artifact, model)
                return

    async def _warm_up(self, model: Model) -> None:
        """Run every size on every lane, so that no request is the first of its kind."""
        batches = [_batch(model, sizes) for sizes in self._warm_up_sizes]
        observed: list[tuple[int, float]] = []
        for lane in self._lanes:
            for batch in batches * _WARM_UP_PASSES:
                outcome = await lane.run(batch)
                if isinstance(outcome.scores, Exception):
                    raise ArtifactInvalid(f"warm-up failed: {outcome.scores}") from outcome.scores
                observed.append((batch.rows, outcome.timing.busy_s))
        self._on_warm(model, observed[-len(batches) :])  # of the last pass: what is to come


def _batch(model: Model, sizes: Sequence[int]) -> Batch:
    """Return a batch of requests with so many candidates each.

    The user is the first golden user, and the golden candidates are repeated.
    """
    golden = model.golden.batch
    options = NO_POLICIES.rankers(model.manifest.traits).wanted
    chunks = []
    for rows in sizes:
        taken = np.arange(rows) % golden.rows
        features = RequestFeatures(
            user={name: column[:1] for name, column in golden.user.items()},
            candidate={name: column[taken] for name, column in golden.candidate.items()},
            rows=rows,
            unknown_ids={},
        )
        request = QueuedRequest(model, features, options)
        chunks.append(Chunk(request, features, 0, rows))
    return Batch.of(model, chunks)
