"""A module that takes minutes over one certain number."""

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from app.artifacts.columns import Batch
from app.artifacts.manifest import DenseInput, Description, TaskOutput
from app.ranking.policy import Policy

HANGS = 7.0


class Slow(nn.Module):
    def forward(
        self,
        user: dict[str, Tensor],  # noqa: ARG002
        candidate: dict[str, Tensor],
        row_to_request: Tensor,  # noqa: ARG002
    ) -> Tensor:
        x = candidate["x"]  # [B, 1]
        if bool((x == 7.0).any()):
            for _ in range(1_000_000_000):
                x = x + 1.0
        return x


def slow_module() -> tuple[Description, torch.jit.ScriptModule, Batch]:
    """What `publish` takes."""
    description = Description(
        name="slow",
        architecture="slow",
        inputs=(DenseInput(name="x", side="candidate"),),
        tasks=(TaskOutput(name="x", kind="regression", unit="", link="identity"),),
        ranking=Policy(weights={"x": 1.0}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(Slow().eval())
    requests = Batch({}, {"x": np.array([[1], [2], [3]], np.float32)}, np.array([0, 1, 1]))
    return description, module, requests
