"""Metrics that are comparable between networks with different outputs.

For a behaviour after a click, ESMM predicts P(click and like) on every row; any other network
predicts P(like | click), learned from clicked rows. Columns with the same name would mean different
things. Every network is therefore evaluated on both, over the same rows:

- *like given click*, over the clicked rows. ESMM's value is its factor pCVR = pCTCVR / pCTR, given
  by the logit of its body;
- *click and like*, over every row. The value of other networks is the product of ESMM with their
  body: P(click) · P(like | click) (SIGIR 2018, eq. 1).
"""

from collections.abc import Mapping

from torch import nn

from models.data import Dataset
from models.export.export import task_outputs
from models.networks.build import RankingNetwork
from models.networks.config import entire_space_parents
from models.networks.esmm import ESMM
from models.training.evaluate import Evaluation, evaluate
from models.training.experiment import Experiment

LEADING = {"auc": "AUC", "xauc": "XAUC", "mse": "MSE"}
"""The main metric of a task is the first of these that it has."""


def leading(figures: Mapping[str, float]) -> str | None:
    """The name of the main metric; `None` if the task has none of them."""
    return next((name for name in LEADING if name in figures), None)


def comparable_figures(
    network: RankingNetwork, experiment: Experiment, dataset: Dataset
) -> Evaluation:
    """Metrics of each task, and of each product of a task with its sample space."""
    body = network.body.body if isinstance(network.body, ESMM) else network.body
    conditional = evaluate(
        RankingNetwork(network.columns, body),
        dataset,
        experiment.tasks,
        task_outputs(_with_body(experiment, product=False)),
    )
    parents = _parents(experiment)
    product: Evaluation = {}
    if any(parent is not None for parent in parents):
        over_all: nn.Module = RankingNetwork(network.columns, ESMM(body, parents))
        outputs = task_outputs(_with_body(experiment, product=True))
        product = evaluate(over_all, dataset, experiment.tasks, outputs)
    metrics: Evaluation = {}
    for task, parent in zip(experiment.tasks, parents, strict=True):
        space = task.sample_space
        metrics[f"{task.name} given {space}" if space else task.name] = conditional[task.name]
        if parent is not None:
            metrics[f"{space} and {task.name}"] = product[task.name]
    return metrics


def _parents(experiment: Experiment) -> tuple[int | None, ...]:
    """The parent column of each column in ESMM; all `None` if the tasks do not allow ESMM."""
    try:
        return entire_space_parents(_with_body(experiment, product=True).network, experiment.tasks)
    except ValueError:
        return (None,) * len(experiment.tasks)


def _with_body(experiment: Experiment, *, product: bool) -> Experiment:
    """The experiment with the same body, with or without the product of ESMM."""
    network = experiment.network
    architecture = "esmm" if product else network.body
    changes = {"architecture": architecture, "esmm_body": network.body}
    return experiment.model_copy(update={"network": network.model_copy(update=changes)})
