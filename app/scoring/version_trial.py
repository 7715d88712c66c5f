"""Examines a new version with the traffic that it will get, before it serves.

It must accept what callers send to the active version, and fit the server's policies. Recorded
requests warm it up, and show how far its scores and its order are from the active version's.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from app.artifacts.loader import Model
from app.artifacts.traffic_log import RecordedRequest, TrafficLog
from app.engine.request import RequestFeatures
from app.errors import GatehouseError, PoliciesInvalid
from app.lifecycle.policies import Policies
from app.lifecycle.traffic import ReplaySettings
from app.ranking.policies import NO_POLICIES
from app.scoring.replay import MIN_REQUESTS, Contender, replay

WARM_UP_REQUESTS = 16
_LONGEST_PAUSE_S = 0.1


class ReplayResult(NamedTuple):
    """Whether a version may serve after a replay, and the figures."""

    passed: bool
    summary: str


class VersionTrial:
    """Examines versions. Its methods may run on any thread, beside requests."""

    def __init__(
        self,
        policies: Policies,
        example_of: Callable[[Model], dict[str, Any]],
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

    def incompatibility(self, active: Model, model: Model) -> str:
        """Return why requests to the active version would fail with another one, or nothing."""
        try:
            policies = self._policies.active.policies_for(model.manifest.traits)
        except PoliciesInvalid as error:
            return f"the policies file does not fit it: {error}"
        try:
            Contender(model, policies).read(self._example_of(active))
        except GatehouseError as error:
            return f"it does not accept the example request of {active}: {error}"
        return ""

    def recorded(self, model: Model) -> list[RequestFeatures]:
        """Return features of recorded requests that a version accepts: to warm it up.

        Raises:
            OSError: the folder cannot be read.
        """
        contender = Contender(model, NO_POLICIES.policies_for(model.manifest.traits))
        found = []
        for request in islice(self._requests(model.manifest.name), WARM_UP_REQUESTS):
            try:
                found.append(contender.read(request.document)[0])
            except GatehouseError:
                continue
        return found

    def replay(self, active: Model, model: Model, gates: ReplaySettings) -> ReplayResult:
        """Score recorded requests with both versions, and apply the gates.

        Without enough recorded requests, or if they cannot be read, the version passes.
        """
        before, after = (self._contender(each) for each in (active, model))
        recorded = _slowly(self._requests(model.manifest.name))
        try:
            report = replay(recorded, before, after, most_requests=gates.requests)
        except OSError as error:
            reason = f"recorded traffic cannot be read: {error.strerror or error}"
            return ReplayResult(True, f"not replayed: {reason}")
        found = report.requests + report.refused
        if found < min(MIN_REQUESTS, gates.requests):
            where = "no folder of recorded traffic is set" if self._folder is None else ""
            where = where or f"{found} recorded requests are not enough, {MIN_REQUESTS} are needed"
            return ReplayResult(True, f"not replayed: {where}")
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


def _slowly(recorded: Iterator[RecordedRequest]) -> Iterator[RecordedRequest]:
    """Yield requests, and pause after each for as long as it took: serving goes first."""
    began = time.monotonic()
    for request in recorded:
        yield request
        time.sleep(min(_LONGEST_PAUSE_S, time.monotonic() - began))
        began = time.monotonic()
