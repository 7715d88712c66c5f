"""A model of known cost: a given CPU time per batch and per row.

TorchScript cannot sleep, so the model computes. It multiplies one small matrix that fits into the
level 1 cache, so that it needs a core but no memory bandwidth.
"""

import time
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

_SIDE = 48


class Slow(nn.Module):
    """Return each candidate's value after a number of products of a small matrix."""

    matrix: Tensor

    def __init__(self, per_batch: float, per_row: float) -> None:
        super().__init__()
        self.per_batch = per_batch
        self.per_row = per_row
        self.register_buffer(
            "matrix", torch.eye(_SIDE).roll(1, 0)
        )  # a permutation, so its powers stay finite

    def forward(
        self,
        user: dict[str, Tensor],  # noqa: ARG002
        candidate: dict[str, Tensor],
        row_to_request: Tensor,
    ) -> Tensor:
        x = self.matrix
        for _ in range(int(self.per_batch + self.per_row * row_to_request.size(0))):
            x = torch.mm(x, self.matrix)
        return candidate["c"] + 0.0 * x[0, 0]  # [B, 1]


def publish_slow(store: Store, *, batch_s: float, row_s: float) -> Artifact:
    """Publish a model `slow` whose batches take about `batch_s + row_s · rows` seconds here."""
    torch.set_num_threads(1)
    product_s = _seconds_of_a_product()
    description = Description(
        name="slow",
        architecture="slow",
        inputs=(DenseInput(name="c", side="candidate"),),
        call=RequestCall(),
        tasks=(TaskOutput(name="own", kind="regression", unit="", link="identity"),),
        ranking=Policy(weights={"own": 1.0}),
    )
    golden = ModelInputs(
        {}, {"c": np.array([[1], [2], [3]], np.float32)}, np.array([0, 1, 1], np.int64)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Slow(batch_s / product_s, row_s / product_s).eval())
        return publish(store, description, scripted, golden)


def _seconds_of_a_product(products: int = 5_000) -> float:
    """Return the time of one product (s), the minimum of a few measurements."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.freeze(torch.jit.script(Slow(float(products), 0.0).eval()))
    columns = {"c": torch.zeros(1, 1)}
    least = np.inf
    with torch.inference_mode():
        for _ in range(10):
            began = time.perf_counter()
            module({}, columns, torch.zeros(1, dtype=torch.int64))
            least = min(least, time.perf_counter() - began)
    return least / products
