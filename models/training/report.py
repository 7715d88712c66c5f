"""Console output of a training run: progress bar, one line per epoch, table of metrics."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from models.training.evaluate import ORACLE, Evaluation

NO_BETTER_THAN_CHANCE = 0.52  # AUC or XAUC; 0.5 is a random order


@dataclass(frozen=True, slots=True)
class Epoch:
    """Result of one epoch.

    Attributes:
        number: from 1.
        train_loss: mean over the batches, with the task weights of this epoch.
        validation_loss: on the whole validation set, with the task weights of the first epoch, so
            that epochs can be compared.
        validation_losses: the same for each task, unweighted.
        is_best: lower validation loss than in every earlier epoch.
    """

    number: int
    train_loss: float
    validation_loss: float
    validation_losses: dict[str, float]
    is_best: bool


class Listener(Protocol):
    """Receives the progress of a training run."""

    def batch(self, rows: int, loss: float) -> None:
        """Called after each training batch."""

    def epoch(self, epoch: Epoch) -> None:
        """Called after each epoch."""


class Report:
    """A progress bar with loss, rows per second and time left, and one line per epoch.

    The bar is shown on a terminal only; `quiet` hides it. Use it as a context manager.
    """

    def __init__(self, console: Console, *, epochs: int, rows: int, quiet: bool = False) -> None:
        self._console = console
        self._epochs = epochs
        self._rows = rows
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:>9,.0f} rows/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet,
        )
        self._bar = self._progress.add_task(
            "training", total=epochs * rows, epoch=f"1/{epochs}", loss=float("nan"), rate=0.0
        )
        self._epoch_started = time.monotonic()
        self._seen = 0

    def __enter__(self) -> Self:
        self._progress.start()
        self._epoch_started = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def resumed(self, epoch: int, rows: int) -> None:
        """Start from `rows` rows into `epoch`; what is before was done by an earlier process."""
        self._console.print(f"resuming in epoch {epoch}/{self._epochs}", highlight=False)
        self._progress.update(
            self._bar,
            epoch=f"{min(epoch, self._epochs)}/{self._epochs}",
            completed=(epoch - 1) * self._rows + rows,
        )

    def batch(self, rows: int, loss: float) -> None:
        """Called after each training batch."""
        self._seen += rows
        self._progress.update(self._bar, advance=rows, loss=loss, rate=self._rate())

    def epoch(self, epoch: Epoch) -> None:
        """Called after each epoch."""
        by_task = " ".join(f"{name} {loss:.4f}" for name, loss in epoch.validation_losses.items())
        self._console.print(
            f"epoch {epoch.number}/{self._epochs}  train {epoch.train_loss:.4f}  "
            f"validation {epoch.validation_loss:.4f} ({by_task})  {self._rate():,.0f} rows/s"
            f"{'' if epoch.is_best else '  no improvement'}",
            highlight=False,
            soft_wrap=True,
        )
        self._progress.update(
            self._bar, epoch=f"{min(epoch.number + 1, self._epochs)}/{self._epochs}"
        )
        self._epoch_started = time.monotonic()
        self._seen = 0

    def _rate(self) -> float:
        return self._seen / max(time.monotonic() - self._epoch_started, 1e-9)


def evaluation_table(evaluation: Evaluation, *, rows: int) -> Table:
    """One row per task, one column per metric; below a task, those of its true expectation."""
    names = [
        name
        for name in dict.fromkeys(name for figures in evaluation.values() for name in figures)
        if not name.startswith(ORACLE)
    ]
    table = Table(title=f"{rows:,} held-out rows", title_justify="left")
    table.add_column("task", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for task, figures in evaluation.items():
        table.add_row(task, *(_cell(figures, name) for name in names))
        if any(name.startswith(ORACLE) for name in figures):
            best = (_cell(figures, ORACLE + name) for name in names)
            table.add_row("  true expectation", *best, style="dim", end_section=True)
    return table


def warnings(evaluation: Evaluation) -> list[str]:
    """Tasks whose predictions order held-out rows no better than chance."""
    return [
        f'warning: task "{task}": {name.upper()} {figures[name]:.4f} on held-out rows is no better '
        "than chance (0.5); check its label, the features and learning_rate before you serve it"
        for task, figures in evaluation.items()
        for name in ("auc", "xauc")
        if figures.get(name, 1.0) < NO_BETTER_THAN_CHANCE
    ]


def _cell(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.4f}" if name in figures else ""
