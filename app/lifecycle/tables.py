"""Follows the item and user tables in the store, `<store>/<model>/items/<n>/` and `users/<n>/`.

Each loaded version of a model serves from the newest table that fits it. A table is verified and
mapped on a thread that gives way to the lanes; then one assignment lets new requests use it, while
requests that have begun keep theirs. A table that is wrong is refused, and the one before stays.

If the store has tables of a kind for a model, or its active version serves from one, another
version becomes active only with a table of that kind that fits it: callers may send keys only.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from app.artifacts.loader import Model
from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import BoundTable, ModelTables
from app.artifacts.store import Fingerprint
from app.artifacts.tables.compatibility import incompatibilities
from app.artifacts.tables.description import TableDescription, TableKind, read_description
from app.artifacts.tables.listing import ListedTable, Stamp, tables_of
from app.artifacts.tables.table import Table, open_table
from app.errors import ArtifactInvalid
from app.lifecycle.background import BackgroundThread
from app.lifecycle.folds import Folds, WarmUpFolded
from app.lifecycle.refusals import Refusals
from app.lifecycle.registry import Registry
from app.telemetry.metrics import Metrics
from app.telemetry.tables import TableFigures

logger = logging.getLogger(__name__)

T = TypeVar("T")

KINDS: Final[tuple[TableKind, ...]] = ("items", "users")
_MOST_REASONS = 3  # of an incompatible table, that a message lists


@dataclass(frozen=True, slots=True)
class _Described:
    """What `table.json` says, and the files beside it when it was read."""

    fingerprint: Fingerprint
    description: TableDescription


_Key = tuple[str, TableKind]  # of a model
_Place = tuple[str, str]  # the model, and a table or a delta, such as `items/3` or `items/3.2`


class TableFollower:
    """Keeps the tables of all loaded versions up to date; owned by the event loop."""

    def __init__(
        self,
        store: Path,
        registry: Registry,
        metrics: Metrics,
        warm_up_folded: WarmUpFolded,
        place: Callable[[Table], None] | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            store: the folder of the store.
            registry: gets the tables of each version, and the reasons of refusals.
            metrics: counts swaps and refusals.
            warm_up_folded: warms up a version that is going to run from folded rows.
            place: called on a thread with the items table of each version, before it serves and at
                each refresh: copies it to where batches are gathered.
        """
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._place = place
        self._background = BackgroundThread()
        self._folds = Folds(registry, self._run, warm_up_folded)
        self._turn = asyncio.Lock()
        self._listed: dict[_Key, list[ListedTable]] = {}
        self._described: dict[tuple[str, TableKind, int], _Described] = {}
        self._open: dict[tuple[str, TableKind, int], tuple[Table, Fingerprint]] = {}
        self._chosen: dict[tuple[str, TableKind], Table] = {}  # by `name/version` of a model
        self._stamps: dict[tuple[str, TableKind, int], tuple[Stamp, ...]] = {}  # of applied deltas
        self._refusals: Refusals[_Place] = Refusals(
            registry.refused_tables,
            self._report_refusal,
            may_be_copied=lambda: registry.has_started,
        )
        self._prepared = ""  # a version that is being loaded
        self._list_errors: dict[_Key, str] = {}

    async def refresh(self, name: str) -> None:
        """Give every loaded version of a model the newest table of each kind that fits it."""
        async with self._turn:
            loaded = self._registry.versions(name)
            for kind in KINDS:
                await self._list(name, kind)
                for model in loaded:
                    await self._choose_and_place(model.manifest, kind)
            for model in loaded:
                await self._fold(model)
                self.assign(model)
            await self._check_files(name)
            self._report(name)

    async def prepare(self, manifest: Manifest) -> str:
        """Open the tables that a version needs; return why it must not be active, or "".

        They stay open until it is loaded and `assign` is called, or another one is prepared.
        """
        async with self._turn:
            self._prepared = f"{manifest.name}/{manifest.version}"
            for kind in KINDS:
                if (manifest.name, kind) not in self._listed:
                    await self._list(manifest.name, kind)
                await self._choose_and_place(manifest, kind)
        return self.missing(manifest)

    def missing(self, manifest: Manifest) -> str:
        """Return why a version that was prepared must not be active, or ""."""
        label = f"{manifest.name}/{manifest.version}"
        active = self._active(manifest.name)
        for kind in KINDS:
            has_table = active is not None and getattr(active, kind) is not None
            is_needed = has_table or bool(self._listed.get((manifest.name, kind)))
            if is_needed and (label, kind) not in self._chosen:
                return f"needs a table of {kind}: {self._why_none(manifest, kind)}"
        return ""

    async def fold(self, model: Model) -> None:
        """Find out whether a version that was loaded may run from what its table has folded."""
        async with self._turn:
            await self._fold(model)

    async def _fold(self, model: Model) -> None:
        table = self._newest(model, "items")
        if table is not None:
            await self._folds.examine(model, table)

    def _newest(self, model: Model, kind: TableKind) -> Table | None:
        """Return the table that was chosen, with the deltas that came since then."""
        table = self._chosen.get((model.label, kind))
        if table is not None:
            newest = self._open.get((model.manifest.name, kind, table.version))
            if newest is not None:
                table = self._chosen[model.label, kind] = newest[0]
        return table

    def assign(self, model: Model) -> None:
        """Let a version serve from the tables that were chosen for it; one assignment."""
        registry, manifest = self._registry, model.manifest
        before = registry.tables.get(model)
        bound: dict[TableKind, BoundTable] = {}
        is_changed = False
        if self._prepared == model.label:
            self._prepared = ""
        for kind in KINDS:
            table = self._newest(model, kind)
            former: BoundTable | None = None if before is None else getattr(before, kind)
            if table is None:
                continue
            fold = self._folds.of(model, table)
            if former is not None and former.table is table and former.folded_for is fold.program:
                bound[kind] = former
            else:
                bound[kind] = BoundTable.of(table, kind, manifest, fold.program, fold.problem)
                is_changed = True
                if former is None or former.table is not table:
                    self._log(model, kind, table, former)
        if is_changed:
            registry.tables[model] = ModelTables(bound.get("items"), bound.get("users"))

    def _log(self, model: Model, kind: TableKind, table: Table, former: BoundTable | None) -> None:
        self._metrics.table_swapped(model.manifest.name, kind, activated=True)
        after = "" if former is None else f", after {former.table.label}"
        if self._folds.of(model, table).program is not None:
            after = f", folded{after}"
        is_delta = former is not None and former.table.version == table.version
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

    def _active(self, name: str) -> ModelTables | None:
        version = self._registry.active_version(name)
        model = self._registry.version(name, version)
        return None if model is None else self._registry.tables.get(model)

    async def _list(self, name: str, kind: TableKind) -> None:
        try:
            listed = await asyncio.to_thread(tables_of, self._store / name, kind)
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            if self._list_errors.get((name, kind)) != reason:
                self._list_errors[name, kind] = reason
                logger.error("%s/%s in the store %s", name, kind, reason)  # noqa: TRY400
            self._listed.setdefault((name, kind), [])
            return
        self._list_errors.pop((name, kind), None)
        self._listed[name, kind] = listed
        kept = {each.version for each in listed}
        for key in [each for each in self._described if each[:2] == (name, kind)]:
            if key[2] not in kept:
                del self._described[key]
        places = {f"{kind}/{each.version}" for each in listed} | {
            f"{kind}/{each.version}.{delta}"
            for each in listed
            for delta in (*each.deltas, *each.stranded)
        }
        self._refusals.keep_only(
            lambda key: key[0] != name or not key[1].startswith(f"{kind}/") or key[1] in places
        )

    async def _choose_and_place(self, manifest: Manifest, kind: TableKind) -> None:
        await self._choose(manifest, kind)
        table = self._chosen.get((f"{manifest.name}/{manifest.version}", kind))
        if self._place is not None and kind == "items" and table is not None:
            await self._run(partial(self._place, table))

    async def _choose(self, manifest: Manifest, kind: TableKind) -> None:
        """Choose the table of a version: never an older one than the one that it has."""
        label = f"{manifest.name}/{manifest.version}"
        current = self._chosen.get((label, kind))
        for listed in reversed(self._listed[manifest.name, kind]):
            if current is not None and listed.version <= current.version:
                if listed.version == current.version:
                    table = await self._open_with_deltas(manifest.name, listed)
                    self._chosen[label, kind] = table or current
                return
            described = await self._describe(manifest.name, listed)
            if described is None or incompatibilities(described, manifest):
                continue
            table = await self._open_with_deltas(manifest.name, listed)
            if table is not None:
                self._chosen[label, kind] = table
                return

    async def _describe(self, name: str, listed: ListedTable) -> TableDescription | None:
        """Return what `table.json` says; None if the table is refused."""
        key = (name, listed.kind, listed.version)
        place = (name, f"{listed.kind}/{listed.version}")
        fingerprint: Fingerprint | None = None
        try:
            fingerprint = await asyncio.to_thread(listed.fingerprint)
            known = self._described.get(key)
            if known is None or known.fingerprint != fingerprint:
                if self._refusals.repeat(place, fingerprint):
                    return None
                found = await asyncio.to_thread(read_description, listed.folder)
                known = self._described[key] = _Described(fingerprint, found)
        except (ArtifactInvalid, OSError) as error:
            self._refuse(place, fingerprint, error)
            return None
        return known.description

    async def _open_with_deltas(self, name: str, listed: ListedTable) -> Table | None:
        """Return a table with all of its good deltas; None if it is refused."""
        key = (name, listed.kind, listed.version)
        opened = self._open.get(key)
        if opened is None:
            place = (name, f"{listed.kind}/{listed.version}")
            opened = await self._attempt(
                place, listed.fingerprint, partial(open_table, listed, name, 0)
            )
            if opened is None:
                return None
            self._open[key] = opened
        table, fingerprint = opened
        table, is_known = await self._without_lost_deltas(name, table, listed)
        table = await self._with_all_deltas(name, table, listed)
        self._open[key] = table, fingerprint
        for number in listed.deltas[table.delta :]:  # one by one: which one is wrong?
            extended = await self._attempt(
                (name, f"{listed.kind}/{listed.version}.{number}"),
                partial(listed.delta_fingerprint, number),
                partial(table.extended, listed, number),
            )
            if extended is None:
                break
            table = extended[0]
            self._open[key] = table, fingerprint
        if is_known:
            self._stamps[key] = listed.stamps[: table.delta]
        for number in listed.stranded[:1]:
            place = (name, f"{listed.kind}/{listed.version}.{number}")
            if number > table.delta and not self._refusals.repeat(place, frozenset()):
                self._refusals.add(place, listed.gap, frozenset())
        return table

    async def _without_lost_deltas(
        self, name: str, table: Table, listed: ListedTable
    ) -> tuple[Table, bool]:
        """Return a table without deltas if the store does not have one of them any more.

        Also returns whether all of them could be compared; if not, the next look compares again.

        Those that it has are applied again: a server serves what the store has, and the number of a
        delta does not say what is in it.
        """
        key = (name, listed.kind, listed.version)
        known = self._stamps.get(key, ())
        if known == listed.stamps[: table.delta] and len(known) == table.delta:
            return table, True
        lost = await asyncio.to_thread(_lost_delta, table, listed, known)
        if not lost:
            return table, lost is not None
        place = f"{listed.kind}/{table.label}"
        logger.warning("model %s: its table %s is made again without deltas: %s", name, place, lost)
        text = f"{name}: {place}: {lost}; the deltas in the store are applied again"
        self._registry.events.add("table", text, is_problem=True)
        return table.without_deltas(), True

    async def _with_all_deltas(self, name: str, table: Table, listed: ListedTable) -> Table:
        """Return a table with all of its deltas, or unchanged if one of them is wrong."""
        if len(listed.deltas) - table.delta < 2:
            return table
        try:
            extended = await self._run(partial(table.extended, listed))
        except (ArtifactInvalid, OSError):
            return table
        for number in listed.deltas:
            self._refusals.forget((name, f"{listed.kind}/{listed.version}.{number}"))
        return extended

    async def _run(self, function: Callable[[], T]) -> T:
        """Run a function on a thread, which gives way to the lanes once something is served."""
        if self._registry.has_started:
            return await self._background.run(function)
        return await asyncio.to_thread(function)

    async def _attempt(
        self,
        place: _Place,
        fingerprint_of: Callable[[], Fingerprint],
        function: Callable[[], T],
    ) -> tuple[T, Fingerprint] | None:
        """Open something, unless it was refused with the same files; None if it is refused."""
        fingerprint: Fingerprint | None = None
        try:
            fingerprint = await asyncio.to_thread(fingerprint_of)
            if self._refusals.repeat(place, fingerprint):
                return None
            opened = await self._run(function)
        except (ArtifactInvalid, OSError) as error:
            self._refuse(place, fingerprint, error)
            return None
        self._refusals.forget(place)
        return opened, fingerprint

    def _refuse(
        self,
        place: _Place,
        fingerprint: Fingerprint | None,
        error: ArtifactInvalid | OSError,
    ) -> None:
        if isinstance(error, OSError):  # it may pass: the next refresh tries again
            self._refusals.add(place, f"cannot be read now: {error.strerror or error}")
        else:
            self._refusals.add(place, str(error), fingerprint)

    def _report_refusal(self, key: _Place, reason: str) -> None:
        name, place = key
        self._metrics.table_swapped(name, place.partition("/")[0], activated=False)
        logger.error("table %s of model %s is refused: %s", place, name, reason)
        text = f"{name}: {place} is refused: {reason}"
        self._registry.events.add("table", text, is_problem=True)

    def _why_none(self, manifest: Manifest, kind: TableKind) -> str:
        """Return why no table fits a version."""
        name = manifest.name
        for listed in reversed(self._listed.get((name, kind), [])):
            place = f"{kind}/{listed.version}"
            refused = self._registry.refused_tables.get((name, place))
            if refused is not None:
                return f"{place}: {refused}"
            described = self._described.get((name, kind, listed.version))
            if described is not None:
                return f"{place}: {_listing(incompatibilities(described.description, manifest))}"
        return "the store has none"

    async def _check_files(self, name: str) -> None:
        """Report tables that serve and are missing or changed in the store."""
        problems = self._registry.table_problems
        for model in self._registry.versions(name):
            for bound in (self._registry.tables.get(model) or ModelTables()).all:
                place = f"{bound.kind}/{bound.table.version}"
                problem = await self._file_problem(name, bound)
                known = problems.get((name, place))
                if problem and known != problem:
                    logger.error(
                        "table %s of model %s %s; it goes on serving until the server stops",
                        place,
                        name,
                        problem,
                    )
                    problems[name, place] = problem
                    text = f"{name}: {place} {problem}; it goes on serving"
                    self._registry.events.add("table", text, is_problem=True)
                elif not problem and known is not None:
                    logger.info("table %s of model %s: its files are intact again", place, name)
                    text = f"{name}: {place}: its files in the store are intact again"
                    self._registry.events.add("table", text)
                    del problems[name, place]

    async def _file_problem(self, name: str, bound: BoundTable) -> str:
        version = bound.table.version
        listed = {each.version: each for each in self._listed[name, bound.kind]}
        if version not in listed:
            problem, newest = "was removed from the store", max(listed, default=version)
            if newest < version:
                place = f"{bound.kind}/{newest}"
                problem += f"; {place}, the newest there, does not replace it: its number is lower"
            return problem
        try:
            found = await asyncio.to_thread(listed[version].fingerprint)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        opened = self._open.get((name, bound.kind, version))
        if opened is not None and found != opened[1]:
            return "has other files in the store than those that serve"
        return ""

    def _report(self, name: str) -> None:
        """Refuse tables that no loaded version can use; release those that none uses any more."""
        used: set[tuple[str, TableKind, int]] = set()
        models = self._registry.versions(name)
        for model in models:
            for bound in (self._registry.tables.get(model) or ModelTables()).all:
                used.add((name, bound.kind, bound.table.version))
        labels = {model.label for model in models} | {self._prepared}
        for label, kind in [each for each in self._chosen if each[0].split("/")[0] == name]:
            if label not in labels:
                del self._chosen[label, kind]
            else:
                used.add((name, kind, self._chosen[label, kind].version))
        for key in [each for each in self._open if each[0] == name and each not in used]:
            del self._open[key]
            self._stamps.pop(key, None)
        for kind in KINDS:
            self._refuse_incompatible(name, kind, models, used)
        problems = self._registry.table_problems
        places = {f"{kind}/{version}" for _, kind, version in used}
        for each in [each for each in problems if each[0] == name and each[1] not in places]:
            del problems[each]
        self.show()

    def show(self) -> None:
        """Publish the figures of the tables of all active versions."""
        self._registry.table_figures = tuple(self._figures())

    def _refuse_incompatible(
        self,
        name: str,
        kind: TableKind,
        models: list[Model],
        used: set[tuple[str, TableKind, int]],
    ) -> None:
        """Refuse a table that is newer than those in use, and fits no loaded version."""
        newest = max((version for _, k, version in used if k == kind), default=0)
        for listed in self._listed[name, kind]:
            described = self._described.get((name, kind, listed.version))
            place = (name, f"{kind}/{listed.version}")
            if listed.version <= newest or described is None or not models:
                continue
            if place in self._refusals:
                continue
            model = models[0]
            reasons = incompatibilities(described.description, model.manifest)
            if reasons:
                self._refusals.add(place, f"does not fit {model}: {_listing(reasons)}")

    def _figures(self) -> Iterator[TableFigures]:
        """Yield what `show` publishes."""
        for model in self._registry.models():
            for bound in (self._registry.tables.get(model) or ModelTables()).all:
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


def _lost_delta(table: Table, listed: ListedTable, known: Sequence[Stamp]) -> str | None:
    """Return which delta of a table the store does not have any more, and why.

    Returns "" if it has all of them, and None if one of them cannot be read now.

    Args:
        table: with the deltas that are applied.
        listed: the table as it is in the store.
        known: the stamps that the deltas had when they were applied.
    """
    is_known = True
    for number, applied in enumerate(table.delta_ids, 1):
        if number > len(listed.deltas):
            return f"delta {number} was removed from the store"
        if known[number - 1 : number] != listed.stamps[number - 1 : number]:
            try:
                found = read_description(listed.delta_folder(number))
            except (ArtifactInvalid, OSError):  # it is being copied, or cannot be read now
                is_known = False
                continue
            if found.id != applied:
                return f"delta {number} was replaced in the store"
    return "" if is_known else None


def _listing(reasons: list[str]) -> str:
    more = len(reasons) - _MOST_REASONS
    text = "; ".join(reasons[:_MOST_REASONS])
    return f"{text}; and {more} more" if more > 0 else text
