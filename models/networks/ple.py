"""Progressive layered extraction: CGC in levels, with a shared gate between them.

Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
Personalized Recommendations", RecSys 2020, equations 6 and 7 and figure 5. The experts of a level
are in the order of :mod:`models.networks.cgc`.

Two details distinguish PLE from similar networks. From the second level on, the input of a gate is
the *previous level's output*, not ``x``; and the shared gate sees the experts of *every* task as
well as the shared ones. The last level has no shared gate, because nothing would read its output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.cgc import task_gates
from models.networks.config import NetworkConfig
from models.networks.features import Rows
from models.networks.gates import Gates, InputGates, mix
from models.networks.layers import StackedMLP, Towers, input_experts


def level_gates(task_experts: Sequence[int], num_shared: int, *, last: bool) -> list[list[int]]:
    """The experts that each gate of a level sees: K task gates, then the shared gate."""
    sees = task_gates(task_experts, num_shared)
    return sees if last else [*sees, list(range(sum(task_experts) + num_shared))]


class Level(nn.Module):
    """A level above the first: from ``X^j`` to ``X^{j+1}``, one matrix per task and one shared."""

    owner: Tensor

    def __init__(self, num_tasks: int, config: NetworkConfig, *, last: bool) -> None:
        super().__init__()
        counts = (*config.task_experts(num_tasks), config.num_shared_experts)
        owner = torch.arange(num_tasks + 1).repeat_interleave(torch.tensor(counts))
        self.register_buffer(
            "owner", owner, persistent=False
        )  # [Σm_t + m_s]: the X that each expert reads
        d = config.expert_hidden_units[-1]
        self.experts = StackedMLP(
            sum(counts),
            (d, *config.expert_hidden_units),
            config.expert_activation,
            activate_last=config.expert_output_activation,
            dropout=config.dropout,
        )
        sees = level_gates(counts[:-1], counts[-1], last=last)
        self.num_gates = len(sees)
        self.gates = Gates(sees, sum(counts), d, config)

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``X`` ``[K + 1, B, d]`` to the next ``X`` and the weights ``[B, G, Σm_t + m_s]``.

        The next ``X`` is ``[G, B, d]`` with G = K + 1, or K after the last level.
        """
        e = self.experts(X, self.owner)  # [Σm_t + m_s, B, d]
        g = self.gates(X[: self.num_gates])  # [B, G, Σm_t + m_s]
        return mix(g, e), g  # eq. 6


class PLE(nn.Module):
    """``X_k^{j+1} = g_k^j(X_k^j) · [E_k^j(X_k^j); E_s^j(X_s^j)]``; ``ℓ_k = T_k(X_k^{N+1})``."""

    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        task_experts = config.task_experts(num_tasks)
        num_experts = sum(task_experts) + config.num_shared_experts
        N = config.levels
        sees = level_gates(task_experts, config.num_shared_experts, last=N == 1)
        self.experts = input_experts(num_experts, inputs, config)  # level 1: every gate reads x
        self.gates = InputGates(sees, num_experts, inputs, config)
        self.levels = nn.ModuleList(Level(num_tasks, config, last=j == N) for j in range(2, N + 1))
        self.towers = Towers(num_tasks, config.expert_hidden_units[-1], config)

    def forward(self, x: Rows) -> Tensor:
        """Logits ``[B, K]``."""
        X = mix(self.gates(x), self.experts(x))  # [K + 1, B, d], eq. 6 for level 1
        for level in self.levels:
            X, _ = level(X)  # [K + 1, B, d]; the last level: [K, B, d]
        logits: Tensor = self.towers(X)  # [B, K], eq. 7
        return logits

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what the first layers make of candidates into ``[B, H]``."""
        self.experts.fold(candidate, folded)
        self.gates.fold(candidate, folded)

    def gate_weights(self, x: Rows) -> list[Tensor]:
        """The gates' weights of every level, ``[B, K + 1, Σm_t + m_s]``; last: ``[B, K, …]``."""
        weights = [self.gates(x)]
        X = mix(weights[0], self.experts(x))  # [K + 1, B, d]
        for level in self.levels:
            X, g = level(X)
            weights.append(g)
        return weights
