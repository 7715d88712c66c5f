"""The tables of the store that are open: listed, checked against versions, and read with deltas.

A table is verified and mapped on a thread beside the lanes. A table or a delta that is
wrong is refused, and the ones before it stay in use.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from app.artifacts.loader import Model
from app.artifacts.manifest import Manifest
from app.artifacts.store import Fingerprint
from app.artifacts.tables.compatibility import incompatibilities
from app.artifacts.tables.description import TableDescription, TableKind, read_description
from app.artifacts.tables.listing import ListedTable, Stamp, tables_of
from app.artifacts.tables.table import Table, open_table
from app.errors import ArtifactInvalid
from app.lifecycle.background import BackgroundThread
from app.lifecycle.refusals import Refusals
from app.lifecycle.registry import Registry
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_REASONS = 3  # of an incompatible table, that a message lists
_Place = tuple[str, str]  # a model, and its table or delta: `items/3` or `items/3.2`


class TableId(NamedTuple):
    """Names a table in the store."""

    model: str
    kind: TableKind
    version: int

    def place(self, delta: int = 0) -> _Place:
        """Return where the table or one of its deltas is, as messages and the API name it."""
        label = f"{self.version}.{delta}" if delta else str(self.version)
        return self.model, f"{self.kind}/{label}"


@dataclass(frozen=True, slots=True)
class _Described:
    """What `table.json` says, and the files beside it when it was read."""

    fingerprint: Fingerprint
    description: TableDescription


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open table, and its files without those of deltas when it was opened."""

    table: Table
    fingerprint: Fingerprint


