"""Prometheus metrics: every time series that the service exports.

Durations are in seconds. The values of labels are bounded. Label values that are known in advance
exist from the start with the value 0, so that `rate()` sees the first increment. Counting is cheap
and thread-safe; rendering takes milliseconds and should not run on the event loop.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from threading import Lock

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.telemetry.bulk_histogram import BulkHistogram
from app.telemetry.events import Events
from app.telemetry.exposition import TextRenderer
from app.telemetry.gates import GateMetrics
from app.telemetry.ranking import RankingMetrics
from app.telemetry.requests import RequestCounter
from app.telemetry.tables import TableCollector, TableFigures, TableMetrics
from app.telemetry.versions import VersionMetrics

CANCEL_STAGES = ("body", "queue", "compute")
"""Where the server can notice that the client has disconnected."""

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


class _DrainFirst(Collector):
    """Counts what was appended before a scrape reads the series; has no series of its own.

    It must be registered before all others.
    """

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        self._metrics.drain()
        return ()


class Metrics:
    """All metrics of the service, on one registry. Only `app.telemetry` creates metrics."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Create every metric on `registry`, or on a new registry."""
        self.registry = registry or CollectorRegistry()
        self.registry.register(_DrainFirst(self))
        self._bulk_histograms: list[BulkHistogram] = []
        self._renderer = TextRenderer()
        self._render_lock = Lock()
        self.ranking = RankingMetrics(self.registry)
        self.events = Events()
        self._create_for_requests()
        self._create_for_outcomes()
        self._create_for_batches()
        self._create_for_models()
        self.gates = GateMetrics()
        self.registry.register(self.gates)
        self._create_for_process()

    def _create_for_requests(self) -> None:
        self._requests = self._counter(
            "requests_total",
            "HTTP requests answered, by route, model and status code.",
            ("route", "model", "status"),
        )
        self._calls = self._counter(
            "requests_by_key_total",
            "Scoring requests answered, by the name of the API key and the status code.",
            ("key", "status"),
        )
        self._durations = self._bulk_histogram(
            "request_duration_seconds",
            "Time from the headers of a request to the end of its response, in seconds.",
            LATENCY_BUCKETS,
            ("route", "model"),
        )
        stages = self._bulk_histogram(
            "stage_duration_seconds",
            "Time that a scored request spends in each stage, in seconds.",
            STAGE_BUCKETS,
            ("stage",),
        )
        candidates = self._bulk_histogram(
            "request_candidates", "Number of candidates in a scored request.", ROW_BUCKETS
        )
        self.requests = RequestCounter(
            self._requests,
            self._calls,
            self.ranking.applied,
            self._durations,
            stages,
            candidates,
            self._counter(
                "requests_by_role_total",
                "Scoring requests answered, by model, role of the version and status code.",
                ("model", "role", "status"),
            ),
        )
        self.record = self.requests.append

    def _create_for_outcomes(self) -> None:
        """Create the counters of requests that were shed, cancelled, traced or recorded."""
        self._shed = self._counter(
            "shed_total",
            "Requests refused or dropped because of overload or their deadline, by reason.",
            ("reason",),
        )
        for reason in ("overloaded", "bodies", "deadline-unmeetable", "deadline-exceeded"):
            self._shed.labels(reason)
        self._cancelled = self._counter(
            "cancelled_total",
            "Requests whose client disconnected before the response, by the stage that noticed it.",
            ("stage",),
        )
        for stage in CANCEL_STAGES:
            self._cancelled.labels(stage)
        self._traced = self._counter(
            "traced_requests_total",
            "Sampled requests, by what became of their spans: exported, failed to be exported, or "
            "dropped because too many waited.",
            ("result",),
        )
        for result in ("exported", "failed", "dropped"):
            self._traced.labels(result)
        self._recorded = self._counter(
            "recorded_requests_total",
            "Requests of the recorded sample, by result: written; dropped because the disk is too "
            "slow; or failed because it cannot be written.",
            ("result",),
        )
        for result in ("written", "dropped", "failed"):
            self._recorded.labels(result)

    def _create_for_batches(self) -> None:
        self._batch_rows = self._bulk_histogram(
            "batch_rows", "Number of rows (candidates) in a batch.", ROW_BUCKETS
        ).observer()
        self._batch_requests = self._bulk_histogram(
            "batch_requests", "Number of requests in a batch.", REQUEST_BUCKETS
        ).observer()
        self._lane_busy = self._counter(
            "lane_busy_seconds_total",
            "Time that each lane spent on running batches, in seconds.",
            ("lane",),
        )
        self._lane_busy_by_name: dict[str, Counter] = {}  # labels() takes as long as the rest
        self._failures = self._counter(
            "failures_total",
            "Failures by kind: batches in which the model raised an error (model) or memory ran "
            "out (out-of-memory), and requests with a NaN or infinite score (non-finite).",
            ("kind",),
        )
        for kind in ("model", "non-finite", "out-of-memory"):
            self._failures.labels(kind)
        self._batch_limit = self._gauge(
            "batch_limit_rows",
            "Largest batch, in rows, of a model version that ran out of memory with larger ones.",
            ("model",),
        )
        self._limited: set[str] = set()  # `name/version` of the series above

    def _create_for_models(self) -> None:
        self._unknown_ids = self._counter(
            "unknown_id_total",
            "Ids that are not in the vocabulary of their feature, by model and feature.",
            ("model", "feature"),
        )
        self._unknown_keys = self._counter(
            "unknown_key_total",
            "Keys in requests that the item or user table does not have, by model and table.",
            ("model", "table"),
        )
        self.versions = VersionMetrics(self.registry)
        self.tables = TableMetrics(self.registry)
        self._graph_fallbacks = self._counter(
            "graph_fallback_total",
            "Model versions that run on a GPU without CUDA graphs.",
            ("model",),
        )

    def _create_for_process(self) -> None:
        ProcessCollector(registry=self.registry)  # CPU, memory, files and start time, on Linux
        self._loop_lag = self._bulk_histogram(
            "event_loop_lag_seconds",
            "How late a timer of the event loop fires, in seconds.",
            STAGE_BUCKETS,
        ).observer()
        pauses = self._bulk_histogram(
            "gc_pause_seconds",
            "Duration of a Python garbage collection, in seconds, by generation.",
            STAGE_BUCKETS,
            ("generation",),
        )
        self._gc_pauses = [pauses.observer(str(generation)) for generation in range(3)]
        self._reloads = self._counter(
            "reloads_total", "Reloads of files that changed, by result.", ("file", "result")
        )
        self._reload_successful = self._gauge(
            "reload_successful",
            "1 if the last reload of the file succeeded; 0 while the previous content stays.",
            ("file",),
        )

    def watch(self, name: str, help_: str, read: Callable[[], float]) -> None:
        """Export a gauge whose value `read` returns at each scrape."""
        self._gauge(name, help_).set_function(read)

    def watch_total(self, name: str, help_: str, read: Callable[[], float]) -> None:
        """Export a counter that is read at each scrape; its name ends in `_total`."""
        self.registry.register(_ExternalCounter(f"gatehouse_{name}", help_, read))

    def watch_lanes(self, reads: Mapping[str, Callable[[], bool]]) -> None:
        """Export whether each lane is alive, by its name; each is read at each scrape."""
        alive = self._gauge(
            "lane_alive",
            "1 while the lane takes batches; 0 if it is dead, or one batch keeps it too long.",
            ("lane",),
        )
        for lane, read in reads.items():
            alive.labels(lane).set_function(read)

    def watch_file(self, file: str) -> None:
        """Create the series of a file that is reloaded when it changes."""
        for result in ("succeeded", "failed"):
            self._reloads.labels(file, result)
        self._reload_successful.labels(file).set(1)

    def reloaded(self, file: str, *, succeeded: bool, all_good: bool | None = None) -> None:
        """Count a reload of a file; if several have the same label, `all_good` is about them."""
        self._reloads.labels(file, "succeeded" if succeeded else "failed").inc()
        self.show_reloaded(file, all_good=succeeded if all_good is None else all_good)

    def show_reloaded(self, file: str, *, all_good: bool) -> None:
        """Show whether the content that files of this label have now is in use."""
        self._reload_successful.labels(file).set(all_good)

    def watch_device_memory(self, reads: Mapping[str, Callable[[], float]]) -> None:
        """Export the memory of the device (bytes), by kind; each is read at each scrape."""
        memory = self._gauge(
            "device_memory_bytes",
            "GPU memory in bytes: allocated to tensors, reserved by PyTorch, and of item tables.",
            ("kind",),
        )
        for kind, read in reads.items():
            memory.labels(kind).set_function(read)

    def loop_lagged(self, lag_s: float) -> None:
        """Record how late (s) a timer of the event loop fired."""
        self._loop_lag(lag_s)

    def gc_paused(self, generation: int, pause_s: float) -> None:
        """Record a garbage collection and its duration (s)."""
        self._gc_pauses[generation](pause_s)

    def refused(self, status: int) -> None:
        """Count a connection that was refused because its request head could not be parsed."""
        self._requests.labels("none", "", str(status)).inc()

    def batch(self, version: str, *, rows: int, requests: int, lane: str, busy_s: float) -> None:
        """Count one batch that ran; `version` is `name/version` of its model."""
        self._batch_rows(rows)
        self._batch_requests(requests)
        busy = self._lane_busy_by_name.get(lane)
        if busy is None:
            busy = self._lane_busy_by_name[lane] = self._lane_busy.labels(lane)
        busy.inc(busy_s)
        self.requests.batch_ran(version)

    def shed(self, reason: str) -> None:
        """Count a request that was refused or dropped because of overload or its deadline."""
        self._shed.labels(reason).inc()

    def failed(self, kind: str) -> None:
        """Count a failed batch, or a request with a NaN or infinite score."""
        self._failures.labels(kind).inc()

    def recorded(self, result: str, number: int) -> None:
        """Count recorded requests: `written`, `dropped` or `failed`."""
        self._recorded.labels(result).inc(number)

    def cancelled(self, stage: str) -> None:
        """Count a request whose client disconnected: during `body`, `queue` or `compute`."""
        self._cancelled.labels(stage).inc()

    def traced(self, result: str, requests: int = 1) -> None:
        """Count sampled requests whose spans were exported, failed or dropped; thread-safe."""
        self._traced.labels(result).inc(requests)

    def batch_limit(self, model: str, rows: int) -> None:
        """Set the largest batch of a model version (`name/version`) after memory ran out."""
        self._batch_limit.labels(model).set(rows)
        self._limited.add(model)

    def unknown(self, model: str, counts: Mapping[str, int]) -> None:
        """Count ids that are not in their vocabulary, by feature."""
        for feature, count in counts.items():
            self._unknown_ids.labels(model, feature).inc(count)

    def unknown_keys(self, model: str, counts: Mapping[str, int]) -> None:
        """Count keys that a table does not have, by `items` and `users`."""
        for table, count in counts.items():
            self._unknown_keys.labels(model, table).inc(count)

    def watch_tables(self, read: Callable[[], Iterable[TableFigures]]) -> None:
        """Export the figures of tables; any thread may call `read`."""
        self.registry.register(TableCollector(read))

    def freed(self, version: str) -> None:
        """Remove the series and sums of a version, `name/version`, that is no longer loaded."""
        self._batch_limit.remove(version)
        self._limited.discard(version)
        self.gates.forget(version)
        self.requests.forget(version)

    def keep_only(self, versions: Collection[str]) -> None:
        """Remove what requests that finished late left of versions that were freed before."""
        for version in self._limited.difference(versions):
            self._batch_limit.remove(version)
        self._limited.intersection_update(versions)
        self.gates.keep_only(versions)
        self.requests.keep_only(versions)

    def graph_fallback(self, model: str) -> None:
        """Count a version that runs without CUDA graphs."""
        self._graph_fallbacks.labels(model).inc()

    def render(self) -> bytes:
        """Return the metrics in the Prometheus text format; takes milliseconds; thread-safe."""
        with self._render_lock:
            return self._renderer.render(self.registry)

    def drain(self) -> None:
        """Count pending records and observations; called regularly, so that few are pending."""
        self.requests.drain()
        self.ranking.drain()
        for histogram in self._bulk_histograms:
            histogram.drain()

    def _bulk_histogram(
        self, name: str, help_: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> BulkHistogram:
        histogram = BulkHistogram(f"gatehouse_{name}", help_, buckets, labels)
        self.registry.register(histogram)
        self._bulk_histograms.append(histogram)
        return histogram

    def _counter(self, name: str, help_: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"gatehouse_{name}", help_, labels, registry=self.registry)

    def _gauge(self, name: str, help_: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"gatehouse_{name}", help_, labels, registry=self.registry)


class _ExternalCounter(Collector):
    """A counter whose value is kept elsewhere and read at each scrape."""

    def __init__(self, name: str, help_: str, read: Callable[[], float]) -> None:
        self._name, self._help, self._read = name, help_, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return the current value."""
        yield CounterMetricFamily(self._name, self._help, self._read())
