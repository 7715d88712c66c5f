"""Examines newer versions before they answer requests: will callers get what they expect?

A version must accept the requests of the active one, fit the policies, and pass the gates of
`[replay]` on recorded traffic. How it does so is known to `app.scoring.version_examiner`.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

from app.artifacts.loader import Model
from app.artifacts.store import Artifact, Fingerprint
from app.engine.request import RequestFeatures
from app.lifecycle.background import BackgroundThread
from app.lifecycle.loaded_files import LoadedFiles
from app.lifecycle.refusals import Refusals
from app.lifecycle.registry import Registry
from app.lifecycle.traffic import TRAFFIC, ReplaySettings, Traffic

logger = logging.getLogger(__name__)


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


class Examiner(Protocol):
    """Compares versions; its methods may run on any thread. See `app.scoring.version_examiner`."""

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


class Examination:
    """Examines the versions of a registry; owned by the event loop."""

    def __init__(
        self,
        registry: Registry,
        refusals: Refusals[Artifact],
        files: LoadedFiles,
        background: BackgroundThread,
        examiner: Examiner | None,
    ) -> None:
        """Examine nothing yet; without an `examiner` every version passes.

        Args:
            registry: has the active versions, and gets the figures of replays.
            refusals: gets the versions that fail.
            files: knows which files a version was loaded from.
            background: computes once something is served.
            examiner: compares a version with the active one.
        """
        self._registry = registry
        self._refusals = refusals
        self._files = files
        self._background = background
        self._examiner = examiner
        self._passed: set[str] = set()  # `name/version` of loaded versions that may serve

    def circumstances(self, name: str) -> object:
        """Return what the examination of a model's version depends on, besides the version."""
        traffic = self._registry.traffic.get(name) or Traffic()
        gates = traffic.replay, traffic.accept_incompatible
        policies = "" if self._examiner is None else self._examiner.policies_version
        return *gates, policies, self._registry.active_version(name)

    def is_due(self, model: Model) -> bool:
        """Whether a loaded version must be examined before it answers requests.

        The first version of a model has nothing to be compared with. A return to an older version
        must not fail because of what the newer one is like.
        """
        active = self._registry.active_version(model.manifest.name)
        is_newer = 0 < active < model.manifest.version
        return self._examiner is not None and is_newer and model.label not in self._passed

    async def examine(self, artifact: Artifact, model: Model) -> bool:
        """Examine a loaded version if it is due, and refuse it if it fails.

        Returns whether it may answer requests.
        """
        if self.is_due(model):
            fingerprint = self._files.fingerprint(model)
            circumstances = self.circumstances(artifact.model)
            if self._refusals.repeat(artifact, fingerprint, circumstances):
                return False
            if problem := await self._problem(model):
                self._refusals.add(artifact, problem, fingerprint, circumstances)
                return False
        self._refusals.forget(artifact)
        self._passed.add(model.label)
        return True

    async def _problem(self, model: Model) -> str:
        """Return why a version must not serve, or nothing."""
        name, version = model.manifest.name, model.manifest.version
        traffic = self._registry.traffic.get(name) or Traffic()
        active = self._registry.active(name)
        examiner = self._examiner
        assert examiner is not None
        try:
            if not traffic.accepts_incompatible(version, active.manifest.version):
                check = partial(examiner.incompatibility, active, model)
                if problem := await self._background.run(check):
                    return with_remedy(problem, version)
            if traffic.replay is None:
                return ""
            is_good, summary = await self._background.run(
                partial(examiner.replay, active, model, traffic.replay)
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

    async def incompatible(self, name: str, versions: Sequence[Artifact]) -> list[Incompatible]:
        """Return the versions of a model that running servers refuse; see `Examiner.incompatible`.

        Args:
            name: of the model.
            versions: all of them, ascending; none needs to be loaded.
        """
        traffic = self._registry.traffic.get(name) or Traffic()
        if self._examiner is None or len(versions) < 2 or traffic.accept_incompatible is True:
            return []
        compare = partial(self._examiner.incompatible, versions, traffic)
        try:
            incompatible = await self._background.run(
                compare, beside_requests=self._registry.has_started
            )
        except Exception:
            logger.exception("versions of model %s could not be compared", name)
            return []
        return [
            version._replace(reason=with_remedy(version.reason, version.artifact.version))
            for version in incompatible
        ]

    def forget_freed(self, name: str) -> None:
        """Forget the versions of a model that are not loaded any more."""
        loaded = {model.label for model in self._registry.versions(name)}
        self._passed = {
            label for label in self._passed if label in loaded or label.split("/")[0] != name
        }


def with_remedy(reason: str, version: int) -> str:
    """Add how to let an incompatible version serve nevertheless."""
    return f"{reason} ({TRAFFIC}: accept_incompatible = {version} lets it serve)"
