"""A request that works as it is, made from a model's golden examples.

A vocabulary gives each row its id back. A hash does not: there an id of the right type, made up of
the feature's name and the row, stands in, and the answer is not the golden one.
"""

import itertools
from typing import Any

import orjson

from app.artifacts.columns import Columns
from app.artifacts.encoding import Hashed, Id, Identity, Listed, Vocabularies
from app.artifacts.loader import Model
from app.artifacts.manifest import IdInput, IdListInput, Input

MOST_CANDIDATES = 3
LONGEST_LIST = 5


def example_request(model: Model) -> dict[str, Any]:
    """Return a score request: a golden user and up to three of its candidates."""
    manifest = model.manifest
    requests = list(model.golden.batch.requests())
    batch = next((each for each in requests if each.rows >= MOST_CANDIDATES), requests[0])
    rows = min(batch.rows, MOST_CANDIDATES)
    names = _Names(model.vocabularies)
    request = {
        "user": {f.name: _values(f, batch.user, 1, names)[0] for f in manifest.user_inputs},
        "candidates": {
            f.name: _values(f, batch.candidate, rows, names) for f in manifest.candidate_inputs
        },
        "candidate_keys": [f"item-{position}" for position in range(1, rows + 1)],
        "ranking": {"top_k": rows},
    }
    # Through orjson, so that float32 0.1 is written as 0.1 and not as 0.10000000149011612.
    plain: dict[str, Any] = orjson.loads(orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY))
    return plain


class _Names:
    """The ids that stand for rows of a table."""

    def __init__(self, vocabularies: Vocabularies) -> None:
        self._by_row = {
            feature: dict(zip(vocabulary.values(), vocabulary.keys(), strict=True))
            for feature, vocabulary in vocabularies.items()
        }

    def of(self, feature: IdInput | IdListInput, rows: list[int]) -> list[Id]:
        """An id for each row; it need not be known where the row is the unknown."""
        known = self._by_row.get(feature.name, {})
        match feature.encoding:
            case Identity():
                return list(rows)
            case Hashed(ids="string") | Listed(ids="string"):
                return [known.get(row, f"{feature.name}-{row}") for row in rows]
            case _:
                return [known.get(row, row) for row in rows]


def _values(feature: Input, columns: Columns, rows: int, names: _Names) -> list[Any]:
    values = list(columns[feature.name][:rows])
    if isinstance(feature, IdListInput):
        shown = [_unpadded(feature, ids.tolist())[:LONGEST_LIST] for ids in values]
        return [names.of(feature, ids) for ids in shown]
    if isinstance(feature, IdInput):
        return names.of(feature, [int(row) for row in values])
    return list(itertools.chain.from_iterable(values)) if feature.dim == 1 else values


def _unpadded(feature: IdListInput, ids: list[int]) -> list[int]:
    step = -1 if feature.padding_side == "right" else 1
    real = list(itertools.dropwhile(lambda each: each == feature.padding, ids[::step]))
    return real[::step]
