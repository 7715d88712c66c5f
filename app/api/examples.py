"""A request that works as it is, made from a model's first golden example."""

import itertools
from typing import Any

import orjson

from app.artifacts.columns import Columns
from app.artifacts.loader import Model
from app.artifacts.manifest import DenseInput, IdListInput, Input

MOST_CANDIDATES = 3


def example_request(model: Model) -> dict[str, Any]:
    """Return a score request: a golden user with up to three of the golden candidates."""
    batch = model.golden.batch
    rows = min(batch.rows, MOST_CANDIDATES)
    manifest = model.manifest
    candidates = {f.name: _values(f, batch.candidate, rows) for f in manifest.candidate_inputs}
    request = {
        "user": {f.name: _values(f, batch.user, 1)[0] for f in manifest.user_inputs},
        "candidates": candidates,
        "candidate_keys": [f"item-{position}" for position in range(1, rows + 1)],
        "ranking": {"top_k": rows},
    }
    # Through orjson, so that float32 0.1 is written as 0.1 and not as 0.10000000149011612.
    plain: dict[str, Any] = orjson.loads(orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY))
    return plain


def _values(feature: Input, columns: Columns, rows: int) -> list[Any]:
    values = list(columns[feature.name][:rows])
    if isinstance(feature, IdListInput):
        return [[i for i in ids.tolist() if i != feature.padding] for ids in values]
    if isinstance(feature, DenseInput) and feature.dim == 1:
        return list(itertools.chain.from_iterable(values))
    return values
