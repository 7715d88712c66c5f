"""The OpenAPI document: FastAPI's own routes, and the score routes in front of them.

Made anew at each call, so that its examples are those of the models that are active now.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.api.examples import example_request
from app.api.native import ROUTES
from app.api.problems import ERRORS, MEDIA_TYPE
from app.api.schemas import Problem, ScoreAnswer, ScoreRequest
from app.artifacts.registry import Registry

_SCHEMA = "#/components/schemas/{model}"


def install(app: FastAPI, registry: Registry) -> None:
    """Make `app` publish the whole API."""

    def openapi() -> dict[str, Any]:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        _, definitions = models_json_schema(
            [(ScoreRequest, "validation"), (ScoreAnswer, "serialization"), (Problem, "validation")],
            ref_template=_SCHEMA,
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(definitions["$defs"])
        scoring = {
            path: {"post": _score_operation(path, summary, registry)}
            for path, summary in ROUTES.items()
        }
        document["paths"] = scoring | document["paths"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _score_operation(path: str, summary: str, registry: Registry) -> dict[str, Any]:
    examples = {
        model.manifest.name: {"value": example_request(model)} for model in registry.models()
    }
    return {
        "tags": ["score"],
        "summary": summary,
        "parameters": [*_path_parameters(path, registry), *_HEADERS],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _reference(ScoreRequest), "examples": examples}
            },
        },
        "responses": {
            "200": {
                "description": "Scores, rank scores and the ranking",
                "content": {"application/json": {"schema": _reference(ScoreAnswer)}},
            },
            **_problem_responses(),
        },
    }


def _path_parameters(path: str, registry: Registry) -> list[dict[str, Any]]:
    first = next((model.manifest for model in registry.models()), None)
    parameters: list[dict[str, Any]] = []
    if "{model}" in path:
        parameters.append({"name": "model", "schema": {"type": "string"}})
        if first is not None:
            parameters[-1]["example"] = first.name
    if "{version}" in path:
        schema = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
        parameters.append({"name": "version", "schema": schema})
        if first is not None:
            parameters[-1]["example"] = first.version
    return [{"in": "path", "required": True, **parameter} for parameter in parameters]


_HEADERS = [
    {
        "in": "header",
        "name": "x-request-timeout-ms",
        "description": "After so many milliseconds no answer is wanted.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
    },
    {
        "in": "header",
        "name": "x-request-id",
        "description": "Comes back in the answer, in problem documents and in logs.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
    },
]


def _problem_responses() -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for error in ERRORS.values():
        status = str(int(error.status))
        described = responses.get(status, {}).get("description")
        responses[status] = {
            "description": f"{described}; {error.slug}" if described else error.slug,
            "content": {MEDIA_TYPE: {"schema": _reference(Problem)}},
        }
    return responses


def _reference(model: type) -> dict[str, str]:
    return {"$ref": _SCHEMA.format(model=model.__name__)}
