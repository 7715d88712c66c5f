"""Decides which versions run from the folded rows of their items table: `app.artifacts.fold`.

A fold serves only the program that it was made with, and only after its scores have agreed with
those of the features, here, on this machine. Then the folded batches are warmed up, before the
table is active, so that no request waits for a compilation. A fold that is refused costs speed and
nothing else: the table serves from its features.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary, WeakSet

from app.artifacts.fold import check_golden, check_table
from app.artifacts.loader import Model
from app.artifacts.program import Program, error_summary
from app.artifacts.tables.compatibility import fold_problems
from app.artifacts.tables.table import Table
from app.errors import ArtifactInvalid
from app.lifecycle.background import BackgroundThread
from app.lifecycle.registry import Registry

logger = logging.getLogger(__name__)


WarmUpFolded = Callable[[Model, Table], Awaitable[None]]
"""Runs folded batches of every size, with rows of a table.

Raises `ArtifactInvalid` if the model failed on one.
"""


@dataclass(frozen=True, slots=True)
class FoldDecision:
    """Whether a version runs from the folded rows of a table.

    Attributes:
        program: of the version; None if it runs from the features.
        problem: why, if the table is folded; "" if it is not, or if its folded rows serve.
    """

    program: Program | None = None
    problem: str = ""


class Folds:
    """The folds of the items tables of all loaded versions; owned by the event loop."""

    def __init__(
        self, registry: Registry, background: BackgroundThread, warm_up: WarmUpFolded
    ) -> None:
        """Examine nothing yet; `background` computes once something is served."""
        self._registry = registry
        self._background = background
        self._warm_up = warm_up
        self._decisions: WeakKeyDictionary[Model, tuple[Table, FoldDecision]] = WeakKeyDictionary()
        self._warm: WeakSet[Model] = WeakSet()

    def of(self, model: Model, table: Table) -> FoldDecision:
        """Return the decision for a table; one that was not examined serves its features."""
        examined, decision = self._decisions.get(model, (None, FoldDecision()))
        return decision if examined is table else FoldDecision()

    async def examine(self, model: Model, table: Table) -> None:
        """Find out whether a version may run from a table's fold, unless that is known."""
        examined, before = self._decisions.get(model, (None, FoldDecision()))
        if examined is table:
            return
        problem = _why_not(model, table)
        if not problem and table.fold is not None:
            problem = await self._try(model, table)
            if problem and problem != before.problem:
                self._report(model, table, problem)
        serves = table.fold is not None and not problem
        self._decisions[model] = table, FoldDecision(model.program if serves else None, problem)

    async def _try(self, model: Model, table: Table) -> str:
        """Compare scores and warm up; return why the table must not serve folded, or ""."""
        is_new = model not in self._warm
        try:
            await self._background.run(
                partial(_check, model, table, with_golden=is_new),
                beside_requests=self._registry.has_started,
            )
            if is_new:
                await self._warm_up(model, table)
                self._warm.add(model)
        except ArtifactInvalid as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  (whatever a module raises, the features serve)
            return f"fold: {type(error).__name__}: {error_summary(error)}"
        return ""

    def _report(self, model: Model, table: Table, problem: str) -> None:
        path = f"items/{table.label}"
        logger.error(
            "table %s of model %s: what is folded is refused, its features serve: %s",
            path,
            model,
            problem,
        )
        event = f"{model}: what is folded in {path} is refused, its features serve: {problem}"
        self._registry.events.add("table", event, is_problem=True)


def _why_not(model: Model, table: Table) -> str:
    """Return why a version cannot run from a table's fold; "" if it may be tried, or is none."""
    fold = table.description.fold
    if fold is None:
        return ""
    if not fold.serves(model.manifest):
        return f"it was folded for version {fold.version}, whose program is another one"
    if table.fold is None:
        return "a delta of the table is not folded"
    if problems := fold_problems(table.columns, model.manifest):
        return "; ".join(problems)
    if model.program.device.type != "cpu":
        return f"folded rows are used on CPUs only, the model runs on {model.program.device}"
    return ""


def _check(model: Model, table: Table, *, with_golden: bool) -> None:
    """Compare the scores of folded rows with those of their features; see `app.artifacts.fold`.

    Raises:
        ArtifactInvalid: they differ by more than the tolerance, or the program failed.
    """
    if with_golden:
        check_golden(model)
    check_table(model, table)
