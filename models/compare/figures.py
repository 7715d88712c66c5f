"""Figures by which networks may be compared, whatever a network was trained to predict.

Of a behaviour after a click, ESMM predicts P(click and like) over every row, and any other network
P(like | click), which it learnt from clicked rows. Two columns of one name would then mean two
things. So every network is judged by both, over the same rows:

- *like given click*, over the clicked rows. ESMM's is its factor pCVR = pCTCVR / pCTR, the logit
  that its body gives;
- *click and like*, over every row. The others' is P(click) · P(like | click): their body under the
  product of ESMM (SIGIR 2018, eq. 1).
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
"""The figures that a network is measured by, a task by the first it has: the order, if possible."""


def leading(figures: Mapping[str, float]) -> str | None:
    """The name of the figure that a task is measured by; `None` if it has none of them."""
    return next((name for name in LEADING if name in figures), None)


def comparable_figures(
    network: RankingNetwork, experiment: Experiment, dataset: Dataset
) -> Evaluation:
    """The figures of each task, and of each product with its sample space, that data allows."""
    body = network.body.body if isinstance(network.body, ESMM) else network.body
    conditional = evaluate(
        RankingNetwork(network.columns, body),
        dataset,
        experiment.tasks,
        task_outputs(_under(experiment, product=False)),
    )
    parents = _parents(experiment)
    product: Evaluation = {}
    if any(parent is not None for parent in parents):
        over_all: nn.Module = RankingNetwork(network.columns, ESMM(body, parents))
        outputs = task_outputs(_under(experiment, product=True))
        product = evaluate(over_all, dataset, experiment.tasks, outputs)
    judged: Evaluation = {}
    for task, parent in zip(experiment.tasks, parents, strict=True):
        space = task.sample_space
        judged[f"{task.name} given {space}" if space else task.name] = conditional[task.name]
        if parent is not None:
            judged[f"{space} and {task.name}"] = product[task.name]
    return judged


def _parents(experiment: Experiment) -> tuple[int | None, ...]:
    """The column that multiplies each column under ESMM; none where these tasks allow no ESMM."""
    try:
        return entire_space_parents(_under(experiment, product=True).network, experiment.tasks)
    except ValueError:
        return (None,) * len(experiment.tasks)


def _under(experiment: Experiment, *, product: bool) -> Experiment:
    """The experiment with the same body, under ESMM's product or without it."""
    network = experiment.network
    architecture = "esmm" if product else network.body
    changes = {"architecture": architecture, "esmm_body": network.body}
    return experiment.model_copy(update={"network": network.model_copy(update=changes)})
