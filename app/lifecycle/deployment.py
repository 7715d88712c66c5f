"""Deployment: load the newest good version of each model in the store, and activate it.

A version is verified, loaded, warmed up, and only then activated. If any of that fails, the version
that was active stays active, and other models are not affected. Once something is served, all of it
happens on a thread that gives way to the lanes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from app.artifacts.loader import Model, load
from app.artifacts.store import Artifact, Store, StoreListing
from app.engine.batch import Batch, Chunk
from app.engine.lanes import BatchResult, Lane, run
from app.engine.request import QueuedRequest, RequestFeatures
from app.errors import ArtifactInvalid
from app.lifecycle.background import BackgroundThread
from app.lifecycle.poll_timer import PollTimer
from app.lifecycle.registry import Registry
from app.ranking.policies import NO_POLICIES
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

BatchTimings = Sequence[tuple[int, float]]
"""Batches that ran: `(rows, seconds)` each."""

_WARM_UP_PASSES = 3  # the TorchScript executor profiles, then compiles, then runs


@dataclass(slots=True)
class _Refusal:
    """A version that could not be activated.

    Attributes:
        fingerprint: its files at that time; None if they could not be read.
        is_reported: whether it was logged and counted. A version whose files still change, for
            somebody copies it, is reported when they have stopped changing.
    """

    fingerprint: frozenset[tuple[str, int, int]] | None
    reason: str
    is_reported: bool


class Deployment:
    """Keeps a registry up to date with a store."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        lanes: Sequence[Lane],
        metrics: Metrics,
        *,
        device: torch.device,
        warm_up: Sequence[Sequence[int]],
        on_warm: Callable[[Model, BatchTimings], None],
    ) -> None:
        """Load nothing yet; the registry has not started until the first `refresh` is over.

        Args:
            store: contains the versions.
            registry: receives active and refused versions.
            lanes: run the warm-up batches; on a CPU only until something is served.
            metrics: counts failures to read the store.
            device: models are loaded onto it.
            warm_up: batches that every lane runs beforehand, each as the rows of its requests.
            on_warm: called before a version is activated, with the cost of its batches.
        """
        self._store = store
        self._registry = registry
        self._lanes = lanes
        self._metrics = metrics
        self._device = device
        self._background = BackgroundThread()
        self._warm_up_sizes = warm_up
        self._on_warm = on_warm
        self._refusals: dict[Artifact, _Refusal] = {}
        self._store_error = ""  # the last one that was logged
        registry.has_started = False

    async def refresh(self) -> None:
        """Activate, for each model in the store, the newest good version above the active one.

        A refused version is tried again when its files have changed. Removing the active version
        from the store changes nothing until the server starts again: publish an older model anew to
        go back to it.

        Raises:
            ArtifactInvalid: the store has artifacts, but nothing is active and nothing can be.
            OSError: the store cannot be read now. It is logged and counted.
        """
        listing = await self._scan()
        self._report_ignored(listing.ignored)
        self._forget_all_but(listing.artifacts)
        for name in dict.fromkeys(artifact.model for artifact in listing.artifacts):
            versions = [each for each in listing.artifacts if each.model == name]
            await self._activate_newest(versions)
        if self._registry.models():
            self._registry.has_started = True
        elif listing.artifacts:
            reasons = [f"{artifact}: {why}" for artifact, why in self._registry.refused.items()]
            raise ArtifactInvalid("; ".join(reasons))

    async def follow(self, timer: PollTimer) -> NoReturn:
        """Refresh at intervals: a version that is published later is served without a restart."""
        while True:
            await timer.wait()
            try:
                await self.refresh()
            except (ArtifactInvalid, OSError):
                continue  # both are in the log, and both may pass
            except Exception:  # an error of ours; the active versions go on serving
                logger.exception("refreshing from the store failed")

    async def _scan(self) -> StoreListing:
        """List the store. While nothing is active yet, a store that does not exist is empty."""
        try:
            listing = await asyncio.to_thread(self._store.scan)
        except FileNotFoundError:
            self._report_store_error(f'the store "{self._store.folder}" does not exist')
            if self._registry.models():
                raise
            return StoreListing()
        except OSError as error:  # such as a network volume that is away for a while
            self._report_store_error(f'the store "{self._store.folder}": {error.strerror or error}')
            raise
        if self._store_error:
            logger.info("the store can be read again")
            self._store_error = ""
        return listing

    def _report_store_error(self, reason: str) -> None:
        """Count each failure; log it once as long as the reason stays the same."""
        self._metrics.store_unreadable()
        if reason != self._store_error:
            self._store_error = reason
            logger.error(reason)

    def _report_ignored(self, ignored: Mapping[str, str]) -> None:
        """Log folders that are newly ignored, or for another reason."""
        for place, reason in ignored.items():
            if self._registry.ignored.get(place) != reason:
                logger.warning("%s in the store is ignored: %s", place, reason)
        self._registry.ignored = ignored

    def _forget_all_but(self, artifacts: Iterable[Artifact]) -> None:
        for gone in self._registry.refused.keys() - set(artifacts):
            del self._registry.refused[gone]
            self._refusals.pop(gone, None)

    async def _activate_newest(self, versions: Sequence[Artifact]) -> None:
        active = self._registry.active_version(versions[0].model)
        for artifact in reversed(versions):
            if artifact.version <= active:
                return
            if await self._try(artifact):
                return

    async def _try(self, artifact: Artifact) -> bool:
        """Activate an artifact if it is good and was not refused with the same files."""
        fingerprint = None
        try:
            fingerprint = await asyncio.to_thread(artifact.fingerprint)
            refusal = self._refusals.get(artifact)
            if refusal is not None and refusal.fingerprint == fingerprint:
                self._report(artifact, refusal)
                return False
            model = await self._load(artifact)
            await self._warm_up(model)
        except ArtifactInvalid as error:
            self._refuse(artifact, fingerprint, str(error))
        except OSError as error:  # it may pass: the next refresh tries again
            self._refuse(artifact, None, f"cannot be read now: {_os_reason(error)}")
        except Exception as error:
            # Whatever one artifact does, the others must be looked at.
            logger.exception("artifact %s could not be loaded", artifact)
            self._refuse(artifact, fingerprint, f"{type(error).__name__}: {error}")
        else:
            self._refusals.pop(artifact, None)
            self._registry.activate(artifact, model)
            return True
        return False

    def _refuse(
        self, artifact: Artifact, fingerprint: frozenset[tuple[str, int, int]] | None, reason: str
    ) -> None:
        former = self._refusals.get(artifact)
        is_same = former is not None and former.is_reported and former.reason == reason
        refusal = _Refusal(fingerprint, reason, is_reported=is_same)
        self._refusals[artifact] = refusal
        self._registry.refused[artifact] = reason
        if not self._registry.has_started or fingerprint is None:
            self._report(artifact, refusal)

    def _report(self, artifact: Artifact, refusal: _Refusal) -> None:
        if not refusal.is_reported:
            refusal.is_reported = True
            self._registry.refuse(artifact, refusal.reason)

    async def _load(self, artifact: Artifact) -> Model:
        if self._registry.has_started:
            return await self._background.run(partial(load, artifact, self._device))
        return await asyncio.to_thread(load, artifact, self._device)

    async def _warm_up(self, model: Model) -> None:
        """Run every batch size a few times, so that no request is the first of its kind.

        On a CPU, what is compiled belongs to the model, whichever thread ran it. On a GPU every
        lane has graphs of its own, and a batch takes a few milliseconds.
        """
        batches = [_batch(model, sizes) for sizes in self._warm_up_sizes] * _WARM_UP_PASSES
        if self._registry.has_started and self._device.type == "cpu":
            observed = await self._background.run(partial(_run_here, model, batches))
        else:
            observed = await self._run_on_lanes(batches)
        passes = [observed[i :: len(self._warm_up_sizes)] for i in range(len(self._warm_up_sizes))]
        # Anything may have slowed down a pass; the first ones compile.
        self._on_warm(model, [min(each, key=itemgetter(1)) for each in passes])

    async def _run_on_lanes(self, batches: Sequence[Batch]) -> BatchTimings:
        observed: list[tuple[int, float]] = []
        for lane in self._lanes:
            for batch in batches:
                result = await lane.run(batch)
                _check(result)
                observed.append((batch.rows, result.timing.busy_s))
        return observed


def _os_reason(error: OSError) -> str:
    """Return the reason without the path, which callers of the API must not see."""
    name = "" if error.filename is None else f"{Path(str(error.filename)).name}: "
    return f"{name}{error.strerror or error}"


def _run_here(model: Model, batches: Sequence[Batch]) -> BatchTimings:
    """Run batches on this thread; its CPU time is how long a lane that has a core would take."""
    observed: list[tuple[int, float]] = []
    for batch in batches:
        began = time.thread_time()
        _check(run(model, batch.chunks))
        observed.append((batch.rows, time.thread_time() - began))
    return observed


def _check(result: BatchResult) -> None:
    if isinstance(result.scores, Exception):
        raise ArtifactInvalid(f"warm-up failed: {result.scores}") from result.scores


def _batch(model: Model, sizes: Sequence[int]) -> Batch:
    """Return a batch of requests with so many candidates each.

    The user is the first golden user, and the golden candidates are repeated.
    """
    golden = model.golden.batch
    options = NO_POLICIES.policies_for(model.manifest.traits).default_options
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
