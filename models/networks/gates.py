"""Gates, and the weighted sum of experts that they select.

A gate is a softmax of a linear map (or of an MLP) over the experts that it sees. All gates of a
level give one tensor of weights ``[B, G, E]`` over all experts of that level, zero for an expert
that a gate does not see, so that one batched product mixes for all gates. Gates have no dropout
and no normalisation; their softmax is in full precision, whatever the precision of the experts.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import NetworkConfig
from models.networks.features import Rows
from models.networks.layers import (
    InputLinear,
    InputMLP,
    StackedLinear,
    StackedMLP,
    full_precision,
    is_scripted_on_cpu,
)


class Softmax(nn.Module):
    """Softmax of each gate over the experts that it sees; 0 for all others.

    ``sees[g]`` are the experts of gate ``g``, in the order of its logits.
    """

    column: Tensor

    def __init__(self, sees: Sequence[Sequence[int]], num_experts: int) -> None:
        super().__init__()
        self.num_gates = len(sees)
        self.num_experts = num_experts
        self.is_full = all(list(experts) == list(range(num_experts)) for experts in sees)
        widths = self.widths = [len(experts) for experts in sees]
        column = torch.full(
            (len(sees), num_experts), sum(widths)
        )  # the column after the last: not seen
        for gate, experts in enumerate(sees):
            start = sum(widths[:gate])
            column[gate, list(experts)] = torch.arange(start, start + len(experts))
        self.register_buffer("column", column.flatten(), persistent=False)  # [G·E]

    def forward(self, logits: Tensor) -> Tensor:
        """Weights ``[B, G, E]`` in full precision, from logits ``[B, Σ seen]`` in gate order."""
        logits = full_precision(logits)
        if not self.is_full:
            logits = functional.pad(logits, (0, 1), value=float("-inf"))  # [B, Σ seen + 1]
            logits = logits.index_select(1, self.column)  # [B, G·E]
        G, E = self.num_gates, self.num_experts
        if not is_scripted_on_cpu(logits):
            return torch.softmax(logits.view(-1, G, E), 2)  # [B, G, E]
        # A CPU computes a softmax over a few neighbouring numbers one number at a time. With rows
        # next to each other it uses its vector units: 19 µs instead of 145 for 500 rows, 3 gates
        # and 8 experts.
        by_expert = torch.softmax(logits.t().contiguous().view(G, E, -1), 1)  # [G, E, B]
        return by_expert.permute(2, 0, 1).contiguous()  # [B, G, E]


class GateHeads(nn.Module):
    """The last linear layer of every gate; neighbouring gates of the same width run together."""

    counts: list[int]

    def __init__(self, inputs: int, widths: Sequence[int], *, bias: bool) -> None:
        super().__init__()
        runs = [(len(list(run)), width) for width, run in groupby(widths)]
        self.counts = [count for count, _ in runs]
        self.runs = nn.ModuleList(
            StackedLinear(count, inputs, width, bias=bias) for count, width in runs
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, Σ widths]`` from one input per gate, ``[G, B, in]``."""
        logits: list[Tensor] = []
        first = 0
        for i, run in enumerate(self.runs):
            count = self.counts[i]
            part = run(x.narrow(0, first, count))  # [count, B, width]
            logits.append(part.transpose(0, 1).flatten(1))  # [B, count·width]
            first += count
        return torch.cat(logits, 1)  # [B, Σ widths]


class Gates(nn.Module):
    """Gates with one input each, ``[G, B, in]``: those of the levels above the first."""

    def __init__(
        self, sees: Sequence[Sequence[int]], num_experts: int, inputs: int, config: NetworkConfig
    ) -> None:
        super().__init__()
        widths = (inputs, *config.gate_hidden_units)
        self.hidden = StackedMLP(len(sees), widths, config.gate_activation)
        self.heads = GateHeads(widths[-1], [len(s) for s in sees], bias=config.gate_bias)
        self.softmax = Softmax(sees, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        """Weights ``[B, G, E]``, in full precision."""
        weights: Tensor = self.softmax(self.heads(self.hidden(x)))
        return weights


class InputGates(nn.Module):
    """Gates that all read the input ``x``; their first layers are one matrix product."""

    def __init__(
        self,
        sees: Sequence[Sequence[int]],
        num_experts: int,
        inputs: tuple[int, int],
        config: NetworkConfig,
    ) -> None:
        super().__init__()
        widths = [len(experts) for experts in sees]
        hidden = config.gate_hidden_units
        self.first: InputMLP | InputLinear
        self.heads: nn.Module
        if hidden:
            self.first = InputMLP(len(sees), inputs, hidden, config.gate_activation)
            self.heads = GateHeads(hidden[-1], widths, bias=config.gate_bias)
        else:  # all gates are one linear map: [1, B, Σ widths] to [B, Σ widths]
            self.first = InputLinear(1, *inputs, sum(widths), bias=config.gate_bias)
            self.heads = nn.Flatten(0, 1)
        self.softmax = Softmax(sees, num_experts)

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what the first layers make of candidates into their columns of ``[B, H]``."""
        self.first.fold(candidate, folded)

    def forward(self, x: Rows) -> Tensor:
        """Weights ``[B, G, E]``, in full precision."""
        weights: Tensor = self.softmax(self.heads(self.first(x)))
        return weights


def mix(weights: Tensor, experts: Tensor) -> Tensor:
    """Each gate's weighted sum of experts: ``[B, G, E]`` and ``[E, B, d]`` to ``[G, B, d]``."""
    mixed = torch.bmm(weights.to(experts.dtype), experts.transpose(0, 1))  # [B, G, d]
    return mixed.transpose(0, 1)  # [G, B, d]
