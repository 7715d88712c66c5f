"""Mixture of experts with one gate for all tasks: OMoE, equation 5 of the MMoE paper.

Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018.
"""

from torch import Tensor, nn

from models.networks.config import NetworkConfig
from models.networks.features import Rows
from models.networks.gates import InputGates, mix
from models.networks.layers import Towers, input_experts


class MoE(nn.Module):
    """``ℓ_k = T_k(Σ_i g_i(x) f_i(x))``."""

    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        n = config.num_experts
        self.num_tasks = num_tasks
        self.experts = input_experts(n, inputs, config)
        self.gate = InputGates([range(n)], n, inputs, config)
        self.towers = Towers(num_tasks, config.expert_hidden_units[-1], config)

    def forward(self, x: Rows) -> Tensor:
        """Logits ``[B, K]``."""
        e = self.experts(x)  # [n, B, d]
        g = self.gate(x)  # [B, 1, n]
        z = mix(g, e)  # [1, B, d], eq. 5
        logits: Tensor = self.towers(z.expand(self.num_tasks, -1, -1))  # [B, K]
        return logits

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what the first layers make of candidates into ``[B, H]``."""
        self.experts.fold(candidate, folded)
        self.gate.fold(candidate, folded)

    def gate_weights(self, x: Rows) -> list[Tensor]:
        """The gate's weights, ``[B, 1, n]``."""
        return [self.gate(x)]
