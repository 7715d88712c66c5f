"""Examines a new version with the traffic that it will get, before it serves.

It must accept what callers send to the active version, and fit the server's policies. Recorded
requests warm it up, and show how far its scores and its order are from the active version's.

A server that starts serves what running ones serve: it compares the versions of the store one after
the other, as they were compared when they arrived. Their manifests are enough where the features
stay the same.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from app.artifacts.artifact_files import check_sizes, read_manifest
from app.artifacts.encoding import Listed
from app.artifacts.inputs import DenseInput, IdListInput
from app.artifacts.loader import Interface, Model, read_unloaded
from app.artifacts.manifest import Manifest
from app.artifacts.store import Artifact
from app.artifacts.traffic_log import RecordedRequest, TrafficLog
from app.engine.request import RequestFeatures
from app.errors import ArtifactInvalid, GatehouseError, PoliciesInvalid
from app.lifecycle.examination import Incompatible
from app.lifecycle.policies import Policies
from app.lifecycle.traffic import ReplaySettings, Traffic
from app.protocol.features import encode
from app.protocol.validation import ValidationReport
from app.ranking.policies import NO_POLICIES
from app.scoring.replay import MIN_REQUESTS, Contender, replay

WARM_UP_REQUESTS = 16
_MOST_CANDIDATES = 65536
_LONGEST_PAUSE_S = 0.1


class ReplayResult(NamedTuple):
    """Whether a version may serve after a replay, and the figures."""

    passed: bool
    summary: str


class VersionExaminer:
    """Examines versions. Its methods may run on any thread, beside requests."""

    def __init__(
        self,
        policies: Policies,
        example_of: Callable[[Interface], dict[str, Any]],
        folder: Path | None,
    ) -> None:
        """Examine with the policies that are active at that time.

        Args:
            policies: of the server.
            example_of: returns an example request of a version.
            folder: of recorded traffic, if there is one.
        """
        self._policies = policies
        self._example_of = example_of
        self._folder = folder

    @property
    def policies_version(self) -> str:
        """The version of the policies that a version must fit."""
        return self._policies.active.version

    def incompatibility(self, active: Interface, model: Interface) -> str:
        """Return why requests to the active version would fail with another one, or nothing."""
        return self._misfit(model.manifest) or _rejection(self._example_of(active), active, model)

    def _misfit(self, manifest: Manifest) -> str:
        try:
            self._policies.active.policies_for(manifest.traits)
        except PoliciesInvalid as error:
            return f"the policies file does not fit it: {error}"
        return ""

    def incompatible(self, versions: Sequence[Artifact], traffic: Traffic) -> list[Incompatible]:
        """Return the versions that would have been refused if a server had seen each arrive.

        No program is loaded: each version costs the read of its manifest, and the encoding of one
        request where its features differ. A version whose files are incomplete is passed over:
        loading it says what is wrong.

        Args:
            versions: of one model, all that the store has, ascending. The oldest is taken for good.
            traffic: what the model's traffic file says now.
        """
        incompatible: list[Incompatible] = []
        active: tuple[Artifact, Manifest] | None = None
        for artifact in versions:
            try:
                fingerprint = artifact.fingerprint()
                manifest = read_manifest(artifact)
                check_sizes(artifact, manifest)
                reason = ""
                if active is not None and not traffic.accepts_incompatible(
                    artifact.version, active[0].version
                ):
                    reason = self._misfit(manifest) or self._refusal(*active, artifact, manifest)
            except (ArtifactInvalid, OSError):
                continue
            if reason and active is not None:
                incompatible.append(Incompatible(artifact, fingerprint, active[0].version, reason))
            else:
                active = artifact, manifest
        return incompatible

    def _refusal(
        self, active: Artifact, before: Manifest, artifact: Artifact, after: Manifest
    ) -> str:
        """Return why a version does not accept the example request of another one, or nothing."""
        is_same = before.inputs == after.inputs
        names = after.vocabulary_files
        if is_same and all(before.files[file] == after.files[file] for file in names):
            return ""
        needs_ids = _needs_ids(before, after)
        if is_same and not needs_ids:
            return ""
        try:
            old = read_unloaded(active, before, with_vocabularies=needs_ids)
        except (ArtifactInvalid, OSError):  # it cannot serve either
            return ""
        new = read_unloaded(artifact, after, with_vocabularies=needs_ids)
        return _rejection(self._example_of(old), old, new)

    def recorded(self, model: Model) -> list[RequestFeatures]:
        """Return features of recorded requests that a version accepts: to warm it up.

        Raises:
            OSError: the folder cannot be read.
        """
        contender = Contender(model, NO_POLICIES.policies_for(model.manifest.traits))
        requests = []
        for request in islice(self._requests(model.manifest.name), WARM_UP_REQUESTS):
            try:
                requests.append(contender.read(request.document)[0])
            except GatehouseError:
                continue
        return requests

    def replay(self, active: Model, model: Model, gates: ReplaySettings) -> ReplayResult:
        """Score recorded requests with both versions, and apply the gates.

        Without enough recorded requests, or if they cannot be read, the version passes.
        """
        before, after = (self._contender(version) for version in (active, model))
        recorded = _slowly(self._requests(model.manifest.name))
        try:
            report = replay(recorded, before, after, most_requests=gates.requests)
        except OSError as error:
            reason = f"recorded traffic cannot be read: {error.strerror or error}"
            return ReplayResult(True, f"not replayed: {reason}")
        available = report.requests + report.refused
        if available < min(MIN_REQUESTS, gates.requests):
            reason = f"{available} recorded requests are not enough, {MIN_REQUESTS} are needed"
            if self._folder is None:
                reason = "no folder of recorded traffic is set"
            return ReplayResult(True, f"not replayed: {reason}")
        failures = report.failures(gates)
        if failures:
            return ReplayResult(False, f"{'; '.join(failures)}: {report}")
        return ReplayResult(True, str(report))

    def _contender(self, model: Model) -> Contender:
        traits = model.manifest.traits
        try:
            return Contender(model, self._policies.active.policies_for(traits))
        except PoliciesInvalid:
            return Contender(model, NO_POLICIES.policies_for(traits))

    def _requests(self, name: str) -> Iterator[RecordedRequest]:
        if self._folder is not None:
            yield from TrafficLog(self._folder, name).requests()


def _rejection(example: dict[str, Any], active: Interface, model: Interface) -> str:
    """Return why a version does not accept the example request of the active one, or nothing."""
    report = ValidationReport()
    try:
        encode(
            model.manifest,
            example["user"],
            example["candidates"],
            report,
            max_candidates=_MOST_CANDIDATES,
            vocabularies=model.vocabularies,
        )
        report.raise_any()
    except GatehouseError as error:
        return f"it does not accept the example request of {active.label}: {error}"
    return ""


def _needs_ids(before: Manifest, after: Manifest) -> bool:
    """Whether the ids of an example matter: else made-up ones are accepted as they are.

    Vocabularies can be large, and are read only then.
    """
    encodings = {
        feature.name: feature.encoding
        for feature in before.inputs
        if not isinstance(feature, DenseInput)
    }
    for feature in after.inputs:
        if isinstance(feature, DenseInput):
            continue
        if encodings.get(feature.name, feature.encoding) != feature.encoding:
            return True
        has_no_row = isinstance(feature, IdListInput) and feature.reserves_padding
        if isinstance(feature.encoding, Listed) and (feature.unknown == "reject" or has_no_row):
            return True
    return False


def _slowly(recorded: Iterator[RecordedRequest]) -> Iterator[RecordedRequest]:
    """Yield requests, and pause after each for as long as it took: serving goes first."""
    began = time.monotonic()
    for request in recorded:
        yield request
        time.sleep(min(_LONGEST_PAUSE_S, time.monotonic() - began))
        began = time.monotonic()
