"""A model with predictable results, and a lane that runs on the event loop's clock."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.artifacts.columns import ModelInputs
from app.artifacts.golden import Golden
from app.artifacts.inputs import DenseInput
from app.artifacts.loader import Model
from app.artifacts.manifest import FileDigest, Manifest, RequestCall, TaskOutput
from app.artifacts.program import Program
from app.engine.batch import Batch, Chunk
from app.engine.lanes import BatchResult, OnResult, rank, run
from app.engine.request import BatchTiming, QueuedRequest, RequestFeatures
from app.ranking.policies import NO_POLICIES
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
    program = Program(module, manifest, torch.device("cpu"), has_steady_cost=True)
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


def queued(
    user: float, candidates: Sequence[float], *, model: Model | None = None
) -> QueuedRequest:
    """The same as a batcher takes it."""
    model = model or sums_model()
    ranking = NO_POLICIES.policies_for(model.manifest.traits).default_options
    return QueuedRequest(model, request(user, candidates), ranking)


def chunk_of(
    features: RequestFeatures,
    start: int = 0,
    stop: int | None = None,
    *,
    model: Model | None = None,
) -> Chunk:
    """Rows `start` to `stop` of a request; all of them by default."""
    model = model or sums_model()
    ranking = NO_POLICIES.policies_for(model.manifest.traits).default_options
    owner = QueuedRequest(model, features, ranking)
    return Chunk(owner, features, start, features.rows if stop is None else stop)


def expected(user: float, candidates: Sequence[float]) -> list[list[float]]:
    """Return the scores that `sums_model` computes for a request."""
    return [[user + c, c] for c in candidates]


class FakeLane:
    """Run real batches that take `a_s + b_s · rows` seconds of loop time each.

    Batches of more than `memory_rows` rows fail with an out-of-memory error. `batches` records the
    start time (loop clock) and the rows of each chunk for every batch. `inline_rows` records the
    rows of batches that ran on the event loop, in no time. A batch is a part of its time,
    `cpu_share`, on a core.
    """

    def __init__(
        self,
        name: str = "lane-0",
        *,
        a_s: float = 0.010,
        b_s: float = 0.0,
        memory_rows: int | None = None,
        runs_inline: bool = False,
        cpu_share: float = 1.0,
    ) -> None:
        self.name = name
        self._cpu_share = cpu_share
        self.runs_inline = runs_inline
        self.inline_rows: list[int] = []
        self.batches: list[tuple[float, list[int]]] = []
        self.busy = False
        self._a_s = a_s
        self._b_s = b_s
        self._memory_rows = memory_rows

    def submit(self, batch: Batch, on_result: OnResult) -> None:
        assert not self.busy, "one batch at a time"
        self.busy = True
        loop = asyncio.get_running_loop()
        rows = [chunk.rows for chunk in batch.chunks]
        self.batches.append((round(loop.time(), 9), rows))
        duration_s = self._a_s + self._b_s * sum(rows)
        result = run(batch.model, batch.chunks)
        rank(batch.chunks, result)
        result.timing = self._timing(duration_s)
        if self._memory_rows is not None and sum(rows) > self._memory_rows:
            result = BatchResult(torch.OutOfMemoryError("no memory"))
        loop.call_later(duration_s, self._report, on_result, result)

    def run_inline(self, batch: Batch) -> BatchResult:
        assert not self.busy, "one batch at a time"
        self.inline_rows.append(batch.rows)
        result = run(batch.model, batch.chunks)
        rank(batch.chunks, result)
        result.timing = self._timing(self._a_s + self._b_s * batch.rows)
        return result

    def _timing(self, duration_s: float) -> BatchTiming:
        return BatchTiming(compute_s=duration_s, cpu_s=self._cpu_share * duration_s)

    def _report(self, on_result: OnResult, result: BatchResult) -> None:
        self.busy = False
        on_result(result)

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
