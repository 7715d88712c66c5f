"""`GET /v1/models/{model}/items/{key}` and `/users/{key}`: one row of a table, for debugging."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, JsonValue

from app.api.openapi.responses import problems
from app.artifacts.ids import feature_values, ids_of
from app.artifacts.inputs import DenseInput, Input
from app.artifacts.loader import Model
from app.artifacts.model_tables import NO_TABLES, BoundTable
from app.artifacts.tables.description import TableKind
from app.errors import KeyNotFound, ModelNotFound, NotReady, Unauthorized
from app.lifecycle.registry import Registry
from app.scoring.keys import Keys
from app.scoring.request_headers import read_headers


class TableRow(BaseModel):
    """One row of a table."""

    model: str
    table: str = Field(description="items or users")
    version: str
    key: int | str
    features: dict[str, JsonValue] = Field(
        description="as a request would send them; an id that was hashed is shown as its row"
    )


def routes(registry: Registry, keys: Keys) -> APIRouter:
    """Return the routes over the tables of a registry's active versions.

    A row is data about a user or an item: it needs an API key where score calls do.
    """
    router = APIRouter(prefix="/v1/models/{model}", tags=["models"])
    responses = problems(Unauthorized, ModelNotFound, KeyNotFound, NotReady)

    def check_key(request: Request) -> None:
        keys.name_of(read_headers(request.scope["headers"]).get(b"authorization"))

    # A key may have slashes, which arrive decoded.
    @router.get("/items/{key:path}", summary="One row of the items table", responses=responses)
    async def show_item(model: str, key: str, request: Request) -> TableRow:
        check_key(request)
        return _row(registry, model, "items", key)

    @router.get("/users/{key:path}", summary="One row of the users table", responses=responses)
    async def show_user(model: str, key: str, request: Request) -> TableRow:
        check_key(request)
        return _row(registry, model, "users", key)

    return router


def _row(registry: Registry, name: str, kind: TableKind, path_key: str) -> TableRow:
    model = registry.active(name)
    tables = registry.tables.get(model, NO_TABLES)
    bound: BoundTable | None = getattr(tables, kind)
    if bound is None:
        raise KeyNotFound(f'model "{model.manifest.name}" has no table of {kind}')
    key = _key(bound, path_key)
    keys: Any = np.array([key], np.int64) if isinstance(key, int) else [key]
    position = bound.table.find(keys) if key is not None else np.array([-1])
    if position[0] < 0:
        raise KeyNotFound(f"the table {kind}/{bound.table.label} has no such {bound.table.key}")
    assert key is not None
    return TableRow(
        model=model.manifest.name,
        table=kind,
        version=bound.table.label,
        key=key,
        features={
            feature.name: _shown(model, bound, feature, position)
            for feature in bound.features
            if feature.name in bound.names
        },
    )


def _key(bound: BoundTable, path_key: str) -> int | str | None:
    """Return the key that a path names; None if it cannot be one."""
    if bound.table.key_type is str:
        return path_key
    digits = path_key.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        return None
    key = int(path_key)
    return key if -(2**63) <= key < 2**63 else None


def _shown(
    model: Model, bound: BoundTable, feature: Input, position: "np.ndarray[Any, Any]"
) -> Any:  # noqa: ANN401  (a value of any feature, as JSON)
    column = {feature.name: bound.table.gather(feature.name, position)}
    (value,) = feature_values(feature, column, 1, ids_of(model), shown_ids=None)
    if isinstance(feature, DenseInput):  # 0.1 and not 0.10000000149011612
        numbers = [float(str(number)) for number in np.atleast_1d(value)]
        return numbers[0] if feature.dim == 1 else numbers
    return value
