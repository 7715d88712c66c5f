"""Statistics of requests: the hot path appends one record each, which is counted in bulk later.

`prometheus_client` takes a microsecond for each counter and histogram, and a scored request has
fifteen of them. Here a request appends one record (0.3 µs); records are counted together by
`RequestCounter.drain`, at each scrape and several times a second.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

from prometheus_client import Counter

from app.telemetry.bulk_histogram import BulkHistogram

STAGES = ("decode", "encode", "queue", "collate", "compute", "rank", "respond")
"""Where the time of a scoring request goes, in order."""
GPU_STAGES = (*STAGES[:4], "copy_in", "compute", "copy_out", *STAGES[5:])
"""The same where a batch is copied to a GPU and back."""


class RequestRecord(NamedTuple):
    """One request that was answered.

    Attributes:
        route: the path's template.
        model: the model's name, or empty.
        status: of the response; 499 if the client disconnected first.
        duration_s: from the request's head to its response (s).
        version: `name/version` of the model that scored it, or empty.
        key: the name of the API key, or empty.
        policy: the policy that ranked it, or empty.
        candidates: how many were scored.
        stages: seconds by stage, in the order of `STAGES` or `GPU_STAGES`; empty without scores.
        role: of the version in traffic, or empty.
    """

    route: str
    model: str
    status: int
    duration_s: float
    version: str = ""
    key: str = ""
    policy: str = ""
    candidates: int = 0
    stages: Sequence[float] = ()
    role: str = ""


@dataclass(slots=True)
class VersionStatistics:
    """Sums over the requests and batches of one version since it was loaded.

    Attributes:
        succeeded: requests answered with scores.
        succeeded_s: time from their arrival to their responses.
        failed: requests that were refused or failed.
        failed_s: time from their arrival to that.
        rows: candidates of the requests that succeeded.
        batches: batches that ran.
        queue_s: time that the requests that succeeded were queued.
        collate_s: time to collate their batches.
        compute_s: time in the model.
        respond_s: time to rank candidates and write responses.
        last_unix_s: when the last request succeeded; 0 before the first.
    """

    succeeded: int = 0
    succeeded_s: float = 0.0
    failed: int = 0
    failed_s: float = 0.0
    rows: int = 0
    batches: int = 0
    queue_s: float = 0.0
    collate_s: float = 0.0
    compute_s: float = 0.0
    respond_s: float = 0.0
    last_unix_s: float = 0.0

    def add(self, record: RequestRecord, now_unix_s: float) -> None:
        """Add one request."""
        if not record.stages:
            self.failed += 1
            self.failed_s += record.duration_s
            return
        stages = record.stages
        self.succeeded += 1
        self.succeeded_s += record.duration_s
        self.rows += record.candidates
        self.queue_s += stages[2]
        self.collate_s += stages[3]
        self.compute_s += stages[4] if len(stages) == len(STAGES) else stages[5]
        self.respond_s += stages[-2] + stages[-1]
        self.last_unix_s = now_unix_s


class RequestCounter:
    """Counts records into series. The event loop appends; any thread may drain."""

    def __init__(
        self,
        requests: Counter,
        calls: Counter,
        applied: Counter,
        durations: BulkHistogram,
        stages: BulkHistogram,
        candidates: BulkHistogram,
        roles: Counter,
    ) -> None:
        """Count into these series."""
        self._requests = requests
        self._calls = calls
        self._applied = applied
        self._durations = durations
        self._stages = {stage: stages.observer(stage) for stage in GPU_STAGES}
        self._candidates = candidates.observer()
        self._roles = roles
        self._records: deque[RequestRecord] = deque()
        self._versions: dict[str, VersionStatistics] = {}
        self._lock = Lock()
        self.append: Callable[[RequestRecord], None] = self._records.append

    def version(self, version: str) -> VersionStatistics:
        """Return the statistics of a version, `name/version`, up to now."""
        self.drain()
        return self._versions.get(version) or VersionStatistics()

    def batch_ran(self, version: str) -> None:
        """Count one batch of a version."""
        with self._lock:
            self._statistics(version).batches += 1

    def forget(self, version: str) -> None:
        """Drop the statistics of a version that is no longer loaded."""
        with self._lock:
            self._versions.pop(version, None)

    def keep_only(self, versions: Collection[str]) -> None:
        """Drop the statistics of all other versions, which late requests brought back."""
        with self._lock:
            self._versions = {
                v: statistics for v, statistics in self._versions.items() if v in versions
            }

    def drain(self) -> None:
        """Count what was appended since the last time."""
        with self._lock:
            records = [self._records.popleft() for _ in range(len(self._records))]
            if records:
                self._count(records)

    def _count(self, records: Sequence[RequestRecord]) -> None:
        now_unix_s = time.time()
        by_response: dict[tuple[str, str, int], list[float]] = {}
        calls: dict[tuple[str, int], int] = {}
        applied: dict[str, int] = {}
        roles: dict[tuple[str, str, int], int] = {}
        for record in records:
            response = record.route, record.model, record.status
            by_response.setdefault(response, []).append(record.duration_s)
            if record.key:
                call = record.key, record.status
                calls[call] = calls.get(call, 0) + 1
            if record.policy:
                applied[record.policy] = applied.get(record.policy, 0) + 1
            if record.role:
                role = record.model, record.role, record.status
                roles[role] = roles.get(role, 0) + 1
            if record.version:
                self._statistics(record.version).add(record, now_unix_s)
            if record.stages:
                self._candidates(record.candidates)
                names = STAGES if len(record.stages) == len(STAGES) else GPU_STAGES
                for name, stage_s in zip(names, record.stages, strict=True):
                    self._stages[name](stage_s)
        for (route, model, status), durations in by_response.items():
            self._requests.labels(route, model, str(status)).inc(len(durations))
            observe = self._durations.observer(route, model)
            for duration_s in durations:
                observe(duration_s)
        for (key, status), number in calls.items():
            self._calls.labels(key, str(status)).inc(number)
        for (model, name, status), number in roles.items():
            self._roles.labels(model, name, str(status)).inc(number)
        for policy, number in applied.items():
            self._applied.labels(policy).inc(number)

    def _statistics(self, version: str) -> VersionStatistics:
        statistics = self._versions.get(version)
        if statistics is None:
            statistics = self._versions[version] = VersionStatistics()
        return statistics


def stage_names(stages: Sequence[float]) -> Mapping[str, float]:
    """Return the stages of a record by name."""
    names = STAGES if len(stages) == len(STAGES) else GPU_STAGES
    return dict(zip(names, stages, strict=True))
