"""Recorded requests, made up, and a module whose order differs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.artifacts.traffic_log import ScoredFeatures, TrafficRecord, to_parquet
from tests.support.builders import batch, manifest


class Reversed(nn.Module):
    """[B, 2]: the opposite order of clicks, and twice the dwell."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        click = 0.1 * candidate["item"].to(torch.float32) - 0.01 * user["age"][row_to_request, 0]
        return torch.stack([click, 2 * candidate["quality"].sum(1)], dim=1)


def record_of(rows: int = 3, model: str = "feed", **changes: Any) -> TrafficRecord:
    """Return a record of a request to a model as `tests.support.builders` describes it."""
    described = manifest(name=model)
    features = batch(described.inputs, (rows,))
    random = np.random.default_rng(rows)
    scored = ScoredFeatures(
        dict(features.user),
        dict(features.candidate),
        {},
        random.random((rows, 2), np.float32),
        random.random(rows, np.float32),
    )
    fields: dict[str, Any] = {
        "manifest": described,
        "unix_s": 1e9,
        "role": "active",
        "status": 200,
        "duration_s": 0.001,
        "policy": "default",
        "stages_s": {"queue": 0.001},
        "scored": scored,
        "size": 1000 + rows * 20,
    }
    return TrafficRecord(**(fields | changes))


def write_log(folder: Path, records: Sequence[TrafficRecord], name: str = "1") -> None:
    """Write records of one version as a file of a log."""
    model = folder / records[0].manifest.name
    model.mkdir(parents=True, exist_ok=True)
    (model / f"{name}.parquet").write_bytes(to_parquet(records))
