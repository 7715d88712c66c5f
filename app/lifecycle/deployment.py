"""Deployment: load the versions of each model that its traffic file asks for, and give them roles.

A version is loaded, examined, and only then activated. If any of that fails, the version that was
active stays active, and other models are not affected. Once something is served, versions are
loaded and examined on a thread beside the lanes. On a CPU they are warmed up there, too; on a GPU
on the lanes.

`Deployment.refresh` is the whole flow, from top to bottom: list the store, read traffic.toml, give
loaded versions their roles; then load and examine what is missing, activate it, start a canary and
a shadow, and free the versions that have no role any more.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NoReturn

import torch

from app.artifacts.loader import Model
from app.artifacts.store import Artifact, Store
from app.artifacts.tables.table import Table
from app.engine.lanes import Lane
from app.errors import ArtifactInvalid
from app.lifecycle.background import BackgroundThread
from app.lifecycle.canaries import Canaries
from app.lifecycle.examination import Examination, Examiner
from app.lifecycle.loaded_files import LoadedFiles
from app.lifecycle.poll_timer import PollTimer
from app.lifecycle.refusals import Refusals
from app.lifecycle.registry import Registry, Role
from app.lifecycle.shadows import Shadows
from app.lifecycle.store_scanner import StoreScanner
from app.lifecycle.table_follower import TableFollower
from app.lifecycle.traffic import TRAFFIC, Traffic
from app.lifecycle.traffic_files import TrafficFiles
from app.lifecycle.version_loader import VersionLoader
from app.lifecycle.warm_up import BatchTimings, WarmUp
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_MOST_KNOWN = 20  # versions that a message lists


class Deployment:
    """Keeps a registry up to date with a store; owned by the event loop."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        lanes: Sequence[Lane],
        metrics: Metrics,
        *,
        device: torch.device,
        warm_up_sizes: Sequence[Sequence[int]],
        on_warm: Callable[[Model, BatchTimings], None],
        examiner: Examiner | None = None,
        place_table: Callable[[Table], None] | None = None,
    ) -> None:
        """Load nothing yet; the registry has not started until the first `refresh` is over.

        Args:
            store: contains the versions.
            registry: receives active and refused versions.
            lanes: run the warm-up batches; on a CPU only until something is served.
            metrics: counts failures to read the store.
            device: models are loaded onto it.
            warm_up_sizes: of the warm-up batches, each as the rows of its requests.
            on_warm: called before a version is activated, with the cost of its batches.
            examiner: examines a new version before it serves.
            place_table: copies an item table to where batches are gathered; see `TableFollower`.
        """
        background = BackgroundThread()
        warm_up = WarmUp(lanes, background, warm_up_sizes, is_on_cpu=device.type == "cpu")

        async def warm_up_folded(model: Model, table: Table) -> None:
            await warm_up.run_folded(model, table, beside_requests=registry.has_started)

        self._registry = registry
        self._metrics = metrics
        self._scanner = StoreScanner(store, registry, metrics)
        self._traffic = TrafficFiles(store.folder, registry, metrics)
        self._tables = TableFollower(store.folder, registry, metrics, warm_up_folded, place_table)
        self._refusals: Refusals[Artifact] = Refusals(
            registry.refused, registry.refuse, may_be_copied=lambda: registry.has_started
        )
        self._files = LoadedFiles(registry, metrics, background)
        self._loader = VersionLoader(
            registry,
            self._refusals,
            self._files,
            self._tables,
            background,
            warm_up,
            device=device,
            on_warm=on_warm,
            recorded=None if examiner is None else examiner.recorded,
        )
        self._examination = Examination(registry, self._refusals, self._files, background, examiner)
        self._canaries = Canaries(registry, metrics)
        self._shadows = Shadows(registry)
        self._unassigned: dict[str, dict[Role, str]] = {}  # the reasons that were reported
        registry.has_started = False

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
                    await self._apply_changes_to_all()
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

    async def refresh(self) -> None:
        """Give every model in the store the versions and roles that its traffic file asks for.

        By default that is the newest good version above the active one. A refused version is tried
        again when its files have changed. Removing the active version from the store is reported,
        and changes nothing until the server starts again.

        Raises:
            ArtifactInvalid: the store has artifacts, but nothing is active and nothing can be.
            OSError: the store cannot be read now. It is logged and counted.
        """
        listing = await self._scanner.scan()
        versions_of = {
            name: list(versions)
            for name, versions in groupby(listing.artifacts, attrgetter("model"))
        }
        self._forget_removed(versions_of)
        for name in versions_of:
            await self._apply_changes(name)
        for name, versions in versions_of.items():
            await self._deploy(name, versions)
        await self._files.check()
        self._metrics.keep_only({model.label for model in self._registry.loaded()})
        if self._registry.active_models():
            self._registry.has_started = True
        elif listing.artifacts:
            raise ArtifactInvalid("; ".join(self._reasons()))

    def _forget_removed(self, versions_of: Mapping[str, Sequence[Artifact]]) -> None:
        """Forget what was wrong with models and versions that the store does not have any more."""
        artifacts = {artifact for versions in versions_of.values() for artifact in versions}
        self._refusals.keep_only(artifacts.__contains__)
        self._traffic.forget_all_but(versions_of)

    def _reasons(self) -> list[str]:
        """Say why nothing is active."""
        registry = self._registry
        reasons = [f"{artifact}: {reason}" for artifact, reason in registry.refused.items()]
        for problems in (registry.traffic_problems, registry.unassigned):
            reasons += [f"{name}: {reason}" for name, reason in problems.items()]
        return reasons

    # What needs no version to be loaded

    async def _apply_changes_to_all(self) -> None:
        """Apply changes to every model; a loop in `follow` would keep the last one in memory."""
        for model in self._registry.active_models():
            await self._apply_changes(model.manifest.name)

    async def _apply_changes(self, name: str) -> None:
        """Read a model's traffic file, open new tables, and give loaded versions their roles."""
        await self._traffic.read(name)
        await self._tables.refresh(name)
        self._switch(name)
        self._canaries.evaluate(name)
        self._shadows.stop_outdated(name)

    def _switch(self, name: str) -> None:
        """Activate the version of a model that its traffic file names, if it is loaded.

        Until that one is active there is no canary: the gates would compare it with another one.
        """
        if name not in self._registry.traffic:
            return
        self._canaries.stop_outdated(name)
        wanted = self._wanted(name)
        if wanted in ("latest", self._registry.active_version(name)):
            return
        model = self._registry.version(name, int(wanted))
        if model is not None and not self._examination.is_due(model):
            if missing := self._tables.missing(model.manifest):
                self._report_active(name, wanted, missing)
            else:
                self._registry.switch(model)
        self._canaries.stop_running(name)

    def _wanted(self, name: str) -> int | str:
        """Return the version of a model that should be active, or "latest"."""
        traffic = self._registry.traffic.get(name) or Traffic()
        return self._canaries.promoted_version(name) or traffic.active

    # What may need versions to be loaded

    async def _deploy(self, name: str, versions: Sequence[Artifact]) -> None:
        """Load, examine, activate and free versions of one model as its traffic file says.

        Args:
            name: of the model.
            versions: all that the store has, ascending.
        """
        traffic = self._registry.traffic.get(name)
        if traffic is None:  # the file was wrong from the start
            return
        wanted = self._wanted(name)
        if wanted == "latest":
            tried = [role.version for role in (traffic.canary, traffic.shadow) if role is not None]
            candidates = [artifact for artifact in versions if artifact.version not in tried]
            await self._activate_newest(name, candidates)
        elif wanted != self._registry.active_version(name):
            await self._activate_named(name, int(wanted), versions)
        if self._check_active(name, versions):
            await self._start_canary(name, versions)
        else:
            self._report_unassigned(name, Role.CANARY, "")  # it waits; see `_switch`
        await self._start_shadow(name, versions)
        self._registry.compare(name)
        self._free_others(name)

    async def _activate_newest(self, name: str, versions: Sequence[Artifact]) -> None:
        """Activate the newest version above the active one that may serve."""
        if not self._registry.active_version(name):
            await self._activate_first(name, versions)
        active = self._registry.active_version(name)
        for artifact in reversed(versions):
            if artifact.version <= active or await self._activate(artifact):
                return

    async def _activate_first(self, name: str, versions: Sequence[Artifact]) -> None:
        """Activate the version that running servers serve, or the one that a replay needs.

        A version that they refused must not serve because another server starts. Manifests show
        which ones those are; only a replay needs the version before to be loaded.
        """
        incompatible = await self._examination.incompatible(name, versions)
        bad = {version.artifact for version in incompatible}
        good = [artifact for artifact in versions if artifact not in bad]
        traffic = self._registry.traffic.get(name) or Traffic()
        for artifact in reversed(good if traffic.replay is None else good[:-1]):
            if await self._activate(artifact):
                break
        circumstances = self._examination.circumstances(name)
        for artifact, fingerprint, before, reason in incompatible:
            if before == self._registry.active_version(name) < artifact.version:
                self._refusals.add(artifact, reason, fingerprint, circumstances)

    async def _activate_named(self, name: str, version: int, versions: Sequence[Artifact]) -> None:
        """Activate the version that the traffic file names.

        A server that starts has nothing else to serve, so it serves this version even if running
        servers refuse it, and says so. It does not replay it: nobody knows whether it came after
        the version below it or is a return from a newer one, which must not fail.
        """
        is_start = not self._registry.active_version(name)
        artifact = _find(versions, version)
        if artifact is None or not await self._activate(artifact) or not is_start:
            return
        if self._registry.traffic[name].replay is not None and artifact != versions[0]:
            reason = f"not replayed: {TRAFFIC} named it when the server started"
            self._registry.replays[str(artifact)] = reason
            logger.info("model %s is %s", artifact, reason)
        for incompatible in await self._examination.incompatible(name, versions):
            if incompatible.artifact == artifact:
                problem = f"serves because {TRAFFIC} names it, but running servers refuse it"
                logger.warning("model %s %s: %s", artifact, problem, incompatible.reason)
                event = f"{artifact} {problem}: {incompatible.reason}"
                self._registry.events.add("version", event, is_problem=True)

    async def _activate(self, artifact: Artifact) -> bool:
        """Load and examine a version, and activate it; return whether it may serve.

        Its files must be whole and its scores those of the golden examples, batches of every size
        must run, it must pass the examination, and it must have the tables that it needs. It is
        refused at the first of these that it fails.
        """
        name = artifact.model
        model = self._registry.version(name, artifact.version)
        if model is None:
            model = await self._loader.load(artifact, self._examination.circumstances(name))
        if model is None or not await self._examination.examine(artifact, model):
            return False
        if missing := self._tables.missing(model.manifest):
            self._refusals.add(artifact, missing)
            return False
        if self._wanted(name) in ("latest", artifact.version):  # the file may have changed since
            self._registry.activate(artifact, model)
        return True

    def _check_active(self, name: str, versions: Sequence[Artifact]) -> bool:
        """Return whether the version that the traffic file names is active; if not, report why."""
        wanted = self._wanted(name)
        if wanted in ("latest", self._registry.active_version(name)):
            self._report_unassigned(name, Role.ACTIVE, "")
            return True
        artifact = _find(versions, int(wanted))
        if artifact is None:
            known = ", ".join(str(artifact.version) for artifact in versions[-_MOST_KNOWN:])
            reason = f"version {wanted} is not in the store (versions: {known})"
        else:
            reason = self._registry.refused.get(artifact, f"version {wanted} is not loaded")
        self._report_active(name, wanted, reason)
        return False

    async def _start_canary(self, name: str, versions: Sequence[Artifact]) -> None:
        """Load the canary that a traffic file asks for, and let it have its share."""
        self._canaries.stop_outdated(name)
        settings = self._canaries.due(name)
        problem = ""
        if settings is not None:
            model, problem = await self._load_beside(name, settings.version, versions, Role.CANARY)
            if self._canaries.due(name) != settings:  # the file has changed since
                return
            if model is not None:
                problem = self._canaries.start(name, settings, model)
        self._report_unassigned(name, Role.CANARY, problem)

    async def _start_shadow(self, name: str, versions: Sequence[Artifact]) -> None:
        """Load the shadow that a traffic file asks for, and compare it with the active version."""
        self._shadows.stop_outdated(name)
        settings = self._shadows.due(name)
        problem = ""
        if settings is not None and settings.version != self._wanted(name):
            model, problem = await self._load_beside(name, settings.version, versions, Role.SHADOW)
            if self._shadows.due(name) != settings:  # the file has changed since
                return
            if model is not None:
                self._shadows.start(name, settings, model)
        self._report_unassigned(name, Role.SHADOW, problem)

    async def _load_beside(
        self, name: str, version: int, versions: Sequence[Artifact], role: Role
    ) -> tuple[Model | None, str]:
        """Return a version that is not to be active, loaded if need be; None and why if it is not.

        A canary must also pass the examination of a version that answers requests.
        """
        registry, examination = self._registry, self._examination
        is_examined = role == Role.CANARY
        model = registry.version(name, version)
        artifact = _find(versions, version)
        if artifact is not None:
            if model is None:
                # One that has failed its examination is loaded if it need not pass it.
                circumstances = examination.circumstances(name) if is_examined else None
                model = await self._loader.load(artifact, circumstances)
            if model is not None and is_examined and not await examination.examine(artifact, model):
                model = None
            if model is not None and registry.version(name, version) is not model:
                self._refusals.forget(artifact)
                registry.add(artifact, model)
        if model is not None:
            return model, ""
        reason = f"version {version} is not in the store"
        if artifact is not None:
            reason = registry.refused.get(artifact, f"version {version} is not loaded")
        return None, f"{TRAFFIC}: version {version} does not get its role: {reason}"

    def _report_active(self, name: str, wanted: int | str, reason: str) -> None:
        """Say why the version that the traffic file names is not active."""
        self._report_unassigned(name, Role.ACTIVE, f"{TRAFFIC}: active = {wanted}: {reason}")

    def _report_unassigned(self, name: str, role: Role, reason: str) -> None:
        """Say why a version does not have the role that the traffic file gives it; "" if it has.

        A reason is logged when it is new: the file is looked at again at every poll.
        """
        registry, reasons = self._registry, self._unassigned.setdefault(name, {})
        if not reason:
            reasons.pop(role, None)
        elif reasons.get(role) != reason:
            reasons[role] = reason
            logger.error("model %s: %s", name, reason)
            registry.events.add("traffic", f"{name}: {reason}", is_problem=True)
        if reasons:
            registry.unassigned[name] = "; ".join(reasons.values())
        else:
            registry.unassigned.pop(name, None)

    def _free_others(self, name: str) -> None:
        """Free the versions of a model that have no role."""
        traffic = self._registry.traffic.get(name) or Traffic()
        kept = self._registry.previous(name)[: traffic.keep]
        canary = self._registry.last_canaries.get(name)
        if canary is not None and canary.state == "running":
            kept.append(canary.settings.version)
        if name in self._registry.shadows:
            kept.append(self._registry.shadows[name].other.manifest.version)
        self._registry.free_all_but(name, kept)
        self._files.forget_freed(name)
        self._examination.forget_freed(name)


def _find(versions: Sequence[Artifact], version: int) -> Artifact | None:
    return next((artifact for artifact in versions if artifact.version == version), None)
