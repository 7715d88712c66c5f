"""A model with predictable results, and a lane that runs on the event loop's clock."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.artifacts.columns import ModelInputs
from app.artifacts.golden import Golden
from app.artifacts.loader import Model
from app.artifacts.manifest import DenseInput, FileDigest, Manifest, RequestCall, TaskOutput
from app.artifacts.program import Program
from app.engine.lanes import BatchResult, OnOutcome, Part, run
from app.engine.request import RequestFeatures
from app.ranking.policy import Policy

POISON = -1.0
"""The model raises an error if a candidate has this value."""
NOT_A_NUMBER = -2.0
"""The model returns NaN for a candidate with this value."""


class Sums(nn.Module):
    """Two tasks: user + candidate, and candidate."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        u = user["u"][row_to_request][:, 0]  # [R, 1] → [B]
        c = candidate["c"][:, 0]  # [B, 1] → [B]
        if bool((c == -1.0).any()):
            raise ValueError("poison")
        c = torch.where(c == -2.0, torch.full_like(c, float("nan")), c)
        return torch.stack([u + c, c], dim=1)  # [B, 2]


@cache
def sums_model(name: str = "sums", version: int = 1) -> Model:
    """Return a real model, built in memory."""
    manifest = Manifest(
        name=name,
        version=version,
        architecture="sums",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        torch_version=torch.__version__,
        inputs=(DenseInput(name="u", side="user"), DenseInput(name="c", side="candidate")),
        call=RequestCall(),
        tasks=(
            TaskOutput(name="sum", kind="regression", unit="", link="identity"),
            TaskOutput(
                name="own",
                kind="regression",
                unit="",
                link="identity",
                output={"column": 1},
            ),
        ),
        ranking=Policy(weights={"sum": 1.0}),
        files=dict.fromkeys(
            ("model.ts", "golden.safetensors"), FileDigest(sha256="0" * 64, size=0)
        ),
    )
    module = torch.jit.freeze(torch.jit.script(Sums().eval()))
    program = Program(module, manifest, torch.device("cpu"))
    batch = ModelInputs(
        user={"u": np.array([[1], [2]], np.float32)},
        candidate={"c": np.array([[1], [2], [3]], np.float32)},
        row_to_request=np.array([0, 1, 1]),
    )
    return Model(manifest, program, Golden.record(program, batch))


def request(user: float, candidates: Sequence[float]) -> RequestFeatures:
    """Return a request for `sums_model`."""
    return RequestFeatures(
        user={"u": np.array([[user]], np.float32)},
        candidate={"c": np.array(candidates, np.float32).reshape(-1, 1)},
        rows=len(candidates),
        unknown_ids={},
    )


def expected(user: float, candidates: Sequence[float]) -> list[list[float]]:
    """Return the scores that `sums_model` computes for a request."""
    return [[user + c, c] for c in candidates]


class FakeLane:
    """Run real batches that take `a_s + b_s · rows` seconds of loop time each.

    Batches of more than `memory_rows` rows fail with an out-of-memory error. `batches` records the
    start time (loop clock) and the rows of each chunk for every batch.
    """

    def __init__(
        self,
        name: str = "lane-0",
        *,
        a_s: float = 0.010,
        b_s: float = 0.0,
        memory_rows: int | None = None,
    ) -> None:
        self.name = name
        self.batches: list[tuple[float, list[int]]] = []
        self.busy = False
        self._a_s = a_s
        self._b_s = b_s
        self._memory_rows = memory_rows

    def submit(self, model: Model, parts: Sequence[Part], on_outcome: OnOutcome) -> None:
        assert not self.busy, "one batch at a time"
        self.busy = True
        loop = asyncio.get_running_loop()
        rows = [part.stop - part.start for part in parts]
        self.batches.append((round(loop.time(), 9), rows))
        outcome = replace(
            run(model, parts), collate_s=0, compute_s=self._a_s + self._b_s * sum(rows)
        )
        if self._memory_rows is not None and sum(rows) > self._memory_rows:
            outcome = BatchResult(torch.OutOfMemoryError("no memory"))
        loop.call_later(self._a_s + self._b_s * sum(rows), self._report, on_outcome, outcome)

    def _report(self, on_outcome: OnOutcome, outcome: BatchResult) -> None:
        self.busy = False
        on_outcome(outcome)

    @property
    def rows(self) -> list[int]:
        """Rows of each batch, in order."""
        return [sum(rows) for _, rows in self.batches]


def limits(**changes: Any) -> dict[str, Any]:
    """Return keyword arguments for a batcher, with small limits."""
    return {
        "max_batch_rows": 16,
        "min_chunk_rows": 4,
        "max_wait_s": 0.0,
        "max_queue_rows": 1000,
        **changes,
    }
