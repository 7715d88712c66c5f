"""Shared-Bottom: one MLP for all tasks, one tower per task (Caruana, "Multitask Learning", 1997).

The form is equation 1 of Ma et al., "Modeling Task Relationships in Multi-task Learning with
Multi-gate Mixture-of-Experts", KDD 2018.
"""

from torch import Tensor, nn

from models.networks.config import NetworkConfig
from models.networks.features import Rows
from models.networks.layers import Towers, input_experts


class SharedBottom(nn.Module):
    """``ℓ_k = T_k(f(x))``."""

    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.bottom = input_experts(1, inputs, config)
        self.towers = Towers(num_tasks, config.expert_hidden_units[-1], config)

    def forward(self, x: Rows) -> Tensor:
        """Logits ``[B, K]``."""
        z = self.bottom(x)  # [1, B, d]
        logits: Tensor = self.towers(z.expand(self.num_tasks, -1, -1))  # [B, K], eq. 1
        return logits

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what the first layer makes of candidates into ``[B, H]``."""
        self.bottom.fold(candidate, folded)

    def gate_weights(self, x: Rows) -> list[Tensor]:  # noqa: ARG002 (every body has it)
        """No gates, no weights."""
        return []