class OpenTables:
    """Lists and opens the tables of a store; owned by the event loop."""

    def __init__(
        self, store: Path, registry: Registry, metrics: Metrics, background: BackgroundThread
    ) -> None:
        """Read nothing yet.

        Args:
            store: the folder of the store.
            registry: gets the reasons of refusals.
            metrics: counts them.
            background: opens tables once something is served.
        """
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._background = background
        self._listed: dict[tuple[str, TableKind], list[ListedTable]] = {}
        self._list_errors: dict[tuple[str, TableKind], str] = {}
        self._described: dict[TableId, _Described] = {}
        self._opened: dict[TableId, _Opened] = {}
        self._stamps: dict[TableId, tuple[Stamp, ...]] = {}  # of applied deltas
        self._refusals: Refusals[_Place] = Refusals(
            registry.refused_tables, self._report, may_be_copied=lambda: registry.has_started
        )

    # What the store has

    async def scan(self, model: str, kind: TableKind) -> None:
        """List the tables of a model again; if that fails, it keeps those that were listed."""
        try:
            listed = await asyncio.to_thread(tables_of, self._store / model, kind)
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            if self._list_errors.get((model, kind)) != reason:
                self._list_errors[model, kind] = reason
                logger.error("%s/%s in the store %s", model, kind, reason)  # noqa: TRY400
            self._listed.setdefault((model, kind), [])
            return
        self._list_errors.pop((model, kind), None)
        self._listed[model, kind] = listed
        self._forget_removed(model, kind, listed)

    def is_listed(self, model: str, kind: TableKind) -> bool:
        """Whether the tables of a model have been listed before."""
        return (model, kind) in self._listed

    def listed(self, model: str, kind: TableKind) -> Sequence[ListedTable]:
        """Return the tables of a model as they were listed last, the oldest first."""
        return self._listed.get((model, kind), [])

    def _forget_removed(self, model: str, kind: TableKind, listed: Sequence[ListedTable]) -> None:
        versions = {table.version for table in listed}
        for table_id in list(self._described):
            is_of_model = (table_id.model, table_id.kind) == (model, kind)
            if is_of_model and table_id.version not in versions:
                del self._described[table_id]
        places = {
            TableId(model, kind, table.version).place(delta)
            for table in listed
            for delta in (0, *table.deltas, *table.stranded)
        }

        def is_kept(place: _Place) -> bool:
            is_other = place[0] != model or not place[1].startswith(f"{kind}/")
            return is_other or place in places

        self._refusals.keep_only(is_kept)

    # Whether a table fits

    async def describe(self, model: str, listed: ListedTable) -> TableDescription | None:
        """Return what `table.json` says; None if the table is refused."""
        table_id = TableId(model, listed.kind, listed.version)
        fingerprint: Fingerprint | None = None
        try:
            fingerprint = await asyncio.to_thread(listed.fingerprint)
            known = self._described.get(table_id)
            if known is None or known.fingerprint != fingerprint:
                if self._refusals.repeat(table_id.place(), fingerprint):
                    return None
                description = await asyncio.to_thread(read_description, listed.folder)
                known = self._described[table_id] = _Described(fingerprint, description)
        except (ArtifactInvalid, OSError) as error:
            self._refuse(table_id.place(), fingerprint, error)
            return None
        return known.description

    def why_none_fits(self, manifest: Manifest, kind: TableKind) -> str:
        """Return why no listed table fits a version."""
        for listed in reversed(self.listed(manifest.name, kind)):
            table_id = TableId(manifest.name, kind, listed.version)
            _, path = place = table_id.place()
            if (reason := self._registry.refused_tables.get(place)) is not None:
                return f"{path}: {reason}"
            if (known := self._described.get(table_id)) is not None:
                return f"{path}: {_summary(incompatibilities(known.description, manifest))}"
        return "the store has none"

    def refuse_unfit(self, model: Model, kind: TableKind, newest: int) -> None:
        """Refuse the tables that are newer than version `newest` and do not fit a model's version.

        Args:
            model: the newest loaded version.
            kind: `items` or `users`.
            newest: the newest table that is in use; 0 without one.
        """
        name = model.manifest.name
        for listed in self.listed(name, kind):
            table_id = TableId(name, kind, listed.version)
            known = self._described.get(table_id)
            if listed.version <= newest or known is None or table_id.place() in self._refusals:
                continue
            if reasons := incompatibilities(known.description, model.manifest):
                self._refusals.add(table_id.place(), f"does not fit {model}: {_summary(reasons)}")

    # Open tables

    def newest(self, table_id: TableId) -> Table | None:
        """Return an open table with its newest deltas; None if it is not open."""
        opened = self._opened.get(table_id)
        return None if opened is None else opened.table

    async def open_with_deltas(self, model: str, listed: ListedTable) -> Table | None:
        """Return a table with all of its good deltas; None if it is refused."""
        table_id = TableId(model, listed.kind, listed.version)
        opened = self._opened.get(table_id)
        if opened is None:
            opened = await self._open_without_deltas(table_id, listed)
            if opened is None:
                return None
        table, is_compared = await self._without_lost_deltas(table_id, opened.table, listed)
        table = await self._with_all_deltas(table_id, table, listed)
        table = await self._with_good_deltas(table_id, table, listed)
        self._opened[table_id] = _Opened(table, opened.fingerprint)
        if is_compared:
            self._stamps[table_id] = listed.stamps[: table.delta]
        for number in listed.stranded[:1]:
            place = table_id.place(number)
            if number > table.delta and not self._refusals.repeat(place, frozenset()):
                self._refusals.add(place, listed.gap, frozenset())
        return table

    async def _open_without_deltas(self, table_id: TableId, listed: ListedTable) -> _Opened | None:
        attempt = await self._attempt(
            table_id.place(), listed.fingerprint, partial(open_table, listed, table_id.model, 0)
        )
        if attempt is None:
            return None
        opened = self._opened[table_id] = _Opened(*attempt)
        return opened

    async def _without_lost_deltas(
        self, table_id: TableId, table: Table, listed: ListedTable
    ) -> tuple[Table, bool]:
        """Return a table without deltas if the store does not have one of them any more.

        Also returns whether all of them could be compared; if not, the next look compares again.

        Those that it has are applied again: a server serves what the store has, and the number of a
        delta does not say what is in it.
        """
        stamps = self._stamps.get(table_id, ())
        if stamps == listed.stamps[: table.delta] and len(stamps) == table.delta:
            return table, True
        lost = await asyncio.to_thread(_lost_delta, table, listed, stamps)
        if not lost:
            return table, lost is not None
        model, path = table_id.place(table.delta)
        logger.warning("model %s: its table %s is made again without deltas: %s", model, path, lost)
        self._registry.events.add(
            "table",
            f"{model}: {path}: {lost}; the deltas in the store are applied again",
            is_problem=True,
        )
        return table.without_deltas(), True

    async def _with_all_deltas(self, table_id: TableId, table: Table, listed: ListedTable) -> Table:
        """Return a table with all of its deltas at once, or unchanged if one of them is wrong."""
        if len(listed.deltas) - table.delta < 2:
            return table
        try:
            extended = await self._run(partial(table.extended, listed))
        except (ArtifactInvalid, OSError):
            return table
        for number in listed.deltas:
            self._refusals.forget(table_id.place(number))
        return extended

    async def _with_good_deltas(
        self, table_id: TableId, table: Table, listed: ListedTable
    ) -> Table:
        """Apply deltas one by one up to the first one that is wrong, which is refused."""
        for number in listed.deltas[table.delta :]:
            attempt = await self._attempt(
                table_id.place(number),
                partial(listed.delta_fingerprint, number),
                partial(table.extended, listed, number),
            )
            if attempt is None:
                break
            table, _ = attempt
        return table

    async def file_problem(self, table_id: TableId) -> str:
        """Return what is wrong with the files of an open table in the store, or ""."""
        listed = {table.version: table for table in self.listed(table_id.model, table_id.kind)}
        if table_id.version not in listed:
            problem, newest = "was removed from the store", max(listed, default=table_id.version)
            if newest < table_id.version:
                place = f"{table_id.kind}/{newest}"
                problem += f"; {place}, the newest there, does not replace it: its number is lower"
            return problem
        try:
            fingerprint = await asyncio.to_thread(listed[table_id.version].fingerprint)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        opened = self._opened.get(table_id)
        if opened is not None and fingerprint != opened.fingerprint:
            return "has other files in the store than those that serve"
        return ""

    def release_all_but(self, model: str, used: Collection[TableId]) -> None:
        """Let go of the other tables of a model; requests that hold one finish with it."""
        for table_id in list(self._opened):
            if table_id.model == model and table_id not in used:
                del self._opened[table_id]
                self._stamps.pop(table_id, None)

    # Refusals

    async def _attempt(
        self, place: _Place, fingerprint_of: Callable[[], Fingerprint], function: Callable[[], T]
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

    async def _run(self, function: Callable[[], T]) -> T:
        return await self._background.run(function, beside_requests=self._registry.has_started)

    def _refuse(
        self, place: _Place, fingerprint: Fingerprint | None, error: ArtifactInvalid | OSError
    ) -> None:
        if isinstance(error, OSError):  # it may pass: the next refresh tries again
            self._refusals.add(place, f"cannot be read now: {error.strerror or error}")
        else:
            self._refusals.add(place, str(error), fingerprint)

    def _report(self, place: _Place, reason: str) -> None:
        model, path = place
        self._metrics.tables.swapped(model, path.partition("/")[0], activated=False)
        logger.error("table %s of model %s is refused: %s", path, model, reason)
        event = f"{model}: {path} is refused: {reason}"
        self._registry.events.add("table", event, is_problem=True)


def _lost_delta(table: Table, listed: ListedTable, stamps: Sequence[Stamp]) -> str | None:
    """Return which delta of a table the store does not have any more, and why.

    Returns "" if it has all of them, and None if one of them cannot be read now.

    Args:
        table: with the deltas that are applied.
        listed: the table as it is in the store.
        stamps: of the deltas when they were applied.
    """
    is_compared = True
    for number, applied in enumerate(table.delta_ids, 1):
        if number > len(listed.deltas):
            return f"delta {number} was removed from the store"
        if stamps[number - 1 : number] != listed.stamps[number - 1 : number]:
            try:
                description = read_description(listed.delta_folder(number))
            except (ArtifactInvalid, OSError):  # it is being copied, or cannot be read now
                is_compared = False
                continue
            if description.id != applied:
                return f"delta {number} was replaced in the store"
    return "" if is_compared else None


def _summary(reasons: Sequence[str]) -> str:
    more = len(reasons) - _MOST_REASONS
    listed = "; ".join(reasons[:_MOST_REASONS])
    return f"{listed}; and {more} more" if more > 0 else listed
