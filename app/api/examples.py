"""A request that works as it is, made from a model's golden examples."""

import itertools
from typing import Any

import orjson

from app.artifacts.columns import Columns
from app.artifacts.loader import Model
from app.artifacts.manifest import DenseInput, IdListInput, Input

MOST_CANDIDATES = 3
LONGEST_LIST = 5


def example_request(model: Model) -> dict[str, Any]:
    """Return a score request: a golden user and up to three of its candidates."""
    manifest = model.manifest
    requests = list(model.golden.batch.requests())
    batch = next((each for each in requests if each.rows >= MOST_CANDIDATES), requests[0])
    rows = min(batch.rows, MOST_CANDIDATES)
    request = {
        "user": {f.name: _values(f, batch.user, 1)[0] for f in manifest.user_inputs},
        "candidates": {
            f.name: _values(f, batch.candidate, rows) for f in manifest.candidate_inputs
        },
        "candidate_keys": [f"item-{position}" for position in range(1, rows + 1)],
        "ranking": {"top_k": rows},
    }
    # Through orjson, so that float32 0.1 is written as 0.1 and not as 0.10000000149011612.
    plain: dict[str, Any] = orjson.loads(orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY))
    return plain


def _values(feature: Input, columns: Columns, rows: int) -> list[Any]:
    values = list(columns[feature.name][:rows])
    if isinstance(feature, IdListInput):
        return [_unpadded(feature, ids.tolist())[:LONGEST_LIST] for ids in values]
    if isinstance(feature, DenseInput) and feature.dim == 1:
        return list(itertools.chain.from_iterable(values))
    return values


def _unpadded(feature: IdListInput, ids: list[int]) -> list[int]:
    step = -1 if feature.padding_side == "right" else 1
    real = list(itertools.dropwhile(lambda each: each == feature.padding, ids[::step]))
    return real[::step]
