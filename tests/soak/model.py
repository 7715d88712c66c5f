"""A model whose scores identify the request and the version."""

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from app.artifacts.columns import ModelInputs
from app.artifacts.inputs import DenseInput
from app.artifacts.manifest import Description, RequestCall, TaskOutput
from app.artifacts.publish import publish
from app.artifacts.store import Artifact, Store
from app.ranking.policy import Policy

NAME = "echo"


class Echo(nn.Module):
    """Three tasks: user value + candidate value, candidate value, version."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = float(version)

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        c = candidate["c"][:, 0]  # [B, 1] → [B]
        u = user["u"][row_to_request][:, 0]  # [R, 1] → [B]
        return torch.stack([u + c, c, torch.full_like(c, self.version)], dim=1)  # [B, 3]

    @torch.jit.export
    def fold(self, candidate: dict[str, Tensor]) -> Tensor:
        return candidate["c"]  # [B, 1]

    @torch.jit.export
    def score_folded(
        self, user: dict[str, Tensor], folded: Tensor, row_to_request: Tensor
    ) -> Tensor:
        return self.forward(user, {"c": folded}, row_to_request)


def publish_echo(store: Store) -> Artifact:
    """Publish the next version of the model."""
    version = max(store.versions(NAME), default=0) + 1
    description = Description(
        name=NAME,
        architecture="echo",
        inputs=(DenseInput(name="u", side="user"), DenseInput(name="c", side="candidate")),
        call=RequestCall(),
        tasks=tuple(
            TaskOutput(
                name=name, kind="regression", unit="", link="identity", output={"column": column}
            )
            for column, name in enumerate(("sum", "own", "version"))
        ),
        ranking=Policy(weights={"sum": 1.0}),
        folded_width=1,
    )
    golden = ModelInputs(
        user={"u": np.array([[1], [2]], np.float32)},
        candidate={"c": np.array([[1], [2], [3]], np.float32)},
        row_to_request=np.array([0, 1, 1]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artifact = publish(store, description, torch.jit.script(Echo(version).eval()), golden)
    assert artifact.version == version
    return artifact
