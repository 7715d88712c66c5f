"""Recorded requests, made up."""

from typing import Any

import numpy as np

from app.artifacts.traffic_log import ScoredFeatures, TrafficRecord
from tests.support.builders import batch, manifest


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
