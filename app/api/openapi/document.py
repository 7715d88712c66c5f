"""The OpenAPI document: FastAPI's routes, and the scoring routes in front of them.

Its schemas and examples are those of the active models. It takes 0.1 s to write, so a thread writes
it, once for each change of the models.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi

from app.api.openapi import native, open_inference as v2
from app.api.openapi.responses import REQUEST_ID, Served, example_parameter, problems
from app.artifacts.loader import Model
from app.artifacts.model_tables import NO_TABLES
from app.lifecycle.registry import Registry
from app.scoring.keys import Keys

_FASTAPI_ERROR = "#/components/schemas/HTTPValidationError"
_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "API key. Scoring, ranking and rows of tables require one if the server has "
    "keys. With one, an example request may have the key of a user. Other calls never need one.",
}
_GUARDED = ("/rank", "/items/{key}", "/users/{key}")
"""How the paths end that need a key where score calls do."""


def install(app: FastAPI, registry: Registry, keys: Keys) -> None:
    """Make `app` publish the document of the whole API instead of its own routes only."""
    cache: dict[object, bytes] = {}

    async def publish() -> Response:
        models = [
            (model, registry.tables.get(model, NO_TABLES)) for model in registry.active_models()
        ]
        manifests = [model.manifest for model, _ in models]
        versions = tuple(
            (manifest.name, manifest.version, manifest.created) for manifest in manifests
        )
        contents = tuple(bound.table.ids for _, tables in models for bound in tables.all)
        state = (versions, contents, keys.are_required)  # examples have keys of the tables
        content = cache.get(state)
        if content is None:
            content = await asyncio.to_thread(_document, app, models, needs_key=keys.are_required)
            cache.clear()
            cache[state] = content
        return Response(content, media_type="application/json")

    path = app.openapi_url
    assert path is not None
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "path", None) != path]
    app.add_api_route(path, publish, include_in_schema=False)


def _document(app: FastAPI, served: Sequence[Served], *, needs_key: bool) -> bytes:
    models = [model for model, _ in served]
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
    )
    key: dict[str, list[str]] = {"key": []}
    if_wanted = [key, {}]
    security = [key] if needs_key else if_wanted
    for path, methods in document["paths"].items():
        for operation in methods.values():
            _complete(path, operation, models)
            if path.endswith(_GUARDED):
                operation["security"] = security
            elif path.endswith("/example"):
                operation["security"] = if_wanted
    scoring = {
        path: {"post": operation | {"security": security}}
        for path, operation in (
            native.operations(served, needs_key=needs_key)
            | v2.operations(served, needs_key=needs_key)
        ).items()
    }
    document["paths"] = scoring | document["paths"]
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"key": _SCHEME}
    schemas = _without_fastapi_errors(components.get("schemas", {}))
    components["schemas"] = schemas | native.schemas(served) | v2.schemas()
    return orjson.dumps(document)


def _complete(path: str, operation: dict[str, Any], models: Sequence[Model]) -> None:
    """Complete one of FastAPI's operations: examples, errors and headers."""
    for parameter in operation.get("parameters", []):
        parameter.update(example_parameter(parameter["name"], models))
    responses = operation["responses"]
    if _FASTAPI_ERROR in str(responses.get("422")):
        del responses["422"]  # parameters are strings, so FastAPI never refuses one
    for status, response in (v2.errors() if path.startswith("/v2") else problems()).items():
        responses.setdefault(str(status), response)
    for response in responses.values():
        response["headers"] = REQUEST_ID | response.get("headers", {})


def _without_fastapi_errors(schemas: dict[str, Any]) -> dict[str, Any]:
    """Leave out FastAPI's own error documents: this server never sends them."""
    never = ("HTTPValidationError", "ValidationError")
    return {name: schema for name, schema in schemas.items() if name not in never}
