"""Metrics of a network on held-out requests.

The metrics of a task:

- binary: `auc`; `user_auc`, the mean AUC over users, since a request ranks the candidates of one
  user; `ndcg_10`, the mean NDCG over requests; `calibration`;
- duration: `mae` in seconds; `xauc`, the share of row pairs in the right order (Zhan et al., KDD
  2022); `calibration`;
- regression: `mae` and `mse`.

`calibration` is Σ predicted / Σ observed: 1 is perfect, 1.2 is 20 % too high. For simulated data,
whose true expectations are known, `oracle_…` is the same metric of those: an upper bound of AUC but
for sampling noise. (The median of a skewed duration has a smaller `mae`.) A metric that is not
defined, such as the AUC of one class, is left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.artifacts.manifest import TaskOutput
from app.artifacts.program import scores as link_and_clamp
from models.data import Dataset
from models.networks.config import Link, Task, TaskKind
from models.training.losses import target

Values = npt.NDArray[np.float64]
Groups = npt.NDArray[np.int64]
Evaluation = dict[str, dict[str, float]]

XAUC_PAIRS = 200_000
TOP = 10  # positions of a request that NDCG counts
ORACLE = "oracle_"


def auc(labels: Values, scores: Values) -> float:
    """The probability that a positive ranks above a negative; ties count half, NaN for one class.

    Args:
        labels: `[B]`, 0 or 1.
        scores: `[B]`, on any scale.
    """
    return mean_group_auc(labels, scores, np.zeros(len(labels), dtype=np.int64))


def mean_group_auc(labels: Values, scores: Values, groups: Groups) -> float:
    """The mean AUC over the groups with both classes; NaN if there is none.

    The AUC of a group of P positives and N negatives is (Σ ranks of positives - P(P+1)/2) / PN
    (Mann and Whitney 1947), tied scores sharing their mean rank.

    Args:
        labels: `[B]`, 0 or 1.
        scores: `[B]`, on any scale.
        groups: int64 `[B]`, the group of each row.
    """
    if len(labels) == 0:
        return math.nan
    order = np.lexsort((scores, groups))  # by group, then by score
    labels, scores = labels[order], scores[order]
    _, group, sizes = np.unique(groups[order], return_inverse=True, return_counts=True)
    position = np.arange(len(labels), dtype=np.float64)
    is_new = np.ones(len(labels), dtype=bool)  # [B] where a run of equal scores begins
    is_new[1:] = (np.diff(group) != 0) | (np.diff(scores) != 0)
    run = np.cumsum(is_new) - 1  # [B]
    mean_position = np.bincount(run, weights=position) / np.bincount(run)  # [runs]
    rank = mean_position[run] - (np.cumsum(sizes) - sizes)[group] + 1  # [B] from 1 in each group
    positives = np.bincount(group, weights=labels)  # [G]
    negatives = sizes - positives  # [G]
    above = np.bincount(group, weights=rank * labels) - positives * (positives + 1) / 2  # [G]
    both = (positives > 0) & (negatives > 0)
    return float(np.mean(above[both] / (positives * negatives)[both])) if both.any() else math.nan


def ndcg(labels: Values, scores: Values, requests: Groups, *, top: int = TOP) -> float:
    """The mean NDCG of the first `top` rows over the requests with a positive and two rows or more.

    A positive at position i (from 1) has the gain 1/log2(i + 1); 1 is the best possible order. NaN
    if no such request exists.

    Args:
        labels: `[B]`, 0 or 1.
        scores: `[B]`, on any scale; ties are in the order of the rows.
        requests: int64 `[B]`, the request of each row.
        top: number of positions.
    """
    if len(labels) == 0:
        return math.nan
    order = np.lexsort((-scores, requests))  # by request, then the best score first
    _, request, sizes = np.unique(requests[order], return_inverse=True, return_counts=True)
    position = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[request]  # [B] from 0
    gain = np.where(position < top, 1 / np.log2(position + 2), 0)  # [B]
    gained = np.bincount(request, weights=gain * labels[order])  # [R]
    positives = np.bincount(request, weights=labels[order]).astype(np.int64)  # [R]
    ideal = np.cumsum(1 / np.log2(np.arange(top) + 2))  # [top] with 1, 2, … positives
    counted = (positives > 0) & (sizes > 1)
    best = ideal[np.minimum(positives, top) - 1]
    return float(np.mean((gained / best)[counted])) if counted.any() else math.nan


def xauc(labels: Values, scores: Values, *, pairs: int = XAUC_PAIRS, seed: int = 0) -> float:
    """The share of sampled pairs that `scores` order like `labels`; ties in scores count half.

    Pairs with equal labels are not counted; NaN if no pair is left.

    Args:
        labels: `[B]` numbers.
        scores: `[B]`, on any scale.
        pairs: number of pairs to draw, with replacement.
        seed: of the draw.
    """
    if len(labels) == 0:
        return math.nan
    a, b = np.random.default_rng(seed).integers(len(labels), size=(2, pairs))
    truth = np.sign(labels[a] - labels[b])  # [pairs]
    counts = truth != 0
    agreement = truth * np.sign(scores[a] - scores[b])  # 1 right, 0 tied, -1 wrong
    return float(np.mean((agreement[counts] + 1) / 2)) if counts.any() else math.nan


def mae(labels: Values, scores: Values) -> float:
    """The mean absolute error."""
    return float(np.mean(np.abs(scores - labels))) if len(labels) else math.nan


def mse(labels: Values, scores: Values) -> float:
    """The mean squared error."""
    return float(np.mean((scores - labels) ** 2)) if len(labels) else math.nan


def calibration(labels: Values, scores: Values) -> float:
    """Σ predicted / Σ observed; NaN if Σ observed is 0."""
    observed = float(labels.sum())
    return float(scores.sum()) / observed if observed > 0 else math.nan


def figures(
    kind: TaskKind, labels: Values, scores: Values, users: Groups, requests: Groups
) -> dict[str, float]:
    """The metrics of one task that are defined, from `[B]` labels, scores, users and requests."""
    metrics: dict[TaskKind, dict[str, Callable[[Values, Values], float]]] = {
        "binary": {
            "auc": auc,
            "user_auc": lambda labels, scores: mean_group_auc(labels, scores, users),
            "ndcg_10": lambda labels, scores: ndcg(labels, scores, requests),
            "calibration": calibration,
        },
        "duration": {"mae": mae, "xauc": xauc, "calibration": calibration},
        "regression": {"mae": mae, "mse": mse},
    }
    values = {name: metric(labels, scores) for name, metric in metrics[kind].items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def predict(network: nn.Module, dataset: Dataset, *, batch_rows: int = 8192) -> Tensor:
    """Run the network in evaluation mode; outputs `[B, K]` before the inverse link."""
    network.eval()
    with torch.inference_mode():
        outputs = [
            network(batch.user, batch.candidate, batch.row_to_request)
            for batch in dataset.batches(batch_rows)
        ]
    return torch.cat(outputs)  # [B, K]


def evaluate(
    network: nn.Module, dataset: Dataset, tasks: Sequence[Task], outputs: Sequence[TaskOutput]
) -> Evaluation:
    """Metrics of each task over its sample space, from the scores that the service would return.

    Args:
        network: returns `[B, K]` before the inverse link.
        dataset: held-out requests.
        tasks: the K tasks, in column order.
        outputs: link and clamp of each column.
    """
    raw = predict(network, dataset).float().numpy()
    scores = link_and_clamp(raw, tuple(outputs)).astype(np.float64)  # [B, K]
    requests = dataset.row_to_request.numpy()  # [B]
    users = dataset.users.numpy()[requests]  # [R] → [B]
    evaluation = {}
    for k, (task, output) in enumerate(zip(tasks, outputs, strict=True)):
        label, inside = target(task, output.link, dataset.labels)
        rows, observed = inside.numpy(), label.double().numpy()
        groups = users[rows], requests[rows]
        seen = figures(task.kind, observed[rows], scores[rows, k], *groups)
        expected = _expected(task, output.link, dataset.expected)
        if expected is not None:
            oracle = figures(task.kind, observed[rows], expected[rows], *groups)
            seen |= {ORACLE + name: value for name, value in oracle.items()}
        evaluation[task.name] = seen
    return evaluation


def _expected(task: Task, link: Link, expected: Mapping[str, Tensor]) -> Values | None:
    if task.name not in expected:
        return None
    value = expected[task.name].double()
    if task.kind == "binary" and link == "exp" and task.sample_space is not None:
        if task.sample_space not in expected:
            return None
        value = value * expected[task.sample_space].double()  # P(both) = P(first) · P(own | first)
    return np.asarray(value.numpy())
