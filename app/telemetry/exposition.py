"""The text format of Prometheus, written in a fraction of the time that `prometheus_client` takes.

A server with a few models, keys and policies has 7 000 series. `generate_latest` takes 6 µs for
each of them, most of it for the names and labels, which do not change: 40 ms in which the event
loop gets the interpreter only now and then. Here they are written once. The bytes are the same
(`python -m tests.bench.telemetry` measures both).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

_MOST_KNOWN = 50_000
"""Lines whose beginning is kept; those of series that are gone count too, until all are dropped."""
_LARGEST_PLAIN = 1e6  # Go writes larger numbers with an exponent
_FAST_TYPES = frozenset(("counter", "gauge"))
_NOT_IN_TEXT = ("_created", "_gsum", "_gcount")


class TextMetric(Metric):
    """A metric that its collector writes itself; its samples are made only if somebody asks."""

    def __init__(
        self, family: Metric, lines: Iterable[str], samples: Callable[[], list[Sample]]
    ) -> None:
        """Write `lines` for a family, each with its line end; `samples` returns the same."""
        self._samples = samples
        self.lines = lines
        super().__init__(family.name, family.documentation, family.type)

    @property
    def samples(self) -> list[Sample]:
        """The samples."""
        return self._samples()

    @samples.setter
    def samples(self, _: list[Sample]) -> None:
        """Ignore the empty list that the base class sets."""


class TextRenderer:
    """Writes registries; any thread may use it, one at a time."""

    def __init__(self) -> None:
        """Know no series."""
        self._known: dict[tuple[str, ...], str] = {}

    def render(self, registry: CollectorRegistry) -> bytes:
        """Return what `generate_latest` returns."""
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        return "".join(self._parts(registry)).encode()

    def _parts(self, registry: CollectorRegistry) -> Iterator[str]:
        for metric in registry.collect():
            if isinstance(metric, TextMetric):
                yield _head(metric.name, metric)
                yield from metric.lines
                continue
            samples = metric.samples
            if metric.type not in _FAST_TYPES or any(map(_is_special, samples)):
                yield generate_latest(_One(metric)).decode()
                continue
            yield _head(metric.name + ("_total" if metric.type == "counter" else ""), metric)
            for sample in samples:
                yield f"{self._beginning(sample)}{number(sample.value)}\n"

    def _beginning(self, sample: Sample) -> str:
        key = (sample.name, *sample.labels.values())
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = beginning(sample.name, sample.labels)
        return known


class _One(Collector):
    """The registry of one metric that is collected already."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Sequence[Metric]:
        return (self._metric,)


def beginning(name: str, labels: Mapping[str, str]) -> str:
    """Return a line up to its value."""
    pairs = [f'{label}="{_escaped(value)}"' for label, value in sorted(labels.items())]
    return f"{name}{{{','.join(pairs)}}} " if pairs else f"{name} "


def number(value: float) -> str:
    """Return a value as Go writes it."""
    if -_LARGEST_PLAIN < value < _LARGEST_PLAIN:  # false for NaN
        return repr(float(value))
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _head(name: str, metric: Metric) -> str:
    help_ = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {help_}\n# TYPE {name} {metric.type}\n"


def _is_special(sample: Sample) -> bool:
    return sample.timestamp is not None or sample.name.endswith(_NOT_IN_TEXT)
