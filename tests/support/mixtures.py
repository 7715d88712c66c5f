"""A module with gates, and requests for it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.artifacts.store import Artifact
from app.engine.request import RequestFeatures
from tests.support.builders import INPUTS, Request, batch, published

GATES: dict[str, Any] = {
    "gates": ["click", "dwell"],
    "experts": ["a", "b", "c"],
    "sees": [[0, 1, 2], [1, 2]],
}


class Mixture(Request):
    """Two gates over three experts; the second gate does not see the first expert."""

    def __init__(self, rows: float = 1.0) -> None:
        super().__init__()
        self.rows = rows

    @torch.jit.export
    def gate_weights(
        self,
        user: dict[str, Tensor],  # noqa: ARG002
        candidate: dict[str, Tensor],
        row_to_request: Tensor,  # noqa: ARG002
    ) -> list[Tensor]:
        quality = candidate["quality"].sigmoid()  # [B, 2]
        first, second = quality[:, :1], quality[:, 1:]  # [B, 1]
        none = torch.zeros_like(first)
        weights = torch.stack(
            [
                torch.cat([first * second, first * (1 - second), 1 - first], 1),
                torch.cat([none, first, self.rows - first], 1),
            ],
            1,
        )
        return [weights]  # [B, 2, 3]


def mixture(folder: Path) -> Artifact:
    """Publish a module with two gates in the store at `folder`."""
    return published(folder, Mixture(), gates=(GATES,))


def features(*, rows: int, seed: int = 0, chosen: slice = slice(None)) -> RequestFeatures:
    """Return a random request, or the chosen ones of its candidates."""
    inputs = batch(INPUTS, [rows], seed=seed)
    candidate = {name: column[chosen] for name, column in inputs.candidate.items()}
    return RequestFeatures(inputs.user, candidate, len(candidate["item"]), {})
