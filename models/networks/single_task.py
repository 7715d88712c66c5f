"""One network per task over shared embeddings: the baseline that sharing is measured against.

It has no paper. The sum of the task losses trains all networks at once; they share no weights
except the embeddings. Notation: :mod:`models.networks.mmoe`.
"""

from torch import Tensor, nn

from models.networks.config import NetworkConfig
from models.networks.features import Rows
from models.networks.layers import Towers, input_experts


class SingleTask(nn.Module):
    """``ℓ_k = T_k(MLP_k(x))``."""

    def __init__(self, inputs: tuple[int, int], num_tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.experts = input_experts(num_tasks, inputs, config)
        self.towers = Towers(num_tasks, config.expert_hidden_units[-1], config)

    def forward(self, x: Rows) -> Tensor:
        """Logits ``[B, K]``."""
        e = self.experts(x)  # [K, B, d]
        logits: Tensor = self.towers(e)  # [B, K]
        return logits

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what the first layers make of candidates into ``[B, H]``."""
        self.experts.fold(candidate, folded)

    def gate_weights(self, x: Rows) -> list[Tensor]:  # noqa: ARG002 (every body has it)
        """No gates, no weights."""
        return []
