"""Metrics of item and user tables: which ones active versions serve from, and swaps of all."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_LABELS = ("model", "table")


class TableMetrics:
    """What became of tables and deltas. Updated on the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create the metric on `registry`."""
        self._swaps = Counter(
            "gatehouse_table_swaps_total",
            "Swaps of item and user tables and deltas, by result: activated (once for each loaded "
            "version that serves from it) or refused.",
            (*_LABELS, "result"),
            registry=registry,
        )

    def swapped(self, model: str, kind: str, *, activated: bool) -> None:
        """Count a table or delta (`items` or `users`) that a version serves from, or a refusal."""
        self._swaps.labels(model, kind, "activated" if activated else "refused").inc()


@dataclass(frozen=True, slots=True)
class TableFigures:
    """A table that the active version of a model serves from.

    Attributes:
        model: the model's name.
        kind: `items` or `users`.
        label: the table's version and, after a dot, its last delta.
        rows: how many keys it has.
        bytes: of its files.
        created_at: when its newest data was published (s since 1970).
        max_age_s: how old the newest data may be; None for any age.
        is_folded: whether requests are scored from the folded rows of the table.
    """

    model: str
    kind: str
    label: str
    rows: int
    bytes: int
    created_at: float
    max_age_s: float | None
    is_folded: bool = False


class TableCollector(Collector):
    """Exports the figures of tables; they are read at each scrape."""

    def __init__(self, read: Callable[[], Iterable[TableFigures]]) -> None:
        """Export what `read` returns, which any thread may call."""
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Name the metrics, without reading them."""
        return self._families()

    def collect(self) -> Iterator[Metric]:
        """Yield the current figures."""
        info, rows, size, age, limit, folded = families = self._families()
        now = time.time()
        for table in self._read():
            labels = (table.model, table.kind)
            info.add_metric((*labels, table.label), 1)
            rows.add_metric(labels, table.rows)
            size.add_metric(labels, table.bytes)
            age.add_metric(labels, now - table.created_at)
            if table.max_age_s is not None:
                limit.add_metric(labels, table.max_age_s)
            if table.kind == "items":
                folded.add_metric(labels, table.is_folded)
        yield from families

    def _families(self) -> tuple[GaugeMetricFamily, ...]:
        def gauge(name: str, help_: str, labels: Sequence[str] = _LABELS) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"gatehouse_{name}", help_, labels=labels)

        return (
            gauge(
                "table_info",
                "The tables that active versions serve from. The value is always 1.",
                (*_LABELS, "version"),
            ),
            gauge("table_rows", "Keys in a table."),
            gauge("table_bytes", "Size of a table's files in bytes; processes share the memory."),
            gauge("table_age_seconds", "Age of the newest data in a table, in seconds."),
            gauge("table_max_age_seconds", "Age from which on the model is not ready."),
            gauge(
                "table_folded",
                "1 if requests are scored from the folded rows of an items table, else 0.",
            ),
        )
