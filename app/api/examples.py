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
from app.artifacts.model_tables import NO_TABLES, BoundTable, ModelTables

DEFAULT_CANDIDATES = 3
MOST_CANDIDATES = 100
"""What a caller may ask for; a golden request may have fewer."""
LONGEST_LIST = 5

_MOST_MADE = 100

_made: WeakKeyDictionary[Model, dict[tuple[int | str, ...], bytes]] = WeakKeyDictionary()
"""Examples as JSON, by model, number of candidates and tables; they go away with their model."""


def example_request(
    model: Model, candidates: int = DEFAULT_CANDIDATES, tables: ModelTables = NO_TABLES
) -> dict[str, Any]:
    """Return a score request: a golden user and up to `candidates` of its candidates.

    Where the version serves from a table, the request has keys of that table instead.

    It is made once per model, size and tables: it searches the vocabularies, which can be large,
    and the console asks for it every few seconds.
    """
    made = _made.setdefault(model, {})
    key: tuple[int | str, ...] = (
        candidates,
        *(f"{each.kind}/{each.table.label}" for each in tables.all),
    )
    if key not in made:
        if len(made) >= _MOST_MADE:  # deltas come and go
            made.clear()
        made[key] = _make(model, candidates, tables)
    request: dict[str, Any] = orjson.loads(made[key])  # a copy: callers may change it
    return request


def _make(model: Model, candidates: int, tables: ModelTables) -> bytes:
    request = _full(model, candidates)
    if tables.users is not None and (keys := tables.users.table.keys(0, 1)):
        request["user"] = _by_key(tables.users, keys[0], request["user"])
    if tables.items is not None and (keys := tables.items.table.keys(0, candidates)):
        rows = min(len(keys), candidates)
        if not tables.items.is_complete:  # the golden request has the other features
            rows = min(rows, len(request["candidate_keys"]))
        request["candidates"] = _by_key(tables.items, keys[:rows], request["candidates"])
        request["ranking"] = {"top_k": rows}
        del request["candidate_keys"]
        if isinstance(request["candidates"], dict):
            cut = request["candidates"].items()
            request["candidates"] = {name: values[:rows] for name, values in cut}
    # orjson writes float32 0.1 as 0.1 and not as 0.10000000149011612.
    return orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)


def _by_key(bound: BoundTable, key: Any, full: dict[str, Any]) -> Any:  # noqa: ANN401  (JSON)
    """Return one side of a request: keys alone if that is enough."""
    if bound.is_complete:
        return key
    return {bound.table.key: key} | {
        each.name: full[each.name] for each in bound.others if each.default is None
    }


def _full(model: Model, candidates: int) -> dict[str, Any]:
    """Return a golden request with every feature."""
    manifest = model.manifest
    requests = list(model.golden.batch.requests())
    largest = max(requests, key=lambda each: each.rows)
    batch = next((each for each in requests if each.rows >= candidates), largest)
    rows = min(batch.rows, candidates)
    ids = ids_of(model)
    return {
        "user": {f.name: feature_values(f, batch.user, 1, ids)[0] for f in manifest.user_inputs},
        "candidates": {
            f.name: feature_values(f, batch.candidate, rows, ids) for f in manifest.candidate_inputs
        },
        "candidate_keys": [f"item-{position}" for position in range(1, rows + 1)],
        "ranking": {"top_k": rows},
    }


def ids_of(model: Model) -> "Ids":
    """Return what maps rows of a model's embedding tables back to ids."""
    return Ids(model.vocabularies)


class Ids:
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


def feature_values(
    feature: Input, columns: Columns, rows: int, ids: Ids, shown_ids: int | None = LONGEST_LIST
) -> list[Any]:
    """Return the values of a feature as a request has them; at most `shown_ids` of a list."""
    values = list(columns[feature.name][:rows])
    if isinstance(feature, IdListInput):
        shown = [_unpadded(feature, rows.tolist())[:shown_ids] for rows in values]
        return [ids.of(feature, rows) for rows in shown]
    if isinstance(feature, IdInput):
        return ids.of(feature, [int(row) for row in values])
    return list(itertools.chain.from_iterable(values)) if feature.dim == 1 else values


def _unpadded(feature: IdListInput, ids: list[int]) -> list[int]:
    step = -1 if feature.padding_side == "right" else 1
    kept = list(itertools.dropwhile(lambda each: each == feature.padding, ids[::step]))
    return kept[::step]
