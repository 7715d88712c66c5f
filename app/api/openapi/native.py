"""OpenAPI operations and schemas of the native scoring calls."""

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from app.api.examples import example_request
from app.api.openapi.request_schema import request_schema
from app.api.openapi.responses import (
    REQUEST_HEADERS,
    REQUEST_ID,
    RESPONSE_HEADERS,
    SCHEMA,
    Served,
    path_parameters,
    problems,
    scoring_errors,
)
from app.api.openapi.score_schemas import (
    RankRequest,
    RankResponse,
    ScoreRequest,
    ScoreResponse,
)
from app.api.problems import Problem
from app.protocol.native import ROUTES


def schemas(served: Sequence[Served]) -> dict[str, Any]:
    """Return the schemas of the native documents, with one request schema per active model."""
    _, generated = models_json_schema(
        [
            (ScoreRequest, "validation"),
            (ScoreResponse, "serialization"),
            (Problem, "validation"),
            (RankRequest, "validation"),
            (RankResponse, "serialization"),
        ],
        ref_template=SCHEMA,
    )
    definitions: dict[str, Any] = generated["$defs"]
    own = {
        _name(model.manifest.name): request_schema(
            model.manifest, definitions["ScoreRequest"], tables
        )
        for model, tables in served
    }
    return definitions | own


def operations(served: Sequence[Served], *, needs_key: bool) -> dict[str, dict[str, Any]]:
    """Return the POST operation of each path."""
    models = [model for model, _ in served]
    names = [_name(model.manifest.name) for model in models]
    body: dict[str, Any] = {
        "schema": _any_of(names or ["ScoreRequest"]),
        "examples": {
            model.manifest.name: {
                "value": example_request(model, tables=tables, shows_users=not needs_key)
            }
            for model, tables in served
        },
    }
    return {
        path: {
            "tags": ["score"],
            "summary": summary,
            "operationId": path.strip("/").translate(str.maketrans("/", "_", "{}")),
            "parameters": [*path_parameters(path, models), *REQUEST_HEADERS],
            "requestBody": {"required": True, "content": {"application/json": body}},
            "responses": {
                "200": {
                    "description": "Scores, rank scores and the ranking",
                    "headers": {**REQUEST_ID, **RESPONSE_HEADERS},
                    "content": {"application/json": {"schema": _any_of(["ScoreResponse"])}},
                },
                **{
                    str(status): response
                    for status, response in problems(*scoring_errors(path)).items()
                },
            },
        }
        for path, summary in ROUTES.items()
    }


def _name(model: str) -> str:
    return f"ScoreRequest.{model}"


def _any_of(names: Sequence[str]) -> dict[str, Any]:
    """Return the schema of a document that matches one of these components."""
    references = [{"$ref": SCHEMA.format(model=name)} for name in names]
    return references[0] if len(references) == 1 else {"anyOf": references}
