"""What the architectures are made of: stacked linear maps, experts, towers.

The ``E`` experts of a level run side by side, one batched matrix product a layer, with the expert
as the leading axis of weights ``[E, in, out]`` and activations ``[E, B, out]``: the layout in which
a batched product copies neither.

The first layer of whatever reads the input ``x = [u; c]`` is split, by
``[u; c] W + b = (u W_u + b) + c W_c``: the bracket is computed once a request and gathered to rows.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from models.config import Activation, NetworkConfig
from models.features import Rows

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


class Body(Protocol):
    """An architecture: a module from the input ``x`` to one output a task."""

    def __call__(self, x: Rows) -> Tensor:
        """Outputs ``[B, K]`` before the inverse link, in full precision."""
        ...

    def gate_weights(self, x: Rows) -> list[Tensor]:
        """Each level's gate weights ``[B, gates, experts]``; empty without gates."""
        ...


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 where it is that: the precision of softmax and of logits."""
    return x if x.dtype == torch.float64 else x.float()


def draw(*shape: int, inputs: int) -> nn.Parameter:
    """A parameter drawn from U(-1/√inputs, 1/√inputs), every entry its own draw."""
    bound = inputs**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class StackedLinear(nn.Module):
    """``count`` linear maps, each of its own input."""

    def __init__(self, count: int, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = draw(count, inputs, outputs, inputs=inputs)  # [E, in, out]
        self.bias = draw(count, 1, outputs, inputs=inputs) if bias else None  # [E, 1, out]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[E, B, in]`` to ``[E, B, out]``."""
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class InputLinear(nn.Module):
    """``count`` linear maps of the one input ``x``; the user's part is computed once a request."""

    def __init__(
        self, count: int, user: int, candidate: int, outputs: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.user = user
        self.candidate = candidate
        inputs = user + candidate
        self.weight = draw(count, inputs, outputs, inputs=inputs)  # [E, D, out], user rows first
        self.bias = draw(count, 1, outputs, inputs=inputs) if bias else None  # [E, 1, out]

    def forward(self, x: Rows) -> Tensor:
        """Map ``x`` to ``[E, B, out]``."""
        E, dtype = self.weight.size(0), self.weight.dtype
        c = x.candidate.to(dtype).expand(E, -1, -1)  # [E, B, D_candidate], no copy
        if self.user == 0:
            if self.bias is None:
                return torch.bmm(c, self.weight)
            return torch.baddbmm(self.bias, c, self.weight)
        u = x.user.to(dtype).expand(E, -1, -1)  # [E, R, D_user], no copy
        user_weight = self.weight[:, : self.user]
        if self.bias is None:
            once = torch.bmm(u, user_weight)  # [E, R, out]
        else:
            once = torch.baddbmm(self.bias, u, user_weight)  # [E, R, out]
        rows = once.index_select(1, x.row_to_request)  # [E, B, out]
        if self.candidate == 0:
            return rows
        return rows.baddbmm_(c, self.weight[:, self.user :])


class StackedMLP(nn.Module):
    """``count`` MLPs of the same widths, each of its own input; the last layer may stay linear."""

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
        layers: list[nn.Module] = []
        for layer, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            layers.append(StackedLinear(count, inputs, outputs))
            if layer < len(widths) - 1 or activate_last:
                layers += activated(activation, dropout)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[E, B, widths[0]]`` to ``[E, B, widths[-1]]``."""
        for layer in self.layers:
            x = layer(x)
        return x


def activated(activation: Activation, dropout: float) -> list[nn.Module]:
    """What follows the linear part of a hidden layer."""
    function = ACTIVATIONS[activation]()
    return [function, nn.Dropout(dropout)] if dropout > 0 else [function]


class InputMLP(nn.Module):
    """``count`` MLPs of the one input ``x``."""

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
        is_activated = len(widths) > 1 or activate_last
        self.first = InputLinear(count, *inputs, widths[0])
        self.activation = nn.ModuleList(activated(activation, dropout) if is_activated else [])
        self.rest = StackedMLP(
            count, widths, activation, activate_last=activate_last, dropout=dropout
        )

    def forward(self, x: Rows) -> Tensor:
        """Map ``x`` to ``[E, B, widths[-1]]``."""
        h: Tensor = self.first(x)  # [E, B, widths[0]]
        for layer in self.activation:
            h = layer(h)
        out: Tensor = self.rest(h)  # [E, B, widths[-1]]
        return out


class Towers(nn.Module):
    """One tower a task: an MLP, then a linear layer of width one in full precision."""

    def __init__(self, num_tasks: int, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        widths = (inputs, *config.tower_hidden_units)
        self.hidden = StackedMLP(num_tasks, widths, config.tower_activation, dropout=config.dropout)
        self.last_weight = draw(num_tasks, widths[-1], 1, inputs=widths[-1])  # [K, t, 1]
        self.last_bias = draw(num_tasks, 1, 1, inputs=widths[-1])  # [K, 1, 1]

    def forward(self, z: Tensor) -> Tensor:
        """Logits ``[B, K]`` of the tasks' own inputs ``[K, B, d]``."""
        h = full_precision(self.hidden(z))  # [K, B, t]
        weight, bias = full_precision(self.last_weight), full_precision(self.last_bias)
        logits = torch.baddbmm(bias, h, weight)  # [K, B, 1]
        return logits.squeeze(2).t().contiguous()  # [B, K]


def input_experts(count: int, inputs: tuple[int, int], config: NetworkConfig) -> InputMLP:
    """``count`` experts of the input ``x``, as ``config`` describes an expert."""
    return InputMLP(
        count,
        inputs,
        config.expert_hidden_units,
        config.expert_activation,
        activate_last=config.expert_output_activation,
        dropout=config.dropout,
    )
