"""Layers of the architectures: stacked linear maps, experts, towers.

The ``E`` experts of a level run together, one batched matrix product per layer. The expert is the
leading axis of weights ``[E, in, out]`` and activations ``[E, B, out]``: with this layout a batched
product copies neither.

The first layer on the input ``x = [u; c]`` is split: ``[u; c] W + b = (u W_u + b) + c W_c``. The
term in brackets is computed once per request and gathered to rows. The other one depends on the
item alone, so it can be computed once per item (``fold``) and be read from a table.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from models.networks.config import Activation, NetworkConfig
from models.networks.features import Rows

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # its backward needs the output only
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


class Body(Protocol):
    """An architecture: a module from the input ``x`` to one output per task."""

    def __call__(self, x: Rows) -> Tensor:
        """Outputs ``[B, K]`` before the inverse link, in full precision."""
        ...

    def gate_weights(self, x: Rows) -> list[Tensor]:
        """Gate weights ``[B, gates, experts]`` of each level; empty without gates."""
        ...

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what every first layer makes of candidates ``[B, D_candidate]`` into ``[B, H]``."""
        ...


def full_precision(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged if float64: the precision of softmax and logits."""
    return x if x.dtype == torch.float64 else x.float()


def draw(*shape: int, inputs: int) -> nn.Parameter:
    """Draw a parameter from U(-1/√inputs, 1/√inputs), every entry independently."""
    bound = inputs**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def is_scripted_on_cpu(x: Tensor) -> bool:
    """Whether a scripted form runs on a CPU: the one that may decide by the sizes of its inputs."""
    return torch.jit.is_scripting() and not x.is_cuda  # type: ignore[attr-defined]


def experts_at_once(count: int, rows: int, width: int, like: Tensor) -> int:
    """How many of ``count`` experts to run together so that a layer fits in the CPU cache.

    On a CPU, activations above about 0.5 MB cost more memory time than the batched product saves.
    Only the scripted form limits the number: training and traced graphs use one product.
    """
    if not is_scripted_on_cpu(like):
        return count
    return max(1, (1 << 19) // (max(1, rows * width) * like.element_size()))


class StackedLinear(nn.Module):
    """``count`` linear maps, each with its own input."""

    bias: Tensor

    def __init__(self, count: int, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.count = count
        self.weight = draw(count, inputs, outputs, inputs=inputs)  # [E, in, out]
        if bias:
            self.bias = draw(count, 1, outputs, inputs=inputs)  # [E, 1, out]
        else:
            self.register_buffer("bias", torch.zeros(count, 1, outputs), persistent=False)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Map ``[n, B, in]`` to ``[n, B, out]`` by the ``n`` maps from ``first`` on."""
        bias: Tensor = self.bias
        weight: Tensor = self.weight
        if x.size(0) < self.count:
            last = first + x.size(0)
            bias, weight = bias[first:last], weight[first:last]
        return torch.baddbmm(bias, x, weight)


class InputLinear(nn.Module):
    """``count`` linear maps of the one input ``x = [u; c]``."""

    bias: Tensor

    def __init__(
        self, count: int, user: int, candidate: int, outputs: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.count = count
        self.user = user
        self.candidate = candidate
        self.outputs = outputs
        self.folded_at = 0  # its first column in a folded row; set by the network
        inputs = user + candidate
        self.weight = draw(count, inputs, outputs, inputs=inputs)  # [E, D, out], user's rows first
        if bias:
            self.bias = draw(count, 1, outputs, inputs=inputs)  # [E, 1, out]
        else:
            self.register_buffer("bias", torch.zeros(count, 1, outputs), persistent=False)

    def once(self, user: Tensor) -> Tensor:
        """The user's part ``u W_u + b`` of every map, ``[E, R, out]``; without it, ``b``."""
        if self.user == 0:
            return self.bias
        u = user.to(self.weight.dtype).expand(self.count, -1, -1)  # [E, R, D_user], no copy
        return torch.baddbmm(self.bias, u, self.weight[:, : self.user])

    def rows(self, once: Tensor, x: Rows, first: int, count: int) -> Tensor:
        """``[n, B, out]`` of the ``n = count`` maps from ``first`` on, given `once` of all maps."""
        last = first + count
        folded = x.folded
        if folded is not None:
            return self.unfolded(once, folded, x.row_to_request, first, count)
        part: Tensor = once
        weight: Tensor = self.weight
        if count < self.count:
            part = once[first:last]  # [n, R, out]
            weight = self.weight[first:last]  # [n, D, out]
        c = x.candidate.to(weight.dtype).expand(count, -1, -1)  # [n, B, D_candidate], no copy
        if self.user == 0:
            return torch.baddbmm(part, c, weight)
        if is_scripted_on_cpu(part) and part.size(1) == 1 and part.dtype == torch.float32:
            return torch.baddbmm(part, c, weight[:, self.user :])  # faster for a single request
        gathered = part.index_select(1, x.row_to_request)  # [n, B, out]
        if self.candidate == 0:
            return gathered
        return gathered.baddbmm_(c, weight[:, self.user :])

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write the candidates' part ``c W_c`` of every map into its columns of ``[B, H]``."""
        c = candidate.to(self.weight.dtype).expand(self.count, -1, -1)  # [E, B, D_candidate]
        part = torch.bmm(c, self.weight[:, self.user :])  # [E, B, out]
        mine = folded.narrow(1, self.folded_at, self.count * self.outputs)  # [B, E·out]
        mine.copy_(part.transpose(0, 1).flatten(1))

    def unfolded(
        self, once: Tensor, folded: Tensor, row_to_request: Tensor, first: int, count: int
    ) -> Tensor:
        """``[n, B, out]`` of maps from ``first`` on, given `once` and folded rows ``[B, H]``."""
        start = self.folded_at + first * self.outputs
        mine = folded.narrow(1, start, count * self.outputs).to(once.dtype)  # [B, n·out]
        part = mine.view(-1, count, self.outputs).transpose(0, 1)  # [n, B, out]
        of_user = once.narrow(0, first, count)  # [n, R, out]; [n, 1, out] without user columns
        if of_user.size(1) > 1:
            return of_user.index_select(1, row_to_request).add_(part)
        return of_user + part

    def forward(self, x: Rows) -> Tensor:
        """Map ``x`` to ``[E, B, out]``."""
        return self.rows(self.once(x.user), x, 0, self.count)


class StackedMLP(nn.Module):
    """``count`` MLPs with equal widths, each with its own input; the last layer may be linear."""

    def __init__(
        self,
        count: int,
        widths: Sequence[int],
        activation: Activation,
        *,
        activate_last: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.count = count
        self.widest = max(widths)
        self.linears = nn.ModuleList(
            StackedLinear(count, inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        hidden = len(widths) - 1 if activate_last else len(widths) - 2
        self.activations = nn.ModuleList(
            hidden_activation(activation, dropout) if layer < hidden else nn.Identity()
            for layer in range(len(widths) - 1)
        )

    def some(self, x: Tensor, first: int) -> Tensor:
        """Map ``[n, B, in]`` to ``[n, B, out]`` by the ``n`` MLPs from ``first`` on."""
        for linear, activation in zip(self.linears, self.activations):  # noqa: B905
            x = activation(linear(x, first))
        return x

    def forward(self, x: Tensor, reads: Tensor | None = None) -> Tensor:
        """Map ``[E, B, widths[0]]`` to ``[E, B, widths[-1]]``; MLP ``e`` reads ``x[reads[e]]``."""
        E = self.count
        n = experts_at_once(E, x.size(1), self.widest, x)
        parts: list[Tensor] = []
        for first in range(0, E, n):
            if reads is None:
                part = x[first : first + n]
            else:
                part = x.index_select(0, reads[first : first + n])  # [n, B, widths[0]]
            parts.append(self.some(part, first))
        return torch.cat(parts) if len(parts) > 1 else parts[0]  # [E, B, widths[-1]]


class InputMLP(nn.Module):
    """``count`` MLPs that all read the input ``x``."""

    def __init__(
        self,
        count: int,
        inputs: tuple[int, int],
        widths: Sequence[int],
        activation: Activation,
        *,
        activate_last: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.count = count
        self.widest = max(widths)
        self.first = InputLinear(count, *inputs, widths[0])
        is_hidden = len(widths) > 1 or activate_last
        self.activation = hidden_activation(activation, dropout) if is_hidden else nn.Identity()
        self.rest = StackedMLP(
            count, widths, activation, activate_last=activate_last, dropout=dropout
        )

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what the first layers make of candidates into their columns of ``[B, H]``."""
        self.first.fold(candidate, folded)

    def some(self, once: Tensor, x: Rows, first: int, count: int) -> Tensor:
        """``[n, B, widths[-1]]`` of the ``n = count`` MLPs from ``first`` on."""
        h = self.activation(self.first.rows(once, x, first, count))  # [n, B, widths[0]]
        return self.rest.some(h, first)

    def forward(self, x: Rows) -> Tensor:
        """Map ``x`` to ``[E, B, widths[-1]]``."""
        E = self.count
        once = self.first.once(x.user)  # [E, R, widths[0]]
        n = experts_at_once(E, x.row_to_request.size(0), self.widest, once)
        parts = [self.some(once, x, first, min(n, E - first)) for first in range(0, E, n)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]  # [E, B, widths[-1]]


def hidden_activation(activation: Activation, dropout: float) -> nn.Module:
    """The activation of a hidden layer, followed by dropout if there is any."""
    function = ACTIVATIONS[activation]()
    return nn.Sequential(function, nn.Dropout(dropout)) if dropout > 0 else function


class Towers(nn.Module):
    """One tower per task: an MLP, then a linear layer of width one in full precision."""

    def __init__(self, num_tasks: int, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self.inputs = inputs
        widths = (inputs, *config.tower_hidden_units)
        self.hidden = StackedMLP(num_tasks, widths, config.tower_activation, dropout=config.dropout)
        self.last_weight = draw(num_tasks, widths[-1], 1, inputs=widths[-1])  # [K, t, 1]
        self.last_bias = draw(num_tasks, 1, 1, inputs=widths[-1])  # [K, 1, 1]

    def forward(self, z: Tensor) -> Tensor:
        """Logits ``[B, K]`` from one input per task, ``[K, B, d]``."""
        h = full_precision(self.hidden(z))  # [K, B, t]
        weight, bias = full_precision(self.last_weight), full_precision(self.last_bias)
        logits = torch.baddbmm(bias, h, weight)  # [K, B, 1]
        return logits.squeeze(2).t().contiguous()  # [B, K]


def input_experts(count: int, inputs: tuple[int, int], config: NetworkConfig) -> InputMLP:
    """``count`` experts that read the input ``x``, with the sizes of ``config``."""
    return InputMLP(
        count,
        inputs,
        config.expert_hidden_units,
        config.expert_activation,
        activate_last=config.expert_output_activation,
        dropout=config.dropout,
    )
