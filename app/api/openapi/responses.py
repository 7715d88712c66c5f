"""OpenAPI parts that many routes share: parameters, headers, and errors by status."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from app.api.problems import ERRORS, SCHEMA as PROBLEM
from app.artifacts.loader import Model
from app.artifacts.model_tables import ModelTables
from app.errors import (
    DeadlineUnmeetable,
    Draining,
    GatehouseError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotReady,
    NotSupported,
    Overloaded,
    PathNotFound,
    Unauthorized,
    VersionNotFound,
)
from app.protocol.problems import MEDIA_TYPE
from app.protocol.validation import LARGEST_TIMEOUT_S
from app.scoring.request_headers import PRIORITIES

Served = tuple[Model, ModelTables]
"""An active version and the tables that it serves from."""

SCHEMA = "#/components/schemas/{model}"
REQUEST_ID = {
    "x-request-id": {
        "description": "Request id: the client's, or a generated one. The server's log has it too.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
    }
}
REQUEST_HEADERS: Sequence[Mapping[str, Any]] = (
    {
        "in": "header",
        "name": "x-request-timeout-ms",
        "description": "Deadline of the request, in milliseconds from its arrival.",
        "schema": {"type": "integer", "minimum": 1, "maximum": int(LARGEST_TIMEOUT_S * 1e3)},
    },
    {
        "in": "header",
        "name": "x-request-priority",
        "description": "Priority in the queue.",
        "schema": {"type": "string", "enum": [name.decode() for name in PRIORITIES]},
    },
    {
        "in": "header",
        "name": "x-request-id",
        "description": "Request id: 1 to 128 letters, digits or any of ._:/+=- (any other value is "
        "replaced). The response, problem documents and the log repeat it.",
        "schema": {"type": "string"},
    },
    {
        "in": "header",
        "name": "traceparent",
        "description": "The caller's trace (W3C Trace Context). The response has one with the id "
        "of this call's span; the log has the ids. A malformed value is ignored.",
        "schema": {"type": "string"},
    },
)
"""Headers of scoring requests."""
RESPONSE_HEADERS: Mapping[str, Any] = {
    "x-record-id": {
        "description": "Id of this request in recorded traffic, if it is recorded and the server "
        "gives ids (`--record-ids random`).",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "server-timing": {
        "description": "Duration of each stage, in milliseconds.",
        "schema": {"type": "string"},
        "example": "decode;dur=0.021, encode;dur=0.034, queue;dur=0.010, compute;dur=1.204",
    },
}
"""Headers of responses with scores."""
_RETRY_AFTER = {
    "retry-after": {
        "description": "Seconds to wait before trying again, or use another replica.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_AUTHENTICATE = {
    "www-authenticate": {
        "description": "How to send the API key.",
        "schema": {"type": "string", "pattern": "^Bearer"},
    }
}
_HEADERS: Mapping[type[GatehouseError], Mapping[str, Any]] = {
    Unauthorized: _AUTHENTICATE,
    Overloaded: _RETRY_AFTER,
    NotReady: _RETRY_AFTER,
    Draining: _RETRY_AFTER,
    DeadlineUnmeetable: _RETRY_AFTER,
}


def path_parameters(path: str, models: Sequence[Model]) -> list[dict[str, Any]]:
    """Describe the parameters of a path, with an active model as the example."""
    types = {"model": {"type": "string"}, "version": {"type": "integer", "minimum": 1}}
    return [
        {"in": "path", "required": True, "name": name, "schema": schema}
        | example_parameter(name, models)
        for name, schema in types.items()
        if f"{{{name}}}" in path
    ]


def example_parameter(name: str, models: Sequence[Model]) -> dict[str, Any]:
    """Return the example of a path parameter, if it is a model or version and one is active."""
    manifest = models[0].manifest if models else None
    if manifest is None or name not in ("model", "version"):
        return {}
    return {"example": manifest.name if name == "model" else manifest.version}


def problems(*errors: type[GatehouseError]) -> dict[int | str, dict[str, Any]]:
    """Describe the responses to some errors, with an example each; a 500 is always possible."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status, same in _by_status([*errors, InternalError]).items():
        headers: dict[str, Any] = dict(REQUEST_ID)
        for error in same:
            headers |= _HEADERS.get(error, {})
        responses[int(status)] = {
            "description": "; ".join(error.title for error in same),
            "headers": headers,
            "content": {
                MEDIA_TYPE: {
                    "schema": PROBLEM,
                    "examples": {error.slug: {"value": _example(error)} for error in same},
                }
            },
        }
    return responses


def scoring_errors(path: str) -> list[type[GatehouseError]]:
    """Return the errors that a scoring call on this path may return."""
    never = {MethodNotAllowed, NotSupported, PathNotFound}
    if "{version}" not in path:
        never.add(VersionNotFound)
    return [error for error in ERRORS.values() if error not in never]


def _by_status(
    errors: Iterable[type[GatehouseError]],
) -> dict[HTTPStatus, list[type[GatehouseError]]]:
    by_status: dict[HTTPStatus, list[type[GatehouseError]]] = {}
    for error in sorted(errors, key=lambda error: error.status):
        by_status.setdefault(error.status, []).append(error)
    return by_status


def _example(error: type[GatehouseError]) -> dict[str, Any]:
    example: dict[str, Any] = {
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": int(error.status),
        "detail": (inspect.getdoc(error) or "").partition("\n")[0],
        "instance": "6b1c0a6f1f5a4c7e9d1f0f5b8f0f9a11",
    }
    if error is InvalidRequest:
        wrong = {"pointer": "/candidates/item_id/1", "detail": "must be an integer"}
        example |= {"detail": f"{wrong['pointer']}: {wrong['detail']}", "errors": [wrong]}
    return example
