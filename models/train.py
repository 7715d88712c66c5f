"""Training: an experiment in, a version in the store out.

:func:`run` is the whole way; :func:`fit` is the loop in it. The loop takes batches of whole
requests, so the network is called as the service calls it: users `[R]`, candidates `[B]`.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from torch import nn

from app.artifacts.store import Artifact, Store
from models import data
from models.config import links
from models.data import Dataset, Splits
from models.evaluate import evaluate, predict
from models.experiment import Experiment
from models.export import export, task_outputs
from models.losses import task_losses, task_weights
from models.networks import build
from models.report import Epoch, Listener, Report, evaluation_table


class Diverged(Exception):
    """A loss is not finite any more; nothing was published."""


def run(
    experiment: Experiment, store: Store, *, quiet: bool = False, console: Console | None = None
) -> Artifact:
    """Make the data, train, evaluate on the test set, and publish.

    Args:
        experiment: what to do.
        store: where the artifact appears, whole or not at all.
        quiet: no progress bar, only a line an epoch; so it is on a console that is no terminal.
        console: where progress and figures are shown; standard output where `None`.

    Raises:
        DataInvalid: the data cannot be used.
        Diverged: a loss is not finite.
        ArtifactInvalid: the network cannot be published.
    """
    console = console or Console()
    training, tasks = experiment.training, experiment.tasks
    splits = data.generate(experiment.data, tasks)
    for note in splits.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    rows = splits.train.rows
    console.print(
        f"[bold]{experiment.name}[/]: {experiment.network.architecture}, "
        f"{rows:,} rows of {splits.train.requests:,} requests to learn from"
    )
    network = build(experiment.network, experiment.features, tasks, seed=training.seed)
    with threads(training.threads):
        with Report(console, epochs=training.epochs, rows=rows, quiet=quiet) as report:
            fit(network, splits, experiment, report)
        evaluation = evaluate(network, splits.test, tasks, task_outputs(experiment))
        console.print(evaluation_table(evaluation, rows=splits.test.rows))
        return export(network, experiment, splits.test, evaluation, store)


def fit(
    network: nn.Module, splits: Splits, experiment: Experiment, listener: Listener
) -> list[Epoch]:
    """Train `network` in place and say how each epoch went.

    It ends when the validation loss has not improved for `patience` epochs, with the weights of
    the best one. The same seed gives the same batches. The test set is not looked at.

    Raises:
        Diverged: a loss is not finite.
    """
    training = experiment.training
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=True,
    )
    shuffle = torch.Generator().manual_seed(training.seed)
    epochs: list[Epoch] = []
    best_loss, best_number, best_weights = math.inf, 0, network.state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)  # draws the dropout
        for number in range(1, training.epochs + 1):
            batches = splits.train.batches(training.batch_rows, shuffle)
            train_loss = _learn(network, optimizer, batches, experiment, number, listener)
            by_task, loss = _validate(network, splits.validation, experiment)
            if not math.isfinite(loss):
                raise Diverged(f"epoch {number}: the validation loss is {loss}")
            if loss < best_loss:
                best_loss, best_number = loss, number
                best_weights = copy.deepcopy(network.state_dict())
            epochs.append(Epoch(number, train_loss, loss, by_task, is_best=best_number == number))
            listener.epoch(epochs[-1])
            if number - best_number >= training.patience:
                break
    network.load_state_dict(best_weights)
    return epochs


def _learn(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Dataset],
    experiment: Experiment,
    number: int,
    listener: Listener,
) -> float:
    """One epoch; returns the batches' mean loss Σₖ ω₀γ^epoch · lossₖ (PLE, eq. 7)."""
    columns = links(experiment.network, experiment.tasks)
    weights = task_weights(experiment.tasks, number - 1)  # [K]
    total, count = 0.0, 0
    network.train()
    for batch in batches:
        outputs = network(batch.user, batch.candidate, batch.row_to_request)  # [B, K]
        losses = task_losses(outputs, batch.labels, experiment.tasks, columns)  # [K]
        loss = weights @ losses
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"epoch {number}: the training loss is {value}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        listener.batch(batch.rows, value)
        total, count = total + value, count + 1
    return total / count


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
