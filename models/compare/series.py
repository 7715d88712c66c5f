"""Train a series of runs, one after the other, skipping those that are already done.

Every run is written when it ends, so an interrupted series continues where it stopped.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from models import data
from models.compare.figures import LEADING, comparable_figures, leading
from models.compare.runs import Run, RunStore, digest
from models.data import DataConfig, Splits
from models.networks.build import build
from models.training.experiment import Experiment
from models.training.report import Epoch
from models.training.train import Diverged, fit, threads


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run to train: an experiment, including its seed, and its name in tables."""

    name: str
    experiment: Experiment

    @property
    def seed(self) -> int:
        """Of the parameters and the batches."""
        return self.experiment.training.seed


class SeriesReport:
    """A progress bar over all runs with epoch, loss and time left, and one line per run.

    The time left is the mean duration of the runs so far times the number of runs left. The bar is
    shown on a terminal only; `quiet` hides it. Use it as a context manager.
    """

    def __init__(
        self,
        console: Console,
        *,
        runs: int,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._console = console
        self._runs = runs
        self._done = 0.0  # runs; the fraction is the current run
        self._over = 0
        self._epochs = self._rows = 1
        self._started = clock()
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]:.4f}"),
            TextColumn("[cyan]{task.fields[left]}"),
            console=console,
            transient=True,
            disable=quiet,
        )
        self._bar = self._progress.add_task("", total=runs, epoch="", loss=float("nan"), left="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def run(self, planned: PlannedRun, rows: int) -> None:
        """Called when a run over `rows` training rows starts."""
        self._epochs, self._rows = planned.experiment.training.epochs, rows
        self._progress.update(
            self._bar,
            description=f"{planned.name}, seed {planned.seed}",
            epoch=f"1/{self._epochs}",
        )

    def batch(self, rows: int, loss: float) -> None:
        """Called after each training batch."""
        self._done += rows / self._rows / self._epochs
        self._progress.update(self._bar, completed=self._done, loss=loss, left=self.time_left())

    def epoch(self, epoch: Epoch) -> None:
        """Called after each epoch."""
        following = min(epoch.number + 1, self._epochs)
        self._progress.update(self._bar, epoch=f"{following}/{self._epochs}")

    def over(self, run: Run) -> None:
        """Called when a run ends."""
        self._over += 1
        self._done = float(self._over)
        self._progress.update(self._bar, completed=self._over)
        figures = "  ".join(
            f"{task} {LEADING[name]} {values[name]:.4f}"
            for task, values in run.evaluation.items()
            if (name := leading(values)) is not None
        )
        self._console.print(
            f"{self._over}/{self._runs}  {run.name}, seed {run.seed}: {run.epochs} epochs, "
            f"{run.seconds:.0f} s  {figures}  {self.time_left()}",
            highlight=False,
            soft_wrap=True,
        )

    def time_left(self) -> str:
        """Estimated time left as text; empty during the first epoch."""
        if not self._over and self._done < 1 / self._epochs:  # no data yet
            return ""
        left = (self._clock() - self._started) * (self._runs - self._done) / self._done
        return f"{int(left) // 60}:{int(left) % 60:02} left"


def train_missing(
    planned: Sequence[PlannedRun], run_store: RunStore, console: Console, *, quiet: bool = False
) -> list[Run]:
    """Train the planned runs that `run_store` does not have; return the run of each, in order.

    Consecutive runs with the same data share it.

    Raises:
        Diverged: a loss of a run is not finite; the runs before it are kept.
    """
    missing = [run for run in planned if run_store.find(run.experiment) is None]
    if known := len(planned) - len(missing):
        console.print(f"{known} of {len(planned)} runs are already done", highlight=False)
    if missing:
        _train_all(missing, run_store, SeriesReport(console, runs=len(missing), quiet=quiet))
    runs = [run_store.find(run.experiment) for run in planned]
    return [run for run in runs if run is not None]


def _train_all(missing: Sequence[PlannedRun], run_store: RunStore, report: SeriesReport) -> None:
    source: DataConfig | None = None
    splits: Splits
    with report:
        for missed in missing:
            if missed.experiment.data != source:
                source = missed.experiment.data
                splits = data.generate(source)
            run = _train(missed, splits, report)
            run_store.add(run)
            report.over(run)


def _train(planned: PlannedRun, splits: Splits, report: SeriesReport) -> Run:
    experiment = planned.experiment
    started = time.monotonic()
    report.run(planned, splits.train.rows)
    network = build(experiment.network, experiment.features, experiment.tasks, seed=planned.seed)
    network.columns.fit(splits.dense_sample)
    with threads(experiment.training.threads):
        try:
            epochs = fit(network, splits, experiment, report)
        except Diverged as error:
            raise Diverged(f"{planned.name}, seed {planned.seed}: {error}") from error
        evaluation = comparable_figures(network, experiment, splits.test)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    embedded = sum(parameter.numel() for parameter in network.columns.parameters())
    return Run(
        digest=digest(experiment),
        name=planned.name,
        seed=planned.seed,
        parameters=parameters - embedded,
        embedding_parameters=embedded,
        epochs=len(epochs),
        seconds=time.monotonic() - started,
        evaluation=evaluation,
    )
