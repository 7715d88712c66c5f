"""The registry: the loaded versions of each model, and the role of each.

Owned by the event loop. A change of roles is one assignment: a request takes its model from the
registry once and keeps it, so that exactly one version computes its answer.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

from app.artifacts.loader import Model
from app.artifacts.model_tables import ModelTables
from app.artifacts.store import PROGRAM, Artifact
from app.errors import ModelNotFound, NotReady, VersionNotFound, did_you_mean
from app.lifecycle.canary import Canary
from app.lifecycle.comparison import Comparison
from app.lifecycle.traffic import Traffic
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_SHOWN = 64  # characters of a name, and names, in a message


class Role(StrEnum):
    """What a loaded version does in traffic.

    Attributes:
        ACTIVE: answers the requests that name no version.
        PREVIOUS: was active before; kept for a rollback.
        CANARY: answers a share of these requests.
        SHADOW: scores a share of them, too, without answering.
    """

    ACTIVE = "active"
    PREVIOUS = "previous"
    CANARY = "canary"
    SHADOW = "shadow"


class Registry:
    """Loaded versions by name, with their roles, and the versions that were refused.

    Every loaded version answers requests that name it.

    Attributes:
        has_started: whether every model that the store had at the start is active or refused. A
            deployment sets it to False while it loads them.
        refused: the reason, by artifact.
        ignored: folders of the store that are not artifacts, with the reason, by path in the store.
        damaged: what is wrong with the files of a loaded version in the store, by `name/version`:
            it serves, but could not be loaded again.
        traffic: what the traffic file of a model says, as it was last valid, by name.
        traffic_problems: why the traffic file of a model cannot be used, by name.
        replays: figures of the replay that a loaded version has passed, by `name/version`.
        unassigned: why versions that a traffic file names do not have their roles, by name of the
            model.
        canaries: the canaries that get traffic, by name of their model.
        last_canaries: the same, and those that are over.
        shadows: the active version and its shadow, by name of their model.
        comparisons: which version scores the requests that a version answers, too.
        tables: the item and user tables of each loaded version that serves from any. A new version
            or a delta of a table is another object; a request keeps the one that it began with.
        refused_tables: why a table cannot be used, by model and a place such as `items/3`.
        table_problems: what is wrong with the files of a table that serves, by the same.
        on_freed: called with each version that is not loaded any more.
        events: what happens to versions is added to these.
    """

    def __init__(self, metrics: Metrics, *, default_model: str | None = None) -> None:
        """Start empty; `default_model` answers requests that name none."""
        self.has_started = True
        self.refused: dict[Artifact, str] = {}
        self.ignored: Mapping[str, str] = {}
        self.damaged: dict[str, str] = {}
        self.traffic: dict[str, Traffic] = {}
        self.traffic_problems: dict[str, str] = {}
        self.replays: dict[str, str] = {}
        self.unassigned: dict[str, str] = {}
        self.canaries: dict[str, Canary] = {}
        self.last_canaries: dict[str, Canary] = {}
        self.shadows: dict[str, Comparison] = {}
        self.comparisons: dict[Model, Comparison] = {}
        self.tables: dict[Model, ModelTables] = {}
        self.refused_tables: dict[tuple[str, str], str] = {}
        self.table_problems: dict[tuple[str, str], str] = {}
        self.on_freed: list[Callable[[Model], None]] = []
        self.events = metrics.events
        self._active: dict[str, Model] = {}
        self._loaded: dict[str, dict[int, Model]] = {}
        self._former: dict[str, list[int]] = {}  # that were active, the latest first
        self._roles: dict[Model, Role] = {}
        self._default_model = default_model
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"<Registry active {[str(model) for model in self.active_models()]}>"

    def active_models(self) -> list[Model]:
        """Return the active models, by name."""
        return [self._active[name] for name in sorted(self._active)]

    def versions(self, name: str) -> list[Model]:
        """Return the loaded versions of a model, the newest first."""
        loaded = self._loaded.get(name, {})
        return [loaded[version] for version in sorted(loaded, reverse=True)]

    def loaded(self) -> list[Model]:
        """Return every loaded version, by name, the newest first."""
        return [model for name in sorted(self._loaded) for model in self.versions(name)]

    def version(self, name: str, version: int) -> Model | None:
        """Return a version if it is loaded."""
        return self._loaded.get(name, {}).get(version)

    def role(self, model: Model) -> Role:
        """Return the role of a version; one that was freed a moment ago was a previous one."""
        return self._roles.get(model, Role.PREVIOUS)

    def active_version(self, name: str) -> int:
        """Return the active version of a model, or 0."""
        model = self._active.get(name)
        return 0 if model is None else model.manifest.version

    def requested(self, name: str | None, version: int | None) -> Model:
        """Return the version of a model that a request names, or the active one.

        Args:
            name: of the model; None means the default model.
            version: None means the active one.

        Raises:
            NotReady: no model is active, or this one may still be loading.
            ModelNotFound: no model of this name is active, or none is named and there are several.
            VersionNotFound: `version` is not loaded.
        """
        active = self.active(name)
        if version is None:
            return active
        name = active.manifest.name
        model = self._loaded[name].get(version)
        if model is None:
            known = ", ".join(
                f"{loaded.manifest.version} ({self.role(loaded)})" for loaded in self.versions(name)
            )
            raise VersionNotFound(
                f'version {version} of model "{name}" is not loaded; loaded versions: {known}'
            )
        return model

    def active(self, name: str | None) -> Model:
        """Return the active version of a model; None means the default model.

        Raises:
            NotReady: no model is active, or this one may still be loading.
            ModelNotFound: no model of this name is active, or none is named and there are several.
        """
        if not self._active:
            raise NotReady("no model is active yet")
        if name is None:
            name = self._default()
        model = self._active.get(name)
        if model is None:
            if not self.has_started:
                raise NotReady(f'model "{name[:_SHOWN]}" is not active; the store is still loading')
            raise ModelNotFound(
                f'model "{name[:_SHOWN]}" not found; active models: {self._names()}'
                f"{did_you_mean(name[:_SHOWN], self._active)}"
            )
        return model

    def _default(self) -> str:
        if self._default_model is not None:
            return self._default_model
        if not self.has_started:  # the first model to be loaded is not the default
            raise NotReady("no model is named, and the store is still loading")
        if len(self._active) > 1:
            raise ModelNotFound(
                f"no model is named, and there is no default model; active models: {self._names()};"
                " name one in the path, or set GATEHOUSE_DEFAULT_MODEL (--default-model)"
            )
        return next(iter(self._active))

    def _names(self) -> str:
        names = sorted(self._active)
        return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

    def activate(self, artifact: Artifact, model: Model) -> None:
        """Make the model of an artifact, just loaded, the active version of its name."""
        self.add(artifact, model)
        self.switch(model)

    def add(self, artifact: Artifact, model: Model) -> None:
        """Add the model of an artifact, just loaded, without a role in traffic."""
        self.refused.pop(artifact, None)
        self._loaded.setdefault(artifact.model, {})[artifact.version] = model
        self._metrics.versions.tried(artifact.model, activated=True)

    def assign(self, model: Model, role: Role) -> None:
        """Give a loaded version a role other than that of the active one."""
        if self._roles.get(model) != role:
            self._roles[model] = role
            self._show_roles(model.manifest.name)

    def compare(self, name: str) -> None:
        """Start the comparisons that a model's canary and shadow need, and stop all others."""
        canary = self.canaries.get(name)
        needed = (self.shadows.get(name), None if canary is None else canary.comparison)
        self.comparisons = {
            live: comparison
            for live, comparison in self.comparisons.items()
            if live.manifest.name != name
        } | {comparison.live: comparison for comparison in needed if comparison is not None}

    def switch(self, model: Model) -> None:
        """Make a loaded version the active one; the one that was active becomes a previous one."""
        name = model.manifest.name
        self._keep_default(name)
        former = self._active.get(name)
        self._active[name] = model
        self._roles[model] = Role.ACTIVE
        if former is not None and former is not model:
            self._roles[former] = Role.PREVIOUS
            old = former.manifest
            self._metrics.versions.retired(name, old.version, old.files[PROGRAM].sha256)
            self._former.setdefault(name, []).insert(0, old.version)
            if old.version == model.manifest.version:
                self._roles.pop(former)
        self._former[name] = [
            version
            for version in dict.fromkeys(self._former.get(name, ()))
            if version != model.manifest.version
        ]
        manifest = model.manifest
        self._metrics.versions.activated(name, manifest.version, manifest.files[PROGRAM].sha256)
        self._show_roles(name)
        after = "" if former is None or former is model else f", after {former}"
        logger.info("model %s is active%s", model, after)
        self.events.add("version", f"{model} is active{after}")

    def _keep_default(self, name: str) -> None:
        """Let the only model stay the default when a second one, `name`, becomes active."""
        if self._default_model is None and self.has_started and len(self._active) == 1:
            (only,) = self._active
            if name != only:
                self._default_model = only
                logger.warning(
                    "model %s is the second model: /v1/score stays with %s until the server starts "
                    "again; set GATEHOUSE_DEFAULT_MODEL to keep it",
                    name,
                    only,
                )

    def previous(self, name: str) -> list[int]:
        """Return the versions that were active before, the latest first."""
        return list(self._former.get(name, ()))

    def free_all_but(self, name: str, versions: Iterable[int]) -> None:
        """Free the versions of a model except these and the active one.

        Requests that hold a freed version finish with it.
        """
        kept = {*versions, self.active_version(name)}
        loaded = self._loaded.get(name, {})
        freed = [model for version, model in loaded.items() if version not in kept]
        if not freed:
            return
        self._loaded[name] = {number: model for number, model in loaded.items() if number in kept}
        self._former[name] = [version for version in self._former.get(name, ()) if version in kept]
        for model in freed:
            self._roles.pop(model, None)
            self.damaged.pop(model.label, None)
            self.tables.pop(model, None)
            self.replays.pop(model.label, None)
            self._metrics.freed(model.label)
            for forget in self.on_freed:
                forget(model)
            logger.info("model %s is freed", model)
            self.events.add("version", f"{model} is freed")
        self._show_roles(name)

    def _show_roles(self, name: str) -> None:
        self._metrics.versions.show_roles(
            name,
            {
                (str(version), str(self.role(model)))
                for version, model in self._loaded.get(name, {}).items()
            },
        )

    def refuse(self, artifact: Artifact, reason: str) -> None:
        """Record that an artifact cannot serve, log it and count it."""
        self.refused[artifact] = reason
        self._metrics.versions.tried(artifact.model, activated=False)
        logger.error("artifact %s is refused: %s", artifact, reason)
        self.events.add("version", f"{artifact} is refused: {reason}", is_problem=True)
