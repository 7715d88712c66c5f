"""What training minimises: one loss a task, each over the rows on which its label is defined.

Three mechanisms weigh behaviours against each other, and they are not the same:

- **task weights** ω₀·γ^epoch multiply the tasks' losses (:func:`task_weights`);
- **sample loss reweighting** multiplies the *rows* of one output's loss: `behaviour_weights` of a
  task (:func:`row_weights`);
- **fusion** weighs finished scores, when a request is ranked. It is no part of training.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.networks.config import Link, Loss, Task

HUBER_DELTA = 1.0


def bce_with_log_probability(log_p: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of log-probabilities (≤ 0), row by row: -y·log p - (1-y)·log(1-p).

    It is what ESMM's pCTCVR column needs: a product of probabilities has no logit. 1-p is computed
    as -expm1(log p), which keeps the digits that 1-exp(log p) would lose near p = 1.
    """
    below_one = log_p.clamp(max=-torch.finfo(log_p.dtype).tiny)  # log 0 is not finite
    return -(label * log_p + (1 - label) * torch.log(-torch.expm1(below_one)))


def weighted_logistic(output: Tensor, seconds: Tensor) -> Tensor:
    """Weighted logistic regression of a duration T, row by row: (T+1)·softplus(z) - T·z.

    Covington et al., RecSys 2016, section 4.2, weigh each positive by its watch time, so that the
    odds e^z come near E[T]. Here every row counts as one negative and T positives, which makes it
    exact: the derivative (T+1)·σ(z) - T vanishes in expectation where e^z = E[T | x].
    """
    return (seconds + 1) * functional.softplus(output) - seconds * output


def row_losses(loss: Loss, link: Link, output: Tensor, label: Tensor) -> Tensor:
    """One task's loss on every row, `[B]`.

    Args:
        loss: the task's.
        link: the column's; `exp` tells a `bce` that the output is a log-probability.
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
    """What a column is to predict, and where: labels `[B]`, and a mask, bool `[B]`.

    Outside the task's sample space, and where the label is NaN, the label is 0, whatever it was,
    and the mask is false. An ESMM product column (a binary task whose link is `exp`) is defined on
    every row whose labels are: its label is 1 where both behaviours happened, else 0.
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
    """Each task's mean loss over its sample space, `[K]` (PLE, RecSys 2020, eq. 8).

    A label outside its task's sample space, NaN included, touches neither value nor gradient: it
    is replaced before the loss is taken, since 0 · NaN is still NaN in the backward pass. The mean
    divides by the number of rows inside, or by 1 where there are none. A task with
    `behaviour_weights` has the mean weighted by :func:`row_weights`.

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
        counts = inside.to(values.dtype)  # [B] how much each row counts
        if task.behaviour_weights:
            counts = counts * row_weights(labels, task.behaviour_weights)
        kept = torch.where(inside, counts * values, torch.zeros_like(values))
        means.append(kept.sum() / counts.sum().clamp(min=1))
    return torch.stack(means)  # [K]


def task_weights(tasks: Sequence[Task], epoch: int = 0) -> Tensor:
    """ω₀·γ^epoch of each task, float32 `[K]` (PLE, RecSys 2020, eq. 9); epochs count from 0."""
    return torch.tensor([task.weight * task.weight_decay**epoch for task in tasks])


def row_weights(behaviours: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """How much each row counts in a task's loss, `[B]`: 1 + Σ weight·behaviour.

    So an impression that was clicked *and* liked pulls more than one that was only clicked. One
    score then serves for all behaviours, in place of a task for each; it is no longer a calibrated
    probability.

    Args:
        behaviours: `[B]` by name, such as liked, or seconds; NaN counts as none.
        weights: of at least one of them, not negative.
    """
    weighted = [weight * behaviours[name].nan_to_num(nan=0.0) for name, weight in weights.items()]
    return 1 + torch.stack(weighted).sum(0)  # [B]
