"""Training: an experiment in, a version in the store out.

:func:`run` is the whole way; :func:`fit` is the loop in it. The loop takes batches of whole
requests, so the network is called as the service calls it: users `[R]`, candidates `[B]`.
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
from models.training.report import Epoch, Listener, Report, evaluation_table


class Diverged(Exception):
    """A loss is not finite any more; nothing was published."""


class Interrupted(Exception):
    """Training was stopped by Ctrl-C, and can go on from its checkpoint."""


def run(
    experiment: Experiment,
    store: Store,
    *,
    quiet: bool = False,
    console: Console | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> Artifact:
    """Make the data, train, evaluate on the test set, and publish.

    Args:
        experiment: what to do.
        store: where the artifact appears, whole or not at all.
        quiet: no progress bar, only a line an epoch; so it is on a console that is no terminal.
        console: where progress and figures are shown; standard output where `None`.
        checkpoint: a file that keeps what was learnt until it is published.
        resume: go on from that file.

    Raises:
        CheckpointInvalid: it cannot be resumed from.
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
    with threads(training.threads):
        with Report(console, epochs=training.epochs, rows=rows, quiet=quiet) as report:
            state = TrainingState(network, experiment, rows, path=checkpoint)
            if resume:
                state.restore()
                report.resumed(state.progress.epoch, state.progress.batches * training.batch_rows)
            fit(network, splits, experiment, report, state)
        evaluation = evaluate(network, splits.test, tasks, task_outputs(experiment))
        console.print(evaluation_table(evaluation, rows=splits.test.rows))
        artifact = export(network, experiment, splits.test, evaluation, store)
    if checkpoint is not None:
        _discard(checkpoint)
    return artifact


def _announce(experiment: Experiment, splits: Splits, console: Console) -> None:
    for note in splits.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"[bold]{experiment.name}[/]: {experiment.network.architecture}, "
        f"{splits.train.rows:,} rows of {splits.train.requests:,} requests to learn from"
    )


def _discard(checkpoint: Path) -> None:
    checkpoint.unlink(missing_ok=True)
    with suppress(OSError):  # there are others in its folder
        checkpoint.parent.rmdir()


def fit(
    network: nn.Module,
    splits: Splits,
    experiment: Experiment,
    listener: Listener,
    state: TrainingState | None = None,
) -> list[Epoch]:
    """Train `network` in place and say how each epoch went.

    It ends when the validation loss has not improved for `patience` epochs, with the weights of
    the best one. The same seed gives the same batches. The test set is not looked at.

    Args:
        network: to be trained.
        splits: the training set to learn from, the validation set to stop by.
        experiment: how.
        listener: is told of every batch and epoch.
        state: from where to go on; the beginning where `None`. Where it has a path, it is saved
            there after every epoch and on Ctrl-C.

    Raises:
        Diverged: a loss is not finite.
        Interrupted: by Ctrl-C, where the state has a path; it is saved.
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
                raise Interrupted(f"interrupted in epoch {progress.epoch}; {state.path} is kept")
    state.keep_best()
    return progress.epochs


def _end_epoch(state: TrainingState, validation: Dataset, experiment: Experiment) -> None:
    """Judge the epoch by the validation set, and note how it went."""
    progress = state.progress
    by_task, loss = _validate(state.network, validation, experiment)
    if not math.isfinite(loss):
        raise Diverged(f"epoch {progress.epoch}: the validation loss is {loss}")
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
    """The rest of an epoch; a batch's loss is Σₖ ω₀γ^epoch · lossₖ (PLE, eq. 7)."""
    progress, network = state.progress, state.network
    columns = links(experiment.network, experiment.tasks)
    weights = task_weights(experiment.tasks, progress.epoch - 1)  # [K]
    state.begin_epoch()
    network.train()
    batches = training_set.batches(experiment.training.batch_rows, state.shuffle)
    for number, batch in enumerate(batches):
        if number < progress.batches:  # learnt from before the run was stopped
            continue
        outputs = network(batch.user, batch.candidate, batch.row_to_request)  # [B, K]
        losses = task_losses(outputs, batch.labels, experiment.tasks, columns)  # [K]
        loss = weights @ losses
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"epoch {progress.epoch}: the training loss is {value}")
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
    """Let the first Ctrl-C only be noted, and yield what says so; a second one acts at once.

    Python gives signals to its main thread only; in any other, and where they are not to be kept,
    nothing changes.
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
    """Each task's loss over the validation set, and their sum weighted with ω₀."""
    columns = links(experiment.network, experiment.tasks)
    outputs = predict(network, validation)  # [B, K]
    losses = task_losses(outputs, validation.labels, experiment.tasks, columns)  # [K]
    by_task = {task.name: float(loss) for task, loss in zip(experiment.tasks, losses, strict=True)}
    return by_task, float(task_weights(experiment.tasks) @ losses)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads within an operator, and give it back its own number after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
