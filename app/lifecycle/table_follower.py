"""Follows the item and user tables in the store, `<store>/<model>/items/<n>/` and `users/<n>/`.

Each loaded version of a model serves from the newest table that fits it. One assignment lets new
requests use a table, while requests that have begun keep theirs. A table that is wrong is refused,
and the one before stays.

If the store has tables of a kind for a model, or its active version serves from one, another
version becomes active only with a table of that kind that fits it: callers may send keys only.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from app.artifacts.loader import Model
from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import NO_TABLES, BoundTable, ModelTables
from app.artifacts.tables.compatibility import incompatibilities
from app.artifacts.tables.description import TABLE_KINDS, TableKind
from app.artifacts.tables.table import Table
from app.lifecycle.background import BackgroundThread
from app.lifecycle.folds import Folds, WarmUpFolded
from app.lifecycle.open_tables import OpenTables, TableId
from app.lifecycle.registry import Registry
from app.telemetry.metrics import Metrics
from app.telemetry.tables import TableFigures

logger = logging.getLogger(__name__)


class TableFollower:
    """Keeps the tables of all loaded versions up to date; owned by the event loop."""

    def __init__(
        self,
        store: Path,
        registry: Registry,
        metrics: Metrics,
        warm_up_folded: WarmUpFolded,
        place_table: Callable[[Table], None] | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            store: the folder of the store.
            registry: gets the tables of each version, and the reasons of refusals.
            metrics: counts swaps and refusals.
            warm_up_folded: warms up a version that is going to run from folded rows.
            place_table: copies an items table to where batches are gathered. A thread calls it with
                that of each version, before it serves and at each refresh.
        """
        self._registry = registry
        self._metrics = metrics
        self._place_table = place_table
        self._background = BackgroundThread()
        self._open = OpenTables(store, registry, metrics, self._background)
        self._folds = Folds(registry, self._background, warm_up_folded)
        self._turn = asyncio.Lock()
        self._chosen: dict[tuple[str, TableKind], Table] = {}  # by `name/version` of a model
        self._prepared = ""  # a version that is being loaded, which the registry does not have yet

    async def refresh(self, name: str) -> None:
        """Give every loaded version of a model the newest table of each kind that fits it."""
        async with self._turn:
            versions = self._registry.versions(name)
            for kind in TABLE_KINDS:
                await self._open.scan(name, kind)
                for model in versions:
                    await self._choose(model.manifest, kind)
            for model in versions:
                await self._examine_fold(model)
                self.assign(model)
            await self._check_files(name)
            self._release_unused(name)

    async def prepare(self, manifest: Manifest) -> str:
        """Open the tables that a version needs; return why it must not be active, or "".

        They stay open until it is loaded and `assign` is called, or another one is prepared.
        """
        async with self._turn:
            self._prepared = manifest.label
            for kind in TABLE_KINDS:
                if not self._open.is_listed(manifest.name, kind):
                    await self._open.scan(manifest.name, kind)
                await self._choose(manifest, kind)
        return self.missing(manifest)

    def missing(self, manifest: Manifest) -> str:
        """Return why a version that was prepared must not be active, or ""."""
        name = manifest.name
        active = self._registry.version(name, self._registry.active_version(name))
        tables = NO_TABLES if active is None else self._registry.tables.get(active, NO_TABLES)
        for kind in TABLE_KINDS:
            is_needed = getattr(tables, kind) is not None or bool(self._open.listed(name, kind))
            if is_needed and (manifest.label, kind) not in self._chosen:
                return f"needs a table of {kind}: {self._open.why_none_fits(manifest, kind)}"
        return ""

    async def examine_fold(self, model: Model) -> None:
        """Find out whether a version that was loaded may run from the folded rows of its table."""
        async with self._turn:
            await self._examine_fold(model)

    async def _examine_fold(self, model: Model) -> None:
        table = self._newest_chosen(model, "items")
        if table is not None:
            await self._folds.examine(model, table)

    async def _choose(self, manifest: Manifest, kind: TableKind) -> None:
        """Open the newest table that fits a version, and place it."""
        label = manifest.label
        current = self._chosen.get((label, kind))
        table = await self._newest_fit(manifest, kind, current)
        if table is None:
            return
        self._chosen[label, kind] = table
        if self._place_table is not None and kind == "items":
            await self._background.run(
                partial(self._place_table, table), beside_requests=self._registry.has_started
            )

    async def _newest_fit(
        self, manifest: Manifest, kind: TableKind, current: Table | None
    ) -> Table | None:
        """Return the newest table that fits a version, but none that is older than `current`."""
        for listed in reversed(self._open.listed(manifest.name, kind)):
            if current is not None and listed.version < current.version:
                return current
            if current is not None and listed.version == current.version:
                return await self._open.open_with_deltas(manifest.name, listed) or current
            description = await self._open.describe(manifest.name, listed)
            if description is None or incompatibilities(description, manifest):
                continue
            table = await self._open.open_with_deltas(manifest.name, listed)
            if table is not None:
                return table
        return current

    def _newest_chosen(self, model: Model, kind: TableKind) -> Table | None:
        """Return the table that was chosen, with the deltas that came since then."""
        table = self._chosen.get((model.label, kind))
        if table is not None:
            newest = self._open.newest(TableId(model.manifest.name, kind, table.version))
            if newest is not None:
                table = self._chosen[model.label, kind] = newest
        return table

    def assign(self, model: Model) -> None:
        """Let a version serve from the tables that were chosen for it; one assignment."""
        if self._prepared == model.label:
            self._prepared = ""
        before = self._registry.tables.get(model, NO_TABLES)
        items, users = (self._bind(model, kind, getattr(before, kind)) for kind in TABLE_KINDS)
        if items is not before.items or users is not before.users:
            self._registry.tables[model] = ModelTables(items, users)

    def _bind(self, model: Model, kind: TableKind, former: BoundTable | None) -> BoundTable | None:
        """Return the table that a version serves from now; `former` if nothing has changed."""
        table = self._newest_chosen(model, kind)
        if table is None:
            return former
        fold = self._folds.of(model, table)
        is_other = former is None or former.table is not table
        if former is not None and not is_other and former.folded_for is fold.program:
            return former
        if is_other:
            self._log_swap(model, kind, table, None if former is None else former.table)
        return BoundTable.of(table, kind, model.manifest, fold.program, fold.problem)

    def _log_swap(self, model: Model, kind: TableKind, table: Table, former: Table | None) -> None:
        self._metrics.tables.swapped(model.manifest.name, kind, activated=True)
        after = "" if former is None else f", after {former.label}"
        if self._folds.of(model, table).program is not None:
            after = f", folded{after}"
        is_delta = former is not None and former.version == table.version
        if not is_delta:  # there may be one in every poll
            self._registry.events.add(
                "table", f"{model} serves from {kind}/{table.label}, {table.rows} rows{after}"
            )
        logger.log(
            logging.DEBUG if is_delta else logging.INFO,
            "model %s serves from its table %s/%s with %d rows%s",
            model,
            kind,
            table.label,
            table.rows,
            after,
        )

    async def _check_files(self, name: str) -> None:
        """Report tables that serve and are missing or changed in the store."""
        for model in self._registry.versions(name):
            for bound in self._registry.tables.get(model, NO_TABLES).all:
                table_id = TableId(name, bound.kind, bound.table.version)
                self._report_files(table_id, await self._open.file_problem(table_id))

    def _report_files(self, table_id: TableId, problem: str) -> None:
        """Log a change of what is wrong with the files of a table that serves."""
        problems, events = self._registry.table_problems, self._registry.events
        name, path = place = table_id.place()
        if problem == problems.get(place, ""):
            return
        if problem:
            problems[place] = problem
            logger.error(
                "table %s of model %s %s; it goes on serving until the server stops",
                path,
                name,
                problem,
            )
            events.add("table", f"{name}: {path} {problem}; it goes on serving", is_problem=True)
        else:
            del problems[place]
            logger.info("table %s of model %s: its files are intact again", path, name)
            events.add("table", f"{name}: {path}: its files in the store are intact again")

    def _release_unused(self, name: str) -> None:
        """Release tables that no version uses any more; refuse those that none can use."""
        versions = self._registry.versions(name)
        used = {
            TableId(name, bound.kind, bound.table.version)
            for model in versions
            for bound in self._registry.tables.get(model, NO_TABLES).all
        }
        labels = {model.label for model in versions} | {self._prepared}
        for label, kind in list(self._chosen):
            if label.split("/")[0] != name:
                continue
            if label in labels:
                used.add(TableId(name, kind, self._chosen[label, kind].version))
            else:
                del self._chosen[label, kind]
        self._open.release_all_but(name, used)
        for kind in TABLE_KINDS:
            newest = max((table.version for table in used if table.kind == kind), default=0)
            if versions:
                self._open.refuse_unfit(versions[0], kind, newest)
        places = {table_id.place() for table_id in used}
        for place in list(self._registry.table_problems):
            if place[0] == name and place not in places:
                del self._registry.table_problems[place]


def table_figures(registry: Registry) -> Iterator[TableFigures]:
    """Yield the figures of the tables of all active versions; in any thread."""
    for model in registry.active_models():
        for bound in registry.tables.get(model, NO_TABLES).all:
            table = bound.table
            yield TableFigures(
                model.manifest.name,
                bound.kind,
                table.label,
                table.rows,
                table.size,
                table.created.timestamp(),
                table.max_age_s,
                bound.folded_for is not None,
            )
