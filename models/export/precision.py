"""Reduced precision, and the gate that it must pass: how far its scores are from those in fp32.

bf16 and fp16 halve weights and activations; the layers keep softmax and logits in fp32 themselves.
``int8-embeddings`` makes the embedding tables a quarter as large and leaves everything else in
fp32: the tables are most of a ranking network's memory, and most of what a lookup reads.

Scores are compared on every held-out row. The order is compared as in a request: each of some
held-out users ranks the same held-out candidates.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.artifacts.manifest import Parity, PrecisionName, TaskOutput
from app.artifacts.program import scores
from app.errors import ArtifactInvalid
from app.ranking.agreement import kendall_tau, overlap
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker
from models.data import Dataset
from models.networks.features import InputColumns
from models.training.evaluate import Evaluation, predict
from models.training.experiment import ExportConfig

USERS, CANDIDATES, TOP = 32, 500, 50

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Form:
    """A network in one precision, and its held-out metrics."""

    network: nn.Module
    evaluation: Evaluation


def reduced(network: nn.Module, precision: PrecisionName) -> nn.Module:
    """A copy of ``network`` in evaluation mode, without gradients, in ``precision``."""
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    if precision == "bf16":
        return copied.to(torch.bfloat16)
    if precision == "fp16":
        return copied.to(torch.float16)
    if precision == "int8-embeddings":
        for module in copied.modules():
            if isinstance(module, InputColumns):
                tables, scales = zip(*map(quantised, module.tables), strict=True)
                module.tables = nn.ParameterList(
                    nn.Parameter(tensor, requires_grad=False) for tensor in (*tables, *scales)
                )
    return copied


def quantised(table: Tensor) -> tuple[Tensor, Tensor]:
    """An embedding table ``[rows, width]`` as int8 ``[rows, width]`` and scales ``[rows, 1]``.

    A row is its int8 numbers, from -127 to 127, times its float32 scale: row-wise quantisation
    without an offset, for embeddings are centred.
    """
    largest = table.detach().float().abs().amax(1, keepdim=True)  # [rows, 1]
    scale = torch.where(largest > 0, largest / 127, 1)  # [rows, 1]
    return (table.detach().float() / scale).round().to(torch.int8), scale


def parity(
    full: Form,
    reduced: Form,
    held_out: Dataset,
    outputs: Sequence[TaskOutput],
    ranking: Policy,
) -> Parity:
    """Compare a network in reduced precision with the same one in fp32."""
    tasks = tuple(outputs)
    before, after = (predict(form.network, held_out).float().numpy() for form in (full, reduced))
    ranker = Ranker.of(ranking, [task.name for task in tasks])
    lists = [
        [ranker.sort_keys(scores(raw, tasks)) for raw in raws]
        for raws in (_lists(full.network, held_out), _lists(reduced.network, held_out))
    ]
    pairs = list(zip(*lists, strict=True))
    return Parity(
        rows=held_out.rows,
        raw_change=_changes(before, after, tasks),
        score_change=_changes(scores(before, tasks), scores(after, tasks), tasks),
        auc_change=_auc_changes(full.evaluation, reduced.evaluation),
        top_50_overlap=float(np.mean([overlap(a, b, TOP) for a, b in pairs])),
        kendall_tau=float(np.mean([kendall_tau(a, b) for a, b in pairs])),
    )


def refuse_unless_near(parity: Parity, config: ExportConfig, outputs: Sequence[TaskOutput]) -> None:
    """Refuse a parity that is outside the thresholds of the experiment.

    Raises:
        ArtifactInvalid: with every value outside, and its threshold.
    """
    binary = [task.name for task in outputs if task.kind == "binary"]
    most = {
        f"largest change of {task}": (
            change,
            config.max_probability_change if task in binary else config.max_number_change,
        )
        for task, change in parity.score_change.items()
    } | {
        f"AUC change of {task}": (change, config.max_auc_change)
        for task, change in parity.auc_change.items()
    }
    least = {
        "top-50 overlap": (parity.top_50_overlap, config.min_top_50_overlap),
        "Kendall's tau": (parity.kendall_tau, config.min_kendall_tau),
    }
    missed = [f"{w} is {f:.3g}, maximum {limit:g}" for w, (f, limit) in most.items() if f > limit]
    missed += [f"{w} is {f:.4f}, minimum {limit:g}" for w, (f, limit) in least.items() if f < limit]
    if missed:
        raise ArtifactInvalid(f"{config.precision} differs too much from fp32: {'; '.join(missed)}")


def _lists(network: nn.Module, held_out: Dataset) -> list[Values]:
    """Raw outputs ``[CANDIDATES, K]`` of the same candidates, for each of ``USERS`` users."""
    chosen = _spread(held_out.rows, CANDIDATES)
    candidate = {name: column[chosen] for name, column in held_out.candidate.items()}
    one_request = torch.zeros(len(chosen), dtype=torch.int64)
    outputs = []
    with torch.inference_mode():
        for request in _spread(held_out.requests, USERS):
            user = {name: column[request : request + 1] for name, column in held_out.user.items()}
            outputs.append(network(user, candidate, one_request).float().numpy())
    return outputs


def _spread(count: int, most: int) -> Tensor:
    """At most ``most`` of ``count`` positions, evenly spaced."""
    return torch.arange(min(count, most)) * count // min(count, most)


def _changes(before: Values, after: Values, tasks: Sequence[TaskOutput]) -> dict[str, float]:
    largest = (np.abs(after - before) / (1 + np.abs(before))).max(0)  # [K]
    return {task.name: float(largest[k]) for k, task in enumerate(tasks)}


def _auc_changes(before: Evaluation, after: Evaluation) -> dict[str, float]:
    return {
        task: abs(after[task][name] - figures[name])
        for task, figures in before.items()
        for name in ("auc", "xauc")
        if name in figures and name in after[task]
    }
