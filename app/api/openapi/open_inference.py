"""OpenAPI operations and schemas of the infer calls, and the V2 form of errors."""

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from app.api.examples import example_request
from app.api.openapi.open_inference_schemas import InferRequest, InferResponse
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
from app.artifacts.inputs import IdListInput, Input
from app.artifacts.loader import Model
from app.artifacts.model_tables import NO_TABLES, ModelTables
from app.errors import GatehouseError
from app.protocol.open_inference.infer import HEADER_LENGTH, ROUTES
from app.protocol.open_inference.tensor_data import STRINGS, datatypes_of

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
    "additionalProperties": False,
}
_LENGTH = {
    "description": "Bytes of the JSON document at the start of the body; binary data follows it.",
    "schema": {"type": "integer", "minimum": 0},
}


def errors(*kinds: type[GatehouseError]) -> dict[int | str, dict[str, Any]]:
    """Describe the responses to some errors in the V2 form; see `responses.problems`."""
    responses = problems(*kinds)
    for response in responses.values():
        response["content"] = {"application/json": {"schema": _ERROR}}
    return responses


def schemas() -> dict[str, Any]:
    """Return the schemas of the infer calls' documents."""
    _, generated = models_json_schema(
        [(InferRequest, "validation"), (InferResponse, "serialization")], ref_template=SCHEMA
    )
    definitions: dict[str, Any] = generated["$defs"]
    return definitions


def operations(served: Sequence[Served], *, needs_key: bool) -> dict[str, dict[str, Any]]:
    """Return the POST operation of each path."""
    models = [model for model, _ in served]
    examples = {
        model.manifest.name: {
            "value": example_infer_request(model, tables, shows_users=not needs_key)
        }
        for model, tables in served
    }
    # A JSON document, then binary tensors; the header gives the length of the document.
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    request = {"schema": {"$ref": SCHEMA.format(model="InferRequest")}, "examples": examples}
    response = {"schema": {"$ref": SCHEMA.format(model="InferResponse")}}
    length = HEADER_LENGTH.decode()
    length_header = {"in": "header", "name": length, **_LENGTH}
    return {
        path: {
            "tags": ["open inference protocol"],
            "summary": summary,
            "operationId": path.strip("/").translate(str.maketrans("/", "_", "{}")),
            "parameters": [*path_parameters(path, models), *REQUEST_HEADERS, length_header],
            "requestBody": {"required": True, "content": {"application/json": request, **binary}},
            "responses": {
                "200": {
                    "description": "Outputs; the data of binary ones follows the JSON document",
                    "headers": {**REQUEST_ID, **RESPONSE_HEADERS, length: _LENGTH},
                    "content": {"application/json": response, **binary},
                },
                **{
                    str(status): response
                    for status, response in errors(*scoring_errors(path)).items()
                },
            },
        }
        for path, summary in ROUTES.items()
    }


def example_infer_request(
    model: Model, tables: ModelTables = NO_TABLES, *, shows_users: bool = True
) -> dict[str, Any]:
    """Return the model's example request as tensors in JSON; see `example_request`."""
    native = example_request(model, tables=tables, shows_users=shows_users)
    known = {feature.name: feature for feature in model.manifest.inputs}
    for bound in tables.all:
        known.setdefault(bound.table.key, bound.key_input)
    if tables.users is not None and not isinstance(native["user"], dict):
        native["user"] = {tables.users.table.key: native["user"]}
    if tables.items is not None and isinstance(native["candidates"], list):
        native["candidates"] = {tables.items.table.key: native["candidates"]}
    inputs = []
    for feature in known.values():
        is_of_user = feature.side == "user"
        side = native["user" if is_of_user else "candidates"]
        if feature.name not in side:  # it comes from a table
            continue
        sent = side[feature.name]
        rows = [
            values if isinstance(values, list) else [values]
            for values in ([sent] if is_of_user else sent)
        ]
        width = max(map(len, rows))
        inputs.append(
            {
                "name": feature.name,
                "shape": [len(rows), width],
                "datatype": datatypes_of(feature)[0],
                "data": [_padded(feature, row, width) for row in rows],
            }
        )
    return {"inputs": inputs}


def _padded(feature: Input, row: list[Any], width: int) -> list[Any]:
    if not isinstance(feature, IdListInput):
        return row
    padding = "" if datatypes_of(feature) == STRINGS else feature.padding
    pads = [padding] * (width - len(row))
    return [*row, *pads] if feature.padding_side == "right" else [*pads, *row]
