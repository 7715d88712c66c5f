"""A module that is slow for certain inputs: about a second for one value, hours for another."""

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from app.artifacts.columns import ModelInputs
from app.artifacts.inputs import DenseInput
from app.artifacts.manifest import Description, TaskOutput
from app.ranking.policy import Policy

DAWDLES = 5.0
HANGS = 7.0


class Slow(nn.Module):
    def forward(
        self,
        user: dict[str, Tensor],  # noqa: ARG002
        candidate: dict[str, Tensor],
        row_to_request: Tensor,  # noqa: ARG002
    ) -> Tensor:
        x = candidate["x"]  # [B, 1]
        turns = 0
        if bool((x == 5.0).any()):
            turns = 500_000
        if bool((x == 7.0).any()):
            turns = 10_000_000_000
        y = x
        for _ in range(turns):
            y = y + 1.0
        return torch.minimum(x, y)


def slow_module() -> tuple[Description, torch.jit.ScriptModule, ModelInputs]:
    """Return the arguments of `publish`."""
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
    requests = ModelInputs({}, {"x": np.array([[1], [2], [3]], np.float32)}, np.array([0, 1, 1]))
    return description, module, requests
