"""A naive version of the whole service: runs one request directly through `model.ts`."""

import math
import warnings
from functools import cache
from typing import Any

import torch

from app.artifacts.store import Artifact

HISTORY = 4  # maximum length of recent_items in tiny.toml


def direct_scores(artifact: Artifact, request: dict[str, Any]) -> dict[str, list[float]]:
    """Return the scores of `model.ts` of the tiny model for a score request in column form."""
    module = _module(artifact)
    user, candidates = request["user"], request["candidates"]
    recent = user["recent_items"]
    rows = len(candidates["item_id"])
    with torch.no_grad():
        logits = module(
            {
                "user_id": torch.tensor([user["user_id"]]),
                "age_bucket": torch.tensor([user["age_bucket"]]),
                "recent_items": torch.tensor([recent + [-1] * (HISTORY - len(recent))]),
                "activity": torch.tensor([user["activity"]]),
            },
            {
                "item_id": torch.tensor(candidates["item_id"]),
                "category": torch.tensor(candidates["category"]),
                "quality": torch.tensor(candidates["quality"]).reshape(rows, 2),
            },
            torch.zeros(rows, dtype=torch.int64),
        )
    click, like, dwell = logits.double().T.tolist()
    return {
        "click": [1 / (1 + math.exp(-z)) for z in click],
        "like": [1 / (1 + math.exp(-z)) for z in like],
        "dwell": [min(600.0, math.exp(z)) for z in dwell],
    }


@cache
def _module(artifact: Artifact) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: torch.jit.ScriptModule = torch.jit.load(artifact.folder / "model.ts")
    return module
