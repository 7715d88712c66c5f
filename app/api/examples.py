"""Example requests that work as they are, made from a model's golden examples.

A listed vocabulary maps each row back to its id. A hash cannot be inverted: the example then has a
made-up id of the right type, and its scores differ from the golden ones.

Where API keys guard the users table, callers without one get an example without a user of it.
"""

from typing import Any
from weakref import WeakKeyDictionary

import orjson

from app.artifacts.ids import feature_values, ids_of
from app.artifacts.inputs import IdInput
from app.artifacts.loader import Interface
from app.artifacts.model_tables import NO_TABLES, BoundTable, ModelTables

DEFAULT_CANDIDATES = 3
MOST_CANDIDATES = 100
"""What a caller may ask for; a golden request may have fewer."""

_MOST_MADE = 100

_made: WeakKeyDictionary[Interface, dict[tuple[int | str, ...], bytes]] = WeakKeyDictionary()
"""Examples as JSON, by model, number of candidates and tables; they go away with their model."""


def example_request(
    model: Interface,
    candidates: int = DEFAULT_CANDIDATES,
    tables: ModelTables = NO_TABLES,
    *,
    shows_users: bool = True,
) -> dict[str, Any]:
    """Return a score request: a golden user and up to `candidates` of its candidates.

    Where the version serves from a table, the request has keys of that table instead. Without
    `shows_users` it has no key of the users table: the golden user's features stand there, and if
    the key is one of them, an id that no user has.

    It is made once per model, size and tables: it searches the vocabularies, which can be large,
    and the console asks for it every few seconds.
    """
    examples = _made.setdefault(model, {})
    key: tuple[int | str, ...] = (
        candidates,
        shows_users,
        *("/".join((bound.kind, *bound.table.ids)) for bound in tables.all),
    )
    if key not in examples:
        if len(examples) >= _MOST_MADE:  # deltas come and go
            examples.clear()
        examples[key] = _make(model, candidates, tables, shows_users=shows_users)
    request: dict[str, Any] = orjson.loads(examples[key])  # a copy: callers may change it
    return request


def _make(model: Interface, candidates: int, tables: ModelTables, *, shows_users: bool) -> bytes:
    request = _full(model, candidates)
    if tables.users is not None and not shows_users:
        _hide_user(tables.users, request["user"])
    elif tables.users is not None and (keys := tables.users.table.first_keys(1)):
        request["user"] = _by_key(tables.users, keys[0], request["user"])
    if tables.items is not None and (keys := tables.items.table.first_keys(candidates)):
        rows = len(keys)
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


def _hide_user(bound: BoundTable, user: dict[str, Any]) -> None:
    """Replace the id of a golden user, who may be in the table, if it is a feature."""
    for feature in bound.features:
        if feature.name == bound.table.key and isinstance(feature, IdInput):
            user[feature.name] = "nobody" if feature.encoding.id_type is str else 0


def _by_key(bound: BoundTable, key: Any, full: dict[str, Any]) -> Any:  # noqa: ANN401  (JSON)
    """Return one side of a request: keys only if that is enough."""
    if bound.is_complete:
        return key
    return {bound.table.key: key} | {
        feature.name: full[feature.name] for feature in bound.others if feature.default is None
    }


def _full(model: Interface, candidates: int) -> dict[str, Any]:
    """Return a golden request with every feature."""
    manifest = model.manifest
    requests = list(model.golden.batch.requests())
    largest = max(requests, key=lambda request: request.rows)
    batch = next((request for request in requests if request.rows >= candidates), largest)
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
