"""Multi-gate mixture of experts: shared experts, one gate per task.

Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts", KDD 2018, equations 6 to 8.

Notation of all architectures: ``B`` rows, ``K`` tasks, ``n`` experts, ``d`` an expert's output
width, ``x`` the input, ``T_k`` the tower of task ``k``, ``ℓ_k`` its output before the inverse link.
"""

from torch import Tensor, nn

from models.networks.config import NetworkConfig
from models.networks.features import Rows
from models.networks.gates import InputGates, mix
from models.networks.layers import Towers, input_experts


class MMoE(nn.Module):
    """``ℓ_k = T_k(Σ_i g_k(x)_i f_i(x))``."""

    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        n = config.num_experts
        self.experts = input_experts(n, inputs, config)
        self.gates = InputGates([range(n)] * num_tasks, n, inputs, config)
        self.towers = Towers(num_tasks, config.expert_hidden_units[-1], config)

    def forward(self, x: Rows) -> Tensor:
        """Logits ``[B, K]``."""
        e = self.experts(x)  # [n, B, d]
        g = self.gates(x)  # [B, K, n], eq. 8
        z = mix(g, e)  # [K, B, d], eq. 7
        logits: Tensor = self.towers(z)  # [B, K], eq. 6
        return logits

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what the first layers make of candidates into ``[B, H]``."""
        self.experts.fold(candidate, folded)
        self.gates.fold(candidate, folded)

    def gate_weights(self, x: Rows) -> list[Tensor]:
        """The gates' weights, ``[B, K, n]``."""
        return [self.gates(x)]
