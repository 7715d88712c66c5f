"""Train the network of an experiment and publish it as a new version in the store.

:func:`run` does everything; :func:`fit` is the training loop. Batches consist of whole requests,
so the network is called as the service calls it: users `[R]`, candidates `[B]`.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from torch import nn

from app.artifacts.store import Artifact, Store
from models import data
from models.data import Dataset, Splits, TrainingSet
from models.export.export import export, task_outputs
from models.networks.build import build
from models.networks.config import links
from models.training.checkpoint import TrainingState
from models.training.evaluate import evaluate, predict
from models.training.experiment import Experiment
from models.training.losses import task_losses, task_weights
from models.training.report import Epoch, Listener, Report, evaluation_table, warnings


class Diverged(Exception):
    """A loss is not finite; nothing was published."""


class Interrupted(Exception):
    """Training was stopped by Ctrl-C and can resume from its checkpoint."""


def run(
    experiment: Experiment,
    store: Store,
    *,
    quiet: bool = False,
    console: Console | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> Artifact:
    """Load the data, train, evaluate on the test set, and publish.

    Args:
        experiment: the configuration.
        store: where the artifact is published, atomically.
        quiet: no progress bar, one line per epoch; always so if the console is not a terminal.
        console: for progress and metrics; standard output if `None`.
        checkpoint: a file that keeps the training state until the artifact is published.
        resume: start from that file.

    Raises:
        CheckpointInvalid: training cannot resume from the checkpoint.
        Interrupted: by Ctrl-C; the checkpoint is kept.
        DataInvalid: the data cannot be used.
        Diverged: a loss is not finite.
        ArtifactInvalid: the network cannot be published.
    """
    console = console or Console()
    training, tasks = experiment.training, experiment.tasks
    splits = data.generate(experiment.data, tasks)
    _announce(experiment, splits, console)
    rows = splits.train.rows
    network = build(experiment.network, experiment.features, tasks, seed=training.seed)
    network.columns.fit(splits.dense_sample)
    with threads(training.threads):
        with Report(console, epochs=training.epochs, rows=rows, quiet=quiet) as report:
            state = TrainingState(network, experiment, rows, path=checkpoint)
            if resume:
                state.restore()
                report.resumed(state.progress.epoch, state.progress.batches * training.batch_rows)
            fit(network, splits, experiment, report, state)
        evaluation = evaluate(network, splits.test, tasks, task_outputs(experiment))
        console.print(evaluation_table(evaluation, rows=splits.test.rows))
        for warning in warnings(evaluation):
            console.print(warning, style="bold red", highlight=False, soft_wrap=True, markup=False)
        artifact = export(network, experiment, splits.test, evaluation, store)
    if checkpoint is not None:
        _discard(checkpoint)
    return artifact


def _announce(experiment: Experiment, splits: Splits, console: Console) -> None:
    for note in splits.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"[bold]{experiment.name}[/]: {experiment.network.architecture}, "
        f"{splits.train.rows:,} training rows of {splits.train.requests:,} requests"
    )


def _discard(checkpoint: Path) -> None:
    checkpoint.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: other checkpoints
        checkpoint.parent.rmdir()


def fit(
    network: nn.Module,
    splits: Splits,
    experiment: Experiment,
    listener: Listener,
    state: TrainingState | None = None,
) -> list[Epoch]:
    """Train `network` in place; return the result of each epoch.

    Training stops when the validation loss has not improved for `patience` epochs, and the network
    gets the weights of the best epoch. The same seed gives the same batches. The test set is not
    used.

    Args:
        network: changed in place.
        splits: the training set, and the validation set for early stopping.
        experiment: the configuration.
        listener: called after every batch and epoch.
        state: where to start; the beginning if `None`. If it has a path, it is saved there after
            every epoch and on Ctrl-C.

    Raises:
        Diverged: a loss is not finite.
        Interrupted: by Ctrl-C, if the state has a path; the state is saved.
    """
    training = experiment.training
    state = state or TrainingState(network, experiment, splits.train.rows)
    progress = state.progress
    with torch.random.fork_rng(devices=[]), _interrupts(state.path is not None) as asked_to_stop:
        torch.set_rng_state(state.dropout)
        while not progress.is_over(training):
            _learn(state, splits.train, experiment, listener, asked_to_stop)
            if not asked_to_stop():
                _end_epoch(state, splits.validation, experiment)
                listener.epoch(progress.epochs[-1])
            if state.path is not None:
                state.save(state.path)
            if asked_to_stop():
                raise Interrupted(
                    f"interrupted in epoch {progress.epoch}; checkpoint: {state.path}"
                )
    state.keep_best()
    return progress.epochs


def _end_epoch(state: TrainingState, validation: Dataset, experiment: Experiment) -> None:
    """Evaluate the epoch on the validation set and record the result."""
    progress = state.progress
    by_task, loss = _validate(state.network, validation, experiment)
    if not math.isfinite(loss):
        raise Diverged(
            f"epoch {progress.epoch}: the validation loss is {loss}; try a smaller learning_rate"
        )
    train_loss = progress.loss_sum / progress.batches
    is_best = loss < progress.best_loss
    state.end_epoch(Epoch(progress.epoch, train_loss, loss, by_task, is_best=is_best))


def _learn(
    state: TrainingState,
    training_set: TrainingSet,
    experiment: Experiment,
    listener: Listener,
    asked_to_stop: Callable[[], bool],
) -> None:
    """Train for the rest of an epoch; the loss of a batch is Σₖ ω₀γ^epoch · lossₖ (PLE, eq. 7)."""
    progress, network = state.progress, state.network
    columns = links(experiment.network, experiment.tasks)
    weights = task_weights(experiment.tasks, progress.epoch - 1)  # [K]
    state.begin_epoch()
    network.train()
    batches = training_set.batches(experiment.training.batch_rows, state.shuffle)
    for number, batch in enumerate(batches):
        if number < progress.batches:  # trained on before the run was interrupted
            continue
        outputs = network(batch.user, batch.candidate, batch.row_to_request)  # [B, K]
        losses = task_losses(outputs, batch.labels, experiment.tasks, columns)  # [K]
        loss = weights @ losses
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(
                f"epoch {progress.epoch}: the training loss is {value}; try a smaller learning_rate"
            )
        state.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        progress.batches += 1
        progress.loss_sum += value
        listener.batch(batch.rows, value)
        if asked_to_stop():
            return


@contextmanager
def _interrupts(are_kept: bool) -> Iterator[Callable[[], bool]]:
    """Record the first Ctrl-C instead of raising, and yield a function that reports it.

    A second Ctrl-C raises at once. Python delivers signals to its main thread only: in any other
    thread, and without `are_kept`, nothing changes.
    """
    noted: list[int] = []
    if not are_kept or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)


def _validate(
    network: nn.Module, validation: Dataset, experiment: Experiment
) -> tuple[dict[str, float], float]:
    """Loss of each task on the validation set, and their sum weighted with ω₀."""
    columns = links(experiment.network, experiment.tasks)
    outputs = predict(network, validation)  # [B, K]
    losses = task_losses(outputs, validation.labels, experiment.tasks, columns)  # [K]
    by_task = {task.name: float(loss) for task, loss in zip(experiment.tasks, losses, strict=True)}
    return by_task, float(task_weights(experiment.tasks) @ losses)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set torch's number of threads within an operator; restore the former number on exit."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
