"""Prometheus metrics: every series the service exports, created up front.

Durations are in seconds, labels are bounded, and label sets that are known are created with the
registry, so that `rate()` starts from zero. Counting is cheap and thread-safe; rendering is not
cheap and belongs off the event loop.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.telemetry.bulk_histogram import BulkHistogram, Observe
from app.telemetry.ranking import RankingMetrics

STAGES = ("decode", "encode", "queue", "collate", "compute", "rank", "respond")
"""Where the time of a scoring request goes, in order."""
GPU_STAGES = (*STAGES[:4], "copy_in", "compute", "copy_out", *STAGES[5:])
"""The same where a batch is copied to a GPU and back."""

CANCEL_STAGES = ("body", "queue", "compute")
"""Where a caller is found to have left."""

LATENCY_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05),
    *(0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
STAGE_BUCKETS = (
    *(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.5, 1.0, 5.0),
)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
REQUEST_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The service's series on one registry; no other code creates any."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Create every series on `registry`, or on one of its own."""
        self.registry = registry or CollectorRegistry()
        self._tallies: list[BulkHistogram] = []
        self._answered: dict[tuple[str, str, int], tuple[Callable[[], None], Observe]] = {}
        self._create_for_requests()
        self._create_for_batches()
        self._create_for_models()
        self._create_for_the_process()
        self.ranking = RankingMetrics(self.registry)

    def _create_for_requests(self) -> None:
        self._requests = self._counter(
            "requests_total", "Requests answered.", ("route", "model", "status")
        )
        self._calls = self._counter(
            "requests_by_key_total",
            "Scoring requests answered, by the key's name.",
            ("key", "status"),
        )
        self._durations = self._tally(
            "request_duration_seconds",
            "From the request's headers to the end of its answer.",
            LATENCY_BUCKETS,
            ("route", "model"),
        )
        stages = self._tally(
            "stage_duration_seconds",
            "Where the time of scored requests goes.",
            STAGE_BUCKETS,
            ("stage",),
        )
        self._stages = {stage: stages.into(stage) for stage in GPU_STAGES}
        self._candidates = self._tally(
            "request_candidates", "Candidates in a scored request.", ROW_BUCKETS
        ).into()
        self._shed = self._counter(
            "shed_total", "Requests that were refused or dropped for lack of time.", ("reason",)
        )
        for reason in ("overloaded", "bodies", "deadline-unmeetable", "deadline-exceeded"):
            self._shed.labels(reason)
        self._cancelled = self._counter(
            "cancelled_total", "Requests whose callers left, by where that was found.", ("stage",)
        )
        for stage in CANCEL_STAGES:
            self._cancelled.labels(stage)

    def _create_for_batches(self) -> None:
        self._batch_rows = self._tally("batch_rows", "Rows in a batch.", ROW_BUCKETS).into()
        self._batch_requests = self._tally(
            "batch_requests", "Requests in a batch.", REQUEST_BUCKETS
        ).into()
        self._lane_busy = self._counter(
            "lane_busy_seconds_total", "Time that lanes spent on batches.", ("lane",)
        )
        self._failures = self._counter(
            "failures_total",
            "Batches that raised; requests with a score that is no number.",
            ("kind",),
        )
        for kind in ("model", "non-finite", "out-of-memory"):
            self._failures.labels(kind)
        self._batch_limit = self._gauge(
            "batch_limit_rows",
            "The most rows of a batch of a version for which memory ran out.",
            ("model",),
        )

    def _create_for_models(self) -> None:
        self._unknown_ids = self._counter(
            "unknown_id_total", "Ids outside their feature's vocabulary.", ("model", "feature")
        )
        self._model_info = self._gauge(
            "model_info", "The active version of each model; always 1.", ("model", "version", "sha")
        )
        self._swaps = self._counter(
            "model_swaps_total", "Versions tried, by result.", ("model", "result")
        )
        self._store_errors = self._counter(
            "store_errors_total", "Times that the store's folder was missing or unreadable."
        )
        self._graph_fallbacks = self._counter(
            "graph_fallback_total", "Versions that run without CUDA graphs on a GPU.", ("model",)
        )

    def _create_for_the_process(self) -> None:
        self._loop_lag = self._histogram(
            "event_loop_lag_seconds", "How late a timer of the event loop fires.", STAGE_BUCKETS
        )
        pauses = self._histogram(
            "gc_pause_seconds", "Garbage collections.", STAGE_BUCKETS, ("generation",)
        )
        self._gc_pauses = [pauses.labels(str(generation)) for generation in range(3)]

    def watch(self, name: str, help_: str, read: Callable[[], float]) -> None:
        """Export a gauge that is read at each scrape."""
        self._gauge(name, help_).set_function(read)

    def watch_device_memory(self, reads: Mapping[str, Callable[[], float]]) -> None:
        """Export the memory of the device (bytes), by kind."""
        memory = self._gauge("device_memory_bytes", "Memory of the GPU.", ("kind",))
        for kind, read in reads.items():
            memory.labels(kind).set_function(read)

    def loop_lagged(self, lag_s: float) -> None:
        """Count a timer of the event loop that fired so late."""
        self._loop_lag.observe(lag_s)

    def gc_paused(self, generation: int, pause_s: float) -> None:
        """Count a garbage collection."""
        self._gc_pauses[generation].observe(pause_s)

    def answered(self, route: str, model: str, status: int, duration_s: float) -> None:
        """Count one answered request."""
        answered = self._answered.get((route, model, status))
        if answered is None:
            counter = self._requests.labels(route, model, str(status))
            answered = counter.inc, self._durations.into(route, model)
            self._answered[route, model, status] = answered
        count, observe = answered
        count()
        observe(duration_s)

    def called(self, key: str, status: int) -> None:
        """Count one answered scoring request by the name of its key."""
        self._calls.labels(key, str(status)).inc()

    def refused(self, status: int) -> None:
        """Count what was refused before there was a request: it had no head that could be read."""
        self._requests.labels("none", "", str(status)).inc()

    def scored(self, candidates: int, stages: Mapping[str, float]) -> None:
        """Count one scored request: how large it was, and its time (s) by stage."""
        self._candidates(candidates)
        for stage, duration_s in stages.items():
            self._stages[stage](duration_s)

    def batch(self, *, rows: int, requests: int, lane: str, busy_s: float) -> None:
        """Count one batch that ran."""
        self._batch_rows(rows)
        self._batch_requests(requests)
        self._lane_busy.labels(lane).inc(busy_s)

    def shed(self, reason: str) -> None:
        """Count a request that was refused, or dropped for lack of time."""
        self._shed.labels(reason).inc()

    def failed(self, kind: str) -> None:
        """Count a batch that failed, or a request whose scores were no numbers."""
        self._failures.labels(kind).inc()

    def cancelled(self, stage: str) -> None:
        """Count a request whose caller left: while its body came, in the queue, in compute."""
        self._cancelled.labels(stage).inc()

    def batch_limit(self, model: str, rows: int) -> None:
        """Say that batches of a model's version have been limited to so many rows."""
        self._batch_limit.labels(model).set(rows)

    def unknown(self, model: str, counts: Mapping[str, int]) -> None:
        """Count ids outside their vocabulary, by feature."""
        for feature, count in counts.items():
            self._unknown_ids.labels(model, feature).inc(count)

    def tried(self, model: str, *, activated: bool) -> None:
        """Count a version that became active or was refused."""
        self._swaps.labels(model, "activated" if activated else "refused").inc()

    def store_unreadable(self) -> None:
        """Count a failure to list the store."""
        self._store_errors.inc()

    def activated(self, model: str, version: int, sha256: str) -> None:
        """Say that this version of a model is the active one now."""
        self._model_info.labels(model, str(version), sha256[:12]).set(1)

    def retired(self, model: str, version: int, sha256: str) -> None:
        """Remove what `activated` said of a version."""
        self._model_info.remove(model, str(version), sha256[:12])
        self._batch_limit.remove(f"{model}/{version}")

    def graph_fallback(self, model: str) -> None:
        """Count a version that runs without CUDA graphs."""
        self._graph_fallbacks.labels(model).inc()

    def render(self) -> bytes:
        """Return the exposition text; takes milliseconds."""
        return generate_latest(self.registry)

    def drain(self) -> None:
        """Count what was put down since the last time; now and then, so that it is never much."""
        for tally in self._tallies:
            tally.drain()

    def _tally(
        self, name: str, help_: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> BulkHistogram:
        tally = BulkHistogram(f"gatehouse_{name}", help_, buckets, labels)
        self.registry.register(tally)
        self._tallies.append(tally)
        return tally

    def _counter(self, name: str, help_: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"gatehouse_{name}", help_, labels, registry=self.registry)

    def _gauge(self, name: str, help_: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"gatehouse_{name}", help_, labels, registry=self.registry)

    def _histogram(
        self, name: str, help_: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(
            f"gatehouse_{name}", help_, labels, buckets=buckets, registry=self.registry
        )
