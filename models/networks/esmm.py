"""Entire space multi-task model: a behaviour after a click, learned from all impressions.

Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
Conversion Rate", SIGIR 2018, equation 1: pCTCVR = pCTR · pCVR. The product is computed as
a sum of log-probabilities: it is exact, and has a gradient for arbitrarily small factors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.features import Rows
from models.networks.layers import Body


class ESMM(nn.Module):
    """``log pCTCVR = log σ(ℓ_click) + log σ(ℓ_conversion)``, with the logits of any ``body``.

    ``parents[k]`` is the column whose probability is multiplied with that of column ``k``; with
    ``None``, column ``k`` stays a logit.
    """

    parent: Tensor
    is_product: Tensor

    def __init__(self, body: Body, parents: Sequence[int | None]) -> None:
        super().__init__()
        self.body = body
        parent = torch.tensor([0 if k is None else k for k in parents])
        is_product = torch.tensor([k is not None for k in parents])
        self.register_buffer("parent", parent, persistent=False)  # [K]
        self.register_buffer("is_product", is_product, persistent=False)  # [K]

    def forward(self, x: Rows) -> Tensor:
        """Logits ``[B, K]``; product columns are log-probabilities."""
        logits = self.body(x)  # [B, K]
        log_p = functional.logsigmoid(logits)  # [B, K]
        product = log_p + log_p.index_select(1, self.parent)  # [B, K], eq. 1
        return torch.where(self.is_product, product, logits)

    def fold(self, candidate: Tensor, folded: Tensor) -> None:
        """Write what the body's first layers make of candidates into ``[B, H]``."""
        self.body.fold(candidate, folded)

    def gate_weights(self, x: Rows) -> list[Tensor]:
        """The gate weights of the body."""
        return self.body.gate_weights(x)
