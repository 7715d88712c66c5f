"""Loss functions: one loss per task, over the rows where its label is defined.

Three mechanisms weigh behaviours against each other:

- **task weights** ω₀·γ^epoch multiply the losses of the tasks (:func:`task_weights`);
- **sample loss reweighting** multiplies the *rows* of one output's loss: `behaviour_weights` of a
  task (:func:`row_weights`);
- **fusion** weighs the scores when a request is ranked. It is not part of training.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.data import ROW_WEIGHT
from models.networks.config import Link, Loss, Task

HUBER_DELTA = 1.0


def bce_with_log_probability(log_p: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of log-probabilities (≤ 0), row by row: -y·log p - (1-y)·log(1-p).

    ESMM's pCTCVR column needs it, since a product of probabilities has no logit. 1-p is computed as
    -expm1(log p), which is accurate near p = 1 where 1-exp(log p) is not.
    """
    below_one = log_p.clamp(max=-torch.finfo(log_p.dtype).tiny)  # log 0 is not finite
    return -(label * log_p + (1 - label) * torch.log(-torch.expm1(below_one)))


def weighted_logistic(output: Tensor, seconds: Tensor) -> Tensor:
    """Weighted logistic regression of a duration T, row by row: (T+1)·softplus(z) - T·z.

    Covington et al., RecSys 2016, section 4.2, weigh each positive by its watch time, so that the
    odds e^z approximate E[T]. Here every row counts as one negative and T positives, which makes
    it exact: the expected derivative (T+1)·σ(z) - T is zero at e^z = E[T | x].
    """
    return (seconds + 1) * functional.softplus(output) - seconds * output


def row_losses(loss: Loss, link: Link, output: Tensor, label: Tensor) -> Tensor:
    """The loss of one task on every row, `[B]`.

    Args:
        loss: of the task.
        link: of the column; for `bce`, `exp` means that the output is a log-probability.
        output: `[B]`, before the inverse link.
        label: `[B]`, finite: 0 or 1, seconds, or a number.
    """
    match loss:
        case "bce" if link == "exp":
            return bce_with_log_probability(output, label)
        case "bce":
            return functional.binary_cross_entropy_with_logits(output, label, reduction="none")
        case "weighted_logistic":
            return weighted_logistic(output, label)
        case "log1p_mse":
            return functional.mse_loss(output, torch.log1p(label), reduction="none")
        case "mse":
            return functional.mse_loss(output, label, reduction="none")
        case "huber":
            return functional.huber_loss(output, label, reduction="none", delta=HUBER_DELTA)


def target(task: Task, link: Link, labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The target of an output column: labels `[B]` and the mask of defined rows, bool `[B]`.

    Outside the task's sample space, and where the label is NaN, the mask is false and the label is
    0. An ESMM product column (a binary task with the link `exp`) is defined on every row that has
    both labels: its label is 1 where both behaviours happened, else 0.
    """
    label = labels[task.name]
    defined = ~label.isnan()  # [B]
    if task.sample_space is None:
        return torch.where(defined, label, torch.zeros_like(label)), defined
    space = labels[task.sample_space]
    inside = (space == 1) & defined  # [B]
    label = torch.where(inside, label, torch.zeros_like(label))
    is_product = task.kind == "binary" and link == "exp"
    return label, (space == 0) | inside if is_product else inside


def task_losses(
    outputs: Tensor, labels: Mapping[str, Tensor], tasks: Sequence[Task], links: Sequence[Link]
) -> Tensor:
    """Mean loss of each task over its sample space, `[K]` (PLE, RecSys 2020, eq. 8).

    A label outside the sample space of its task affects neither value nor gradient, even if NaN: it
    is replaced before the loss is computed, since 0 · NaN is NaN in the backward pass. The sum is
    divided by the number of rows inside, at least 1. With `behaviour_weights`, the mean is weighted
    by :func:`row_weights`.

    Args:
        outputs: `[B, K]`, before the inverse link.
        labels: `[B]` for every task and every sample space.
        tasks: the K tasks, in column order.
        links: of the K columns.
    """
    means = []
    for k, (task, link) in enumerate(zip(tasks, links, strict=True)):
        label, inside = target(task, link, labels)
        values = row_losses(task.loss, link, outputs[:, k], label)  # [B]
        counts = inside.to(values.dtype)  # [B] the weight of each row
        if ROW_WEIGHT in labels:
            counts = counts * labels[ROW_WEIGHT]
        if task.behaviour_weights:
            counts = counts * row_weights(labels, task.behaviour_weights)
        kept = torch.where(inside, counts * values, torch.zeros_like(values))
        means.append(kept.sum() / counts.sum().clamp(min=1))
    return torch.stack(means)  # [K]


def task_weights(tasks: Sequence[Task], epoch: int = 0) -> Tensor:
    """ω₀·γ^epoch of each task, float32 `[K]` (PLE, RecSys 2020, eq. 9); epochs count from 0."""
    return torch.tensor([task.weight * task.weight_decay**epoch for task in tasks])


def row_weights(behaviours: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weight of each row in a task's loss, `[B]`: 1 + Σ weight·behaviour.

    An impression that was clicked *and* liked then counts more than one that was only clicked. One
    score serves all behaviours, instead of one task for each; it is not a calibrated probability.

    Args:
        behaviours: `[B]` by name, for example liked, or seconds; NaN counts as 0.
        weights: by name, at least one, none negative.
    """
    weighted = [weight * behaviours[name].nan_to_num(nan=0.0) for name, weight in weights.items()]
    return 1 + torch.stack(weighted).sum(0)  # [B]
