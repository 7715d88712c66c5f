"""The OpenAPI document: FastAPI's own routes, and the scoring routes in front of them.

Made anew at each call: its schemas and examples are those of the models that are active now.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api.described import REQUEST_ID, example_parameter, problems
from app.api.keys import Keys
from app.api.native_operations import operations, schemas
from app.api.v2 import described as v2
from app.artifacts.registry import Registry

_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "Scoring needs a key where the server has any; nothing else does.",
}


def install(app: FastAPI, registry: Registry, keys: Keys) -> None:
    """Make `app` publish the whole API."""

    def openapi() -> dict[str, Any]:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        for path, methods in document["paths"].items():
            for operation in methods.values():
                _complete(path, operation, registry)
        key: dict[str, list[str]] = {"key": []}
        security = [key] if keys.are_needed else [key, {}]
        scoring = {
            path: {"post": operation | {"security": security}}
            for path, operation in (operations(registry) | v2.operations(registry)).items()
        }
        document["paths"] = scoring | document["paths"]
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"key": _SCHEME}
        components["schemas"] = (
            _sent(components.get("schemas", {})) | schemas(registry) | v2.schemas()
        )
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _complete(path: str, operation: dict[str, Any], registry: Registry) -> None:
    """Say of one of FastAPI's operations what it leaves out, and not what it makes up."""
    for parameter in operation.get("parameters", []):
        parameter.update(example_parameter(parameter["name"], registry))
    answers = operation["responses"]
    answers.pop("422", None)  # every parameter is a string: there is nothing to refuse
    for status, answer in (v2.errors() if path.startswith("/v2") else problems()).items():
        answers.setdefault(str(status), answer)
    for answer in answers.values():
        answer["headers"] = REQUEST_ID | answer.get("headers", {})


def _sent(schemas: dict[str, Any]) -> dict[str, Any]:
    """Leave out FastAPI's own error documents: here they are never sent."""
    never = ("HTTPValidationError", "ValidationError")
    return {name: schema for name, schema in schemas.items() if name not in never}
