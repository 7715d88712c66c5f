"""Deployment: load the versions of each model that its traffic file asks for, and give them roles.

A version is verified, loaded, warmed up, and only then activated. If any of that fails, the version
that was active stays active, and other models are not affected. Once something is served, all of it
happens on a thread beside the lanes.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, TypeVar

import torch

from app.artifacts.artifact_files import read_manifest, verify
from app.artifacts.loader import Model, load
from app.artifacts.store import Artifact, Fingerprint, Store, StoreListing
from app.artifacts.tables.table import Table
from app.engine.lanes import Lane
from app.engine.request import RequestFeatures
from app.errors import ArtifactInvalid
from app.lifecycle.background import BackgroundThread
from app.lifecycle.canary import Canary
from app.lifecycle.comparison import Comparison
from app.lifecycle.poll_timer import PollTimer
from app.lifecycle.refusals import Refusals
from app.lifecycle.registry import Registry, Role
from app.lifecycle.tables import TableFollower
from app.lifecycle.traffic import TRAFFIC, ReplaySettings, Traffic
from app.lifecycle.traffic_files import TrafficFiles
from app.lifecycle.warm_up import BatchTimings, WarmUp
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Incompatible(NamedTuple):
    """A version that must not serve, as files show before any program is loaded.

    Attributes:
        artifact: the version.
        fingerprint: its files when they were read.
        before: the version that would be active instead.
        reason: why requests to that one would fail.
    """

    artifact: Artifact
    fingerprint: Fingerprint
    before: int
    reason: str


class Trial(Protocol):
    """Examines versions; its methods may run on any thread. See `app.scoring.version_trial`."""

    @property
    def policies_version(self) -> str:
        """The version of the policies that a version must fit."""

    def incompatibility(self, active: Model, model: Model) -> str:
        """Return why requests to the active version would fail with another one, or nothing."""

    def incompatible(self, versions: Sequence[Artifact], traffic: Traffic) -> list[Incompatible]:
        """Return the versions that would have been refused if a server had seen each arrive."""

    def recorded(self, model: Model) -> list[RequestFeatures]:
        """Return features of recorded requests that a version accepts."""

    def replay(self, active: Model, model: Model, gates: ReplaySettings) -> tuple[bool, str]:
        """Return whether a version passes the gates on recorded requests, and the figures."""


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
        trial: Trial | None = None,
        place_table: Callable[[Table], None] | None = None,
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
            trial: examines a new version before it serves.
            place_table: copies an item table to where batches are gathered; see `TableFollower`.
        """
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._device = device
        self._background = BackgroundThread()
        self._warm_ups = WarmUp(lanes, self._background, warm_up, is_on_cpu=device.type == "cpu")
        self._on_warm = on_warm
        self._trial = trial
        self._passed: set[str] = set()  # `name/version` of loaded versions that may serve
        self._traffic = TrafficFiles(store.folder, registry, metrics)
        self._tables = TableFollower(
            store.folder, registry, metrics, self._warm_up_folded, place_table
        )
        self._refusals: Refusals[Artifact] = Refusals(
            registry.refused, registry.refuse, may_be_copied=lambda: registry.has_started
        )
        self._loaded: dict[str, tuple[Artifact, Fingerprint]] = {}  # by `name/version`
        self._store_error = ""  # the last one that was logged
        registry.has_started = False

    async def refresh(self) -> None:
        """Give every model in the store the versions and roles that its traffic file asks for.

        By default that is the newest good version above the active one. A refused version is tried
        again when its files have changed. Removing the active version from the store is reported,
        and changes nothing until the server starts again.

        Raises:
            ArtifactInvalid: the store has artifacts, but nothing is active and nothing can be.
            OSError: the store cannot be read now. It is logged and counted.
        """
        listing = await self._scan()
        self._report_ignored(listing.ignored)
        self._refusals.keep_only(set(listing.artifacts).__contains__)
        self._traffic.forget_all_but({artifact.model for artifact in listing.artifacts})
        for name in dict.fromkeys(artifact.model for artifact in listing.artifacts):
            await self._traffic.read(name)
            await self._tables.refresh(name)
            self._switch(name)
            self._evaluate(name)
        for name in dict.fromkeys(artifact.model for artifact in listing.artifacts):
            await self._follow(name, [each for each in listing.artifacts if each.model == name])
        await self._check_files()
        self._metrics.keep_only({model.label for model in self._registry.loaded()})
        if self._registry.models():
            self._registry.has_started = True
        elif listing.artifacts:
            raise ArtifactInvalid("; ".join(self._reasons()))

    def _reasons(self) -> list[str]:
        """Say why nothing is active."""
        registry = self._registry
        reasons = [f"{artifact}: {why}" for artifact, why in registry.refused.items()]
        for problems in (registry.traffic_problems, registry.unassigned):
            reasons += [f"{name}: {why}" for name, why in problems.items()]
        return reasons

    async def follow(self, timer: PollTimer) -> NoReturn:
        """Look at the store whenever the timer says so.

        A version that is loaded already is activated at once, also while others are being loaded.
        """
        refreshing: asyncio.Task[None] | None = None
        is_due = False

        def go_on(_: asyncio.Task[None]) -> None:
            if is_due:  # something may have changed behind the refresh that ended
                timer.wake()

        try:
            while True:
                await timer.wait()
                is_due = refreshing is not None and not refreshing.done()
                if is_due:
                    await self._switch_all()
                else:
                    refreshing = asyncio.ensure_future(self._refresh_and_log())
                    refreshing.add_done_callback(go_on)
        finally:
            if refreshing is not None:
                refreshing.cancel()

    async def _refresh_and_log(self) -> None:
        try:
            await self.refresh()
        except (ArtifactInvalid, OSError):
            pass  # both are in the log, and both may pass
        except Exception:  # an error of ours; the active versions go on serving
            logger.exception("refreshing from the store failed")

    async def _switch_all(self) -> None:
        """Activate what traffic files ask for and is loaded, and open new tables."""
        for model in self._registry.models():
            await self._traffic.read(model.manifest.name)
            await self._tables.refresh(model.manifest.name)
            self._switch(model.manifest.name)
            self._evaluate(model.manifest.name)

    def _switch(self, name: str) -> None:
        """Activate the version of a model that its traffic file names, if it is loaded."""
        traffic = self._traffic.of(name)
        if traffic is None:
            return
        canary = self._registry.last_canaries.get(name)
        if canary is not None and canary.settings != traffic.canary:
            self._stop_canary(name)
        wanted = self._wanted(name)
        if wanted in ("latest", self._registry.active_version(name)):
            return
        model = self._registry.version(name, int(wanted))
        if model is not None and not self._needs_trial(model):
            if missing := self._tables.missing(model.manifest):
                self._unassigned(name, f"{TRAFFIC}: active = {wanted}: {missing}")
                return
            self._registry.switch(model)
        if canary is not None and canary.state == "running":
            self._stop_canary(name)  # it was compared with another version

    def _wanted(self, name: str) -> int | str:
        """Return the version of a model that should be active, or "latest"."""
        traffic = self._traffic.of(name) or Traffic()
        canary = self._registry.last_canaries.get(name)
        if canary is not None and canary.state == "promoted":
            return canary.settings.version
        return traffic.active

    def _stop_canary(self, name: str) -> None:
        """Send no more traffic to a canary, and forget how it went."""
        canary = self._registry.last_canaries.pop(name, None)
        self._registry.canaries.pop(name, None)
        if canary is not None and canary.state == "running":
            if self._registry.role(canary.model) == Role.CANARY:
                self._registry.assign(canary.model, Role.PREVIOUS)
            canary.close()

    def _evaluate(self, name: str) -> None:
        """Evaluate the gates of a model's canary; promote or end it, and log the figures."""
        canary = self._registry.last_canaries.get(name)
        if canary is None or canary.state != "running":
            return
        canary.evaluate()
        if canary.state == "running":
            return
        self._registry.canaries.pop(name, None)
        self._registry.compare(name)
        if canary.state == "promoted":
            logger.info("canary %s is promoted: %s", canary.model, canary.report())
            self._registry.events.add("traffic", f"canary {canary.model} is promoted")
            self._registry.switch(canary.model)
        else:
            self._registry.assign(canary.model, Role.PREVIOUS)
            logger.error("canary %s is ended: %s: %s", canary.model, canary.reason, canary.report())
            text = f"canary {canary.model} is ended: {canary.reason}"
            self._registry.events.add("traffic", text, is_problem=True)
        canary.close()
        self._metrics.canary_over(name, canary.state)

    async def _follow_canary(self, name: str, versions: Sequence[Artifact]) -> None:
        """Load the canary that a traffic file asks for, and let it have its share."""
        traffic = self._traffic.of(name)
        settings = None if traffic is None else traffic.canary
        active = self._registry.active_version(name)
        canary = self._registry.last_canaries.get(name)
        if settings is None or not active:
            return
        if canary is not None and (
            canary.state != "running" or canary.active is self._registry.active(name)
        ):
            return
        if settings.version == active:
            if canary is not None and canary.state == "running":  # another one activated it
                self._stop_canary(name)
            return
        model = await self._load_beside(name, settings.version, versions, is_tried=True)
        traffic = self._traffic.of(name)
        if model is None or traffic is None or traffic.canary != settings:
            return
        canary = Canary(settings, self._registry.active(name), model)
        if canary.key_feature and canary.key_feature not in model.manifest.user_names:
            self._unassigned(name, f"{TRAFFIC}: canary.key: the model has no such user feature")
            return
        self._registry.last_canaries[name] = self._registry.canaries[name] = canary
        self._registry.assign(model, Role.CANARY)
        text = f"canary {model} gets {settings.share:g} of the traffic of {canary.active}"
        self._registry.events.add("traffic", text)
        logger.info(
            "canary %s gets %g of the traffic of %s for %s, by %s",
            model,
            settings.share,
            canary.active,
            settings.for_,
            canary.key_feature or "request id",
        )

    async def _follow_shadow(self, name: str, versions: Sequence[Artifact]) -> None:
        """Load the shadow that a traffic file asks for, and compare it with the active version."""
        registry = self._registry
        traffic = self._traffic.of(name)
        settings = None if traffic is None else traffic.shadow
        shadow = registry.shadows.get(name)
        active = registry.version(name, registry.active_version(name))
        if shadow is not None and active is not None and settings is not None:
            wanted = (active, settings.version, settings.share)
            if (shadow.live, shadow.other.manifest.version, shadow.share) == wanted:
                return
        if shadow is not None:
            del registry.shadows[name]
            if registry.role(shadow.other) == Role.SHADOW:
                registry.assign(shadow.other, Role.PREVIOUS)
        if settings is None or active is None or settings.version == active.manifest.version:
            return
        model = await self._load_beside(name, settings.version, versions)
        traffic = self._traffic.of(name)
        if model is None or traffic is None or traffic.shadow != settings:
            return
        active = registry.active(name)
        if model is active:
            return
        registry.shadows[name] = Comparison(active, model, settings.share, "shadow")
        if registry.role(model) != Role.CANARY:
            registry.assign(model, Role.SHADOW)
        logger.info("shadow %s scores %g of the traffic of %s", model, settings.share, active)
        text = f"shadow {model} scores {settings.share:g} of the traffic of {active}"
        registry.events.add("traffic", text)

    async def _load_beside(
        self, name: str, version: int, versions: Sequence[Artifact], *, is_tried: bool = False
    ) -> Model | None:
        """Return a version that is not to be active, loaded if need be; None if it cannot be.

        With `is_tried`, it must also pass the trial of a version that answers requests.
        """
        model = self._registry.version(name, version)
        artifact = next((each for each in versions if each.version == version), None)
        if model is None and artifact is not None:
            # One that failed its examination may be loaded, if it need not pass one.
            circumstances = self._circumstances(name) if is_tried else None
            model = await self._load(artifact, circumstances)
        if model is not None and artifact is not None:
            if is_tried and not await self._passes(artifact, model):
                model = None
            elif self._is_new(model):
                self._refusals.forget(artifact)
                self._registry.add(artifact, model)
        if model is None:
            reason = f"version {version} is not in the store"
            if artifact is not None:
                reason = self._registry.refused.get(artifact, f"version {version} is not loaded")
            self._unassigned(name, f"{TRAFFIC}: version {version} does not get its role: {reason}")
        return model

    def _unassigned(self, name: str, reason: str) -> None:
        if self._registry.unassigned.get(name) != reason:
            self._registry.unassigned[name] = reason
            logger.error("model %s: %s", name, reason)
            self._registry.events.add("traffic", f"{name}: {reason}", is_problem=True)

    async def _follow(self, name: str, versions: Sequence[Artifact]) -> None:
        """Load, activate and free versions of one model as its traffic file says."""
        traffic = self._traffic.of(name)
        if traffic is None:  # the file was wrong from the start
            return
        wanted = self._wanted(name)
        if wanted == "latest":
            beside = {each.version for each in (traffic.canary, traffic.shadow) if each}
            await self._activate_newest([each for each in versions if each.version not in beside])
        elif wanted != self._registry.active_version(name):
            for artifact in versions:
                if artifact.version == wanted:
                    await self._try(artifact)
        if not self._report_unassigned(name, versions):
            await self._follow_canary(name, versions)
            await self._follow_shadow(name, versions)
            self._registry.compare(name)
        self._free_others(name)

    def _free_others(self, name: str) -> None:
        """Free the versions of a model that have no role."""
        traffic = self._traffic.of(name) or Traffic()
        kept = self._registry.previous(name)[: traffic.keep]
        canary = self._registry.last_canaries.get(name)
        if canary is not None and canary.state == "running":
            kept.append(canary.settings.version)
        if name in self._registry.shadows:
            kept.append(self._registry.shadows[name].other.manifest.version)
        self._registry.free_all_but(name, kept)
        loaded = {model.label for model in self._registry.versions(name)}
        for label, (artifact, _) in list(self._loaded.items()):
            if artifact.model == name and label not in loaded:
                del self._loaded[label]
                self._passed.discard(label)

    def _report_unassigned(self, name: str, versions: Sequence[Artifact]) -> bool:
        """Say why the version that the traffic file names is not active; return whether that is."""
        wanted = self._wanted(name)
        if wanted in ("latest", self._registry.active_version(name)):
            self._registry.unassigned.pop(name, None)
            return False
        artifact = next((each for each in versions if each.version == wanted), None)
        if artifact is None:
            known = ", ".join(str(each.version) for each in versions[-20:])
            reason = f"version {wanted} is not in the store (versions: {known})"
        else:
            reason = self._registry.refused.get(artifact, f"version {wanted} is not loaded")
        self._unassigned(name, f"{TRAFFIC}: active = {wanted}: {reason}")
        return True

    async def _check_files(self) -> None:
        """Report loaded versions whose files in the store are missing or damaged."""
        registry = self._registry
        for model in registry.loaded():
            if (known := self._loaded.get(model.label)) is None:
                continue
            artifact, fingerprint = known
            problem = ""
            try:
                found = await asyncio.to_thread(artifact.fingerprint)
                if not found:
                    problem = "was removed from the store"
                elif found != fingerprint:
                    await self._background.run(partial(verify, artifact, model.manifest))
                    self._loaded[model.label] = artifact, found
            except ArtifactInvalid as error:
                problem = f"its files in the store have changed: {error}"
            except OSError as error:
                problem = f"its files in the store cannot be read: {_os_reason(error)}"
            if problem and registry.damaged.get(model.label) != problem:
                registry.events.add("version", f"{model} {problem}", is_problem=True)
                logger.error(
                    "model %s (%s) %s; it goes on serving until the server stops",
                    model,
                    registry.role(model),
                    problem,
                )
            elif not problem and model.label in registry.damaged:
                registry.events.add("version", f"{model}: its files in the store are intact again")
                logger.info("model %s: its files in the store are intact again", model)
            registry.damaged.pop(model.label, None)
            if problem:
                registry.damaged[model.label] = problem
        for model in registry.models():
            is_intact = model.label not in registry.damaged
            self._metrics.intact(model.manifest.name, is_intact=is_intact)

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

    async def _activate_newest(self, versions: Sequence[Artifact]) -> None:
        if not versions:
            return
        name = versions[0].model
        active = self._registry.active_version(name)
        traffic = self._traffic.of(name)
        if not active and traffic is not None:
            # A version that a running server refused must not serve because another one starts.
            found = await self._incompatible(versions, traffic)
            bad = {each.artifact for each in found}
            good = [each for each in versions if each not in bad]
            # A replay compares the newest one with the one before, which is loaded for it.
            await self._activate_first(good if traffic.replay is None else good[:-1])
            active = self._registry.active_version(name)
            for each in found:
                if each.before == active and each.artifact.version > active:
                    now = self._circumstances(name)
                    self._refusals.add(each.artifact, each.reason, each.fingerprint, now)
        for artifact in reversed(versions):
            if artifact.version <= active:
                return
            if await self._try(artifact):
                return

    async def _incompatible(
        self, versions: Sequence[Artifact], traffic: Traffic
    ) -> list[Incompatible]:
        """Return the versions of a model that must not serve; see `Trial.incompatible`."""
        if self._trial is None or len(versions) < 2 or traffic.accept_incompatible is True:
            return []
        compare = partial(self._trial.incompatible, versions, traffic)
        try:
            found = await self._off_the_loop(compare)
        except Exception:
            logger.exception("versions of model %s could not be compared", versions[0].model)
            return []
        return [
            each._replace(reason=_with_remedy(each.reason, each.artifact.version)) for each in found
        ]

    async def _activate_first(self, versions: Sequence[Artifact]) -> None:
        """Activate the newest of these versions that can be loaded, or none."""
        for artifact in reversed(versions):
            if await self._try(artifact):
                return

    async def _try(self, artifact: Artifact) -> bool:
        """Load an artifact and activate it, if it is good and its traffic file still asks for it.

        Returns False if it was refused, now or with the same files before.
        """
        model = self._registry.version(artifact.model, artifact.version)
        if model is None:
            model = await self._load(artifact, self._circumstances(artifact.model))
        if model is None or not await self._passes(artifact, model):
            return False
        if missing := self._tables.missing(model.manifest):
            self._refusals.add(artifact, missing)
            return False
        if self._wanted(artifact.model) in ("latest", artifact.version):
            self._registry.activate(artifact, model)
        return True

    def _is_new(self, model: Model) -> bool:
        """Whether a version is not in the registry yet."""
        manifest = model.manifest
        return self._registry.version(manifest.name, manifest.version) is not model

    def _needs_trial(self, model: Model) -> bool:
        """Whether a version must be examined before it answers requests.

        The first version of a model has nothing to be compared with. A return to an older version
        must not fail because of what the newer one is like.
        """
        active = self._registry.active_version(model.manifest.name)
        is_newer = 0 < active < model.manifest.version
        return self._trial is not None and is_newer and model.label not in self._passed

    def _circumstances(self, name: str) -> object:
        """Return what an examination of a model's version depends on, besides the version."""
        traffic = self._traffic.of(name) or Traffic()
        gates = traffic.replay, traffic.accept_incompatible
        policies = "" if self._trial is None else self._trial.policies_version
        return *gates, policies, self._registry.active_version(name)

    async def _passes(self, artifact: Artifact, model: Model) -> bool:
        """Examine a loaded version, unless it has passed; refuse it if it fails."""
        name = artifact.model
        circumstances = self._circumstances(name)
        fingerprint = self._loaded[model.label][1]
        if self._needs_trial(model):
            if self._refusals.repeat(artifact, fingerprint, circumstances):
                return False
            reason = await self._examine(model)
            if reason:
                self._refusals.add(artifact, reason, fingerprint, circumstances)
                if self._is_new(model):
                    self._loaded.pop(model.label)
                return False
        self._refusals.forget(artifact)
        self._passed.add(model.label)
        return True

    async def _examine(self, model: Model) -> str:
        """Return why a version must not serve, or nothing."""
        name = model.manifest.name
        traffic = self._traffic.of(name) or Traffic()
        active = self._registry.active(name)
        trial = self._trial
        assert trial is not None
        try:
            before, version = active.manifest.version, model.manifest.version
            if not traffic.accepts_incompatible(version, before):
                check = partial(trial.incompatibility, active, model)
                if problem := await self._background.run(check):
                    return _with_remedy(problem, version)
            if traffic.replay is None:
                return ""
            is_good, summary = await self._background.run(
                partial(trial.replay, active, model, traffic.replay)
            )
        except Exception as error:
            logger.exception("model %s could not be examined", model)
            return f"examination failed: {type(error).__name__}: {error}"
        if not is_good:
            return f"replay of recorded traffic: {summary}"
        self._registry.replays[model.label] = summary
        level = logging.WARNING if summary.startswith("not replayed") else logging.INFO
        logger.log(level, "model %s passes the replay of recorded traffic: %s", model, summary)
        return ""

    async def _load(self, artifact: Artifact, circumstances: object) -> Model | None:
        """Load and warm up an artifact; None if it is refused, now or with these files before."""
        fingerprint = None
        try:
            fingerprint = await asyncio.to_thread(artifact.fingerprint)
            if self._refusals.repeat(artifact, fingerprint, circumstances):
                return None
            manifest = await asyncio.to_thread(read_manifest, artifact)
            if missing := await self._tables.prepare(manifest):
                self._refusals.add(artifact, missing)  # until a table of the right kind is there
                return None
            model = await self._load_in_thread(artifact)
            await self._warm_up(model)
            await self._tables.examine_fold(model)
        except ArtifactInvalid as error:
            self._refusals.add(artifact, str(error), fingerprint)
        except OSError as error:  # it may pass: the next refresh tries again
            self._refusals.add(artifact, f"cannot be read now: {_os_reason(error)}")
        except Exception as error:
            # Whatever one artifact does, the others must be looked at.
            logger.exception("artifact %s could not be loaded", artifact)
            self._refusals.add(artifact, f"{type(error).__name__}: {error}", fingerprint)
        else:
            self._tables.assign(model)
            self._loaded[model.label] = artifact, fingerprint
            return model
        return None

    async def _load_in_thread(self, artifact: Artifact) -> Model:
        return await self._off_the_loop(partial(load, artifact, self._device))

    async def _off_the_loop(self, call: Callable[[], T]) -> T:
        """Run a call on a thread, which gives way to the lanes once something is served."""
        if self._registry.has_started:
            return await self._background.run(call)
        return await asyncio.to_thread(call)

    async def _warm_up(self, model: Model) -> None:
        """Warm a version up, with recorded requests too if there are any."""
        recorded: list[RequestFeatures] = []
        if self._trial is not None:
            try:
                recorded = await self._background.run(partial(self._trial.recorded, model))
            except Exception:
                logger.exception("recorded traffic cannot be read to warm up %s", model)
        is_beside = self._registry.has_started
        self._on_warm(model, await self._warm_ups.run(model, recorded, beside_requests=is_beside))
        if recorded:
            logger.info("model %s is warmed up with %d recorded requests", model, len(recorded))

    async def _warm_up_folded(self, model: Model, table: Table) -> None:
        is_beside = self._registry.has_started
        await self._warm_ups.run_folded(model, table, beside_requests=is_beside)


def _with_remedy(reason: str, version: int) -> str:
    return f"{reason} ({TRAFFIC}: accept_incompatible = {version} lets it serve)"


def _os_reason(error: OSError) -> str:
    """Return the reason without the path, which callers of the API must not see."""
    name = "" if error.filename is None else f"{Path(str(error.filename)).name}: "
    return f"{name}{error.strerror or error}"
