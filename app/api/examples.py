"""Example requests that work as they are, made from a model's golden examples.

A listed vocabulary maps each row back to its id. A hash cannot be inverted: the example then has a
made-up id of the right type, and its scores differ from the golden ones.
"""

import itertools
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from app.artifacts.columns import Columns
from app.artifacts.encoding import Hashed, Id, Identity, Listed, Vocabularies
from app.artifacts.loader import Model
from app.artifacts.manifest import IdInput, IdListInput, Input

DEFAULT_CANDIDATES = 3
MOST_CANDIDATES = 100
"""What a caller may ask for; a golden request may have fewer."""
LONGEST_LIST = 5

_made: WeakKeyDictionary[Model, dict[int, bytes]] = WeakKeyDictionary()
"""Examples as JSON, by model and number of candidates; they go away with their model."""


def example_request(model: Model, candidates: int = DEFAULT_CANDIDATES) -> dict[str, Any]:
    """Return a score request: a golden user and up to `candidates` of its candidates.

    It is made once per model and size: it searches the vocabularies, which can be large, and the
    console asks for it every few seconds.
    """
    made = _made.setdefault(model, {})
    if candidates not in made:
        made[candidates] = _make(model, candidates)
    request: dict[str, Any] = orjson.loads(made[candidates])  # a copy: callers may change it
    return request


def _make(model: Model, candidates: int) -> bytes:
    manifest = model.manifest
    requests = list(model.golden.batch.requests())
    largest = max(requests, key=lambda each: each.rows)
    batch = next((each for each in requests if each.rows >= candidates), largest)
    rows = min(batch.rows, candidates)
    ids = _Ids(model.vocabularies)
    request = {
        "user": {f.name: _values(f, batch.user, 1, ids)[0] for f in manifest.user_inputs},
        "candidates": {
            f.name: _values(f, batch.candidate, rows, ids) for f in manifest.candidate_inputs
        },
        "candidate_keys": [f"item-{position}" for position in range(1, rows + 1)],
        "ranking": {"top_k": rows},
    }
    # orjson writes float32 0.1 as 0.1 and not as 0.10000000149011612.
    return orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)


class _Ids:
    """Maps rows of embedding tables back to ids."""

    def __init__(self, vocabularies: Vocabularies) -> None:
        self._by_row = {
            feature: dict(zip(vocabulary.values(), vocabulary.keys(), strict=True))
            for feature, vocabulary in vocabularies.items()
        }

    def of(self, feature: IdInput | IdListInput, rows: list[int]) -> list[Id]:
        """Return an id for each row; a made-up one if the vocabulary has none for it."""
        known = self._by_row.get(feature.name, {})
        match feature.encoding:
            case Identity():
                return list(rows)
            case Hashed(ids="string") | Listed(ids="string"):
                return [known.get(row, f"{feature.name}-{row}") for row in rows]
            case _:
                return [known.get(row, row) for row in rows]


def _values(feature: Input, columns: Columns, rows: int, ids: _Ids) -> list[Any]:
    values = list(columns[feature.name][:rows])
    if isinstance(feature, IdListInput):
        shown = [_unpadded(feature, rows.tolist())[:LONGEST_LIST] for rows in values]
        return [ids.of(feature, rows) for rows in shown]
    if isinstance(feature, IdInput):
        return ids.of(feature, [int(row) for row in values])
    return list(itertools.chain.from_iterable(values)) if feature.dim == 1 else values


def _unpadded(feature: IdListInput, ids: list[int]) -> list[int]:
    step = -1 if feature.padding_side == "right" else 1
    kept = list(itertools.dropwhile(lambda each: each == feature.padding, ids[::step]))
    return kept[::step]
