"""Customized gate control: task experts and shared experts.

Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
Personalized Recommendations", RecSys 2020, equations 1 to 5 and figure 4.

The experts of a level are always in this order: those of task 1, …, those of task K, then the
shared ones.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.networks.config import NetworkConfig
from models.networks.features import Rows
from models.networks.gates import InputGates, mix
from models.networks.layers import Towers, input_experts


def task_gates(task_experts: Sequence[int], num_shared: int) -> list[list[int]]:
    """The experts that each task's gate sees: its own, then the shared ones (eq. 4)."""
    shared_from = sum(task_experts)
    shared = list(range(shared_from, shared_from + num_shared))
    starts = [sum(task_experts[:k]) for k in range(len(task_experts))]
    return [
        [*range(start, start + own), *shared]
        for start, own in zip(starts, task_experts, strict=True)
    ]


class CGC(nn.Module):
    """``ℓ_k = T_k(g_k(x) · [E_k(x); E_s(x)])``."""

    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        task_experts = config.task_experts(num_tasks)
        num_experts = sum(task_experts) + config.num_shared_experts
        sees = task_gates(task_experts, config.num_shared_experts)
        self.experts = input_experts(num_experts, inputs, config)
        self.gates = InputGates(sees, num_experts, inputs, config)
        self.towers = Towers(num_tasks, config.expert_hidden_units[-1], config)

    def forward(self, x: Rows) -> Tensor:
        """Logits ``[B, K]``."""
        e = self.experts(x)  # [Σm_t + m_s, B, d]
        g = self.gates(x)  # [B, K, Σm_t + m_s], eq. 3; 0 for other tasks' experts
        z = mix(g, e)  # [K, B, d], eq. 2
        logits: Tensor = self.towers(z)  # [B, K], eq. 5
        return logits

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what the first layers make of candidates into ``[B, H]``."""
        self.experts.fold(candidate, folded)
        self.gates.fold(candidate, folded)

    def gate_weights(self, x: Rows) -> list[Tensor]:
        """The gates' weights, ``[B, K, Σm_t + m_s]``."""
        return [self.gates(x)]
