"""The architectures as one would write them first: every expert, gate and tower by itself.

Slow, plain and independent of the stacked layers: what they are compared with, in value, gradient
and speed. Linear layers are ``nn.Linear`` and stand, as `linears` yields those of a network, in
this order: a level's experts, its gates; the next level's; the towers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.networks.config import Activation, NetworkConfig
from models.networks.gates import InputGates
from models.networks.layers import ACTIVATIONS, InputLinear, StackedLinear

Pick = Callable[[Any], Any]


def mlp(
    widths: Sequence[int], activation: Activation, *, activate_last: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers.append(nn.Linear(widths[i], widths[i + 1]))
        if i < len(widths) - 2 or activate_last:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


class LoopLevel(nn.Module):
    """``reads[i]`` is the input of expert ``i``, ``sees[g]`` the experts of gate ``g``."""

    reads: list[int]
    sees: list[list[int]]

    def __init__(self, config: NetworkConfig, width: int, reads, sees):
        super().__init__()
        self.reads, self.sees = list(reads), [list(experts) for experts in sees]
        self.experts = nn.ModuleList(
            mlp(
                (width, *config.expert_hidden_units),
                config.expert_activation,
                activate_last=config.expert_output_activation,
            )
            for _ in self.reads
        )
        hidden = (width, *config.gate_hidden_units)
        self.gates = nn.ModuleList(
            mlp(hidden, config.gate_activation).append(
                nn.Linear(hidden[-1], len(experts), bias=config.gate_bias)
            )
            for experts in self.sees
        )

    def forward(self, X: list[Tensor]) -> list[Tensor]:
        experts: list[Tensor] = []
        for i, expert in enumerate(self.experts):
            experts.append(expert(X[self.reads[i]]))
        mixed: list[Tensor] = []
        for g, gate in enumerate(self.gates):
            weights = torch.softmax(gate(X[g]), 1)  # [B, seen]
            seen = torch.stack([experts[i] for i in self.sees[g]], 1)  # [B, seen, d]
            mixed.append((weights.unsqueeze(2) * seen).sum(1))  # [B, d]
        return mixed if len(mixed) > 0 else experts


class Loop(nn.Module):
    """Any architecture but ESMM, of the whole input ``x`` ``[B, D]``."""

    tower_reads: list[int]

    def __init__(self, config: NetworkConfig, width: int, num_tasks: int):
        super().__init__()
        K, d = num_tasks, config.expert_hidden_units[-1]
        self.num_inputs = K + 1
        plans = plan(config, K)
        self.levels = nn.ModuleList(
            LoopLevel(config, d if j else width, reads, sees)
            for j, (reads, sees) in enumerate(plans)
        )
        outputs = len(plans[-1][1]) or len(plans[-1][0])
        self.tower_reads = list(range(K)) if outputs == K else [0] * K
        self.towers = nn.ModuleList(
            mlp((d, *config.tower_hidden_units, 1), config.tower_activation, activate_last=False)
            for _ in range(K)
        )

    def forward(self, x: Tensor) -> Tensor:
        X = [x for _ in range(self.num_inputs)]
        for level in self.levels:
            X = level(X)
        outputs: list[Tensor] = []
        for k, tower in enumerate(self.towers):
            outputs.append(tower(X[self.tower_reads[k]]))
        return torch.cat(outputs, 1)


def plan(config: NetworkConfig, K: int) -> list[tuple[list[int], list[list[int]]]]:
    """For each level: which input each expert reads, and which experts each gate sees."""
    n = config.num_experts
    if config.body == "single_task":
        return [([0] * K, [])]
    if config.body == "shared_bottom":
        return [([0], [])]
    if config.body == "moe":
        return [([0] * n, [list(range(n))])]
    if config.body == "mmoe":
        return [([0] * n, [list(range(n))] * K)]
    reads = [k for k, own in enumerate(config.task_experts(K)) for _ in range(own)]
    reads += [K] * config.num_shared_experts
    sees = [[i for i, owner in enumerate(reads) if owner in (k, K)] for k in range(K)]
    everything = list(range(len(reads)))
    return [(reads, [*sees, everything])] * (config.levels - 1) + [(reads, sees)]


def linears(body: Any, pick: Pick = lambda p: p) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The weight ``[in, out]`` and bias ``[out]`` of every single linear map of a body.

    ``pick`` takes the tensor wanted out of a parameter: itself, or its gradient.
    """
    yield from mlps(body.bottom if hasattr(body, "bottom") else body.experts, pick)
    for gates in (getattr(body, name, None) for name in ("gate", "gates")):
        if gates is not None:
            yield from gate_linears(gates, pick)
    for level in getattr(body, "levels", []):
        yield from mlps(level.experts, pick)
        yield from gate_linears(level.gates, pick)
    towers = body.towers
    for k in range(towers.last_weight.size(0)):
        yield from one(towers.hidden, k, pick)
        yield pick(towers.last_weight)[k], pick(towers.last_bias)[k, 0]


def stacked(module: Any) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, StackedLinear | InputLinear)]


def one(module: Any, e: int, pick: Pick) -> Iterator[tuple[Tensor, Tensor | None]]:
    for linear in stacked(module):
        is_drawn = isinstance(linear.bias, nn.Parameter)
        yield pick(linear.weight)[e], pick(linear.bias)[e, 0] if is_drawn else None


def mlps(module: Any, pick: Pick) -> Iterator[tuple[Tensor, Tensor | None]]:
    for e in range(stacked(module)[0].weight.size(0)):
        yield from one(module, e, pick)


def gate_linears(gates: Any, pick: Pick) -> Iterator[tuple[Tensor, Tensor | None]]:
    heads = gates.heads
    if isinstance(heads, nn.Flatten):  # one linear map, a range of columns a gate
        weight, bias = next(one(gates.first, 0, pick))
        widths = gates.softmax.widths
        biases = [None] * len(widths) if bias is None else bias.split(widths)
        yield from zip(weight.split(widths, 1), biases, strict=True)
        return
    hidden = gates.first if isinstance(gates, InputGates) else gates.hidden
    last = [pair for run in heads.runs for pair in mlps(run, pick)]
    for g, pair in enumerate(last):
        yield from one(hidden, g, pick)
        yield pair


def loop_of(config: NetworkConfig, body: Any, width: int, num_tasks: int) -> Loop:
    """The loop with the weights of ``body``."""
    loop = Loop(config, width, num_tasks)
    with torch.no_grad():
        for linear, (weight, bias) in zip(loop_linears(loop), linears(body), strict=True):
            linear.weight.copy_(weight.t())
            if bias is not None:
                linear.bias.copy_(bias)
    return loop.to(body.towers.last_weight.dtype)


def loop_linears(loop: Loop) -> list[nn.Linear]:
    return [m for m in loop.modules() if isinstance(m, nn.Linear)]
