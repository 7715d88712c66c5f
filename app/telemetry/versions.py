"""Metrics of the store: which versions of each model are loaded, and what became of the others."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge


class VersionMetrics:
    """Metrics of versions. Updated on the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create every metric on `registry`."""
        self._active = Gauge(
            "gatehouse_model_info",
            "The active version of each model. The value is always 1.",
            ("model", "version", "sha"),
            registry=registry,
        )
        self._loaded = Gauge(
            "gatehouse_version_info",
            "The loaded versions of each model, with their roles. The value is always 1.",
            ("model", "version", "role"),
            registry=registry,
        )
        self._shown_roles: dict[str, set[tuple[str, str]]] = {}
        self._intact = Gauge(
            "gatehouse_active_version_intact",
            "1 if the store has the files of the active version as they were loaded, else 0.",
            ("model",),
            registry=registry,
        )
        self._swaps = Counter(
            "gatehouse_model_swaps_total",
            "Attempts to load a model version, by result: activated (loaded, whatever its role) or "
            "refused.",
            ("model", "result"),
            registry=registry,
        )
        self._canaries = Counter(
            "gatehouse_canaries_total",
            "Canaries that are over, by result: promoted, or ended by a gate.",
            ("model", "result"),
            registry=registry,
        )
        self._store_errors = Counter(
            "gatehouse_store_errors_total",
            "Times that the store's folder was missing or unreadable.",
            registry=registry,
        )

    def tried(self, model: str, *, activated: bool) -> None:
        """Count a version that was loaded, whatever its role, or refused."""
        self._swaps.labels(model, "activated" if activated else "refused").inc()

    def activated(self, model: str, version: int, sha256: str) -> None:
        """Show this version of a model as the active one."""
        self._active.labels(model, str(version), sha256[:12]).set(1)

    def retired(self, model: str, version: int, sha256: str) -> None:
        """Show a version as the active one no longer."""
        self._active.remove(model, str(version), sha256[:12])

    def show_roles(self, model: str, roles: Iterable[tuple[str, str]]) -> None:
        """Show these loaded versions of a model, each with its role, and no others."""
        shown, now = self._shown_roles.get(model, set()), set(roles)
        for version, role in shown - now:
            self._loaded.remove(model, version, role)
        for version, role in now:
            self._loaded.labels(model, version, role).set(1)
        self._shown_roles[model] = now

    def show_intact(self, model: str, *, is_intact: bool) -> None:
        """Show whether the store still has the active version of a model as it was loaded."""
        self._intact.labels(model).set(is_intact)

    def canary_over(self, model: str, result: str) -> None:
        """Count a canary that was promoted, or ended by a gate."""
        self._canaries.labels(model, result).inc()

    def store_unreadable(self) -> None:
        """Count a failure to list the store."""
        self._store_errors.inc()
