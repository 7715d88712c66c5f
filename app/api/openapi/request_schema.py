"""A model's request as JSON Schema (2020-12): its features by name, type, length and range.

Descriptions say what a schema cannot express: all columns have the same length, and there is one
key per candidate.
"""

from collections.abc import Sequence
from typing import Any

from app.artifacts.encoding import Identity
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import NO_TABLES, BoundTable, ModelTables
from app.protocol.features import BEYOND_FLOAT32

Schema = dict[str, Any]

_COLUMNS = "an object of columns: feature name to list of n values"
_KEYS = "a list of n different keys of the items table"
_OBJECTS = "a list of n objects: feature name to value"


def request_schema(manifest: Manifest, generic: Schema, tables: ModelTables = NO_TABLES) -> Schema:
    """Narrow `generic`, the schema of any score request, to the features of one model.

    Where the version serves from a table, its keys are accepted, and what the table has is optional
    beside them.
    """
    user = _features(manifest.user_inputs)
    candidate = _features(manifest.candidate_inputs)
    columns = _features(manifest.candidate_inputs)
    columns["properties"] = {
        name: {"type": "array", "items": value} for name, value in columns["properties"].items()
    }
    candidates = [
        columns | {"description": _COLUMNS},
        {"type": "array", "items": candidate, "description": _OBJECTS},
    ]
    user |= {"description": "user features: name to value"}
    is_required = "required" in user
    if tables.users is not None:
        user = {"anyOf": [_key(tables.users), _beside_key(tables.users), user]}
    if tables.items is not None:
        candidates = _with_keys(tables.items, candidates, candidate)
    properties = generic["properties"] | {"user": user, "candidates": {"anyOf": candidates}}
    return generic | {
        "title": f"ScoreRequest of {manifest.name}",
        "description": f"One user and n candidates of {manifest.name}, version {manifest.version}.",
        "properties": properties,
        "required": ["candidates", *(["user"] if is_required else [])],
    }


def _with_keys(bound: BoundTable, candidates: Sequence[Schema], candidate: Schema) -> list[Schema]:
    """Return the forms of candidates where the items have a table."""
    key, beside = _key(bound), _beside_key(bound)
    columns = beside | {
        "properties": {
            name: {"type": "array", "items": value} for name, value in beside["properties"].items()
        }
    }
    mixed = {"type": "array", "items": {"anyOf": [key, beside, candidate]}}
    return [
        {"type": "array", "items": key, "description": _KEYS},
        columns | {"description": _COLUMNS},
        mixed | {"description": _OBJECTS},
        candidates[0],
    ]


def _key(bound: BoundTable) -> Schema:
    key = bound.key_input
    assert isinstance(key, IdInput)
    return _id(key) | {"description": f"{bound.table.key}, the key of the {bound.kind} table"}


def _beside_key(bound: BoundTable) -> Schema:
    """Return an object with a key, in which the features of the table are optional."""
    needed = [feature.name for feature in bound.others if feature.default is None]
    schema = _features(bound.features)
    schema["properties"] = {bound.table.key: _key(bound)} | schema["properties"]
    schema["required"] = [bound.table.key, *needed]
    return schema


def _features(inputs: Sequence[Input]) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": {feature.name: _value(feature) for feature in inputs},
        "additionalProperties": False,
    }
    if required := [feature.name for feature in inputs if feature.default is None]:
        schema["required"] = required
    return schema


def _value(feature: Input) -> Schema:
    match feature:
        case DenseInput():
            schema = _numbers(feature)
        case IdInput():
            schema = _id(feature)
        case IdListInput():
            items = _id(feature)
            if feature.reserves_padding and isinstance(feature.encoding, Identity):
                items = items | {"not": {"const": feature.padding}}
            schema = {"type": "array", "items": items, "maxItems": feature.max_length}
            if feature.missing == "unknown":
                schema = {"anyOf": [schema, {"type": "null"}]}
    return schema if feature.default is None else schema | {"default": feature.default}


def _numbers(feature: DenseInput) -> Schema:
    # A boolean counts as 0 or 1.
    may_miss = feature.missing != "refuse"
    number = {
        "type": ["number", "boolean", *(["null"] if may_miss else [])],
        "exclusiveMinimum": -BEYOND_FLOAT32,
        "exclusiveMaximum": BEYOND_FLOAT32,
    }
    vector = {"type": "array", "items": number, "minItems": feature.dim, "maxItems": feature.dim}
    if feature.dim == 1:
        return {"anyOf": [number, vector]}
    return {"anyOf": [vector, {"type": "null"}]} if may_miss else vector


def _id(feature: IdInput | IdListInput) -> Schema:
    schema = _known_id(feature)
    if feature.missing == "refuse":
        return schema
    return schema | {"type": [schema["type"], "null"]}


def _known_id(feature: IdInput | IdListInput) -> Schema:
    if feature.encoding.id_type is str:
        return {"type": "string"}
    if feature.unknown == "reject" and isinstance(feature.encoding, Identity):
        return {"type": "integer", "minimum": 0, "maximum": feature.vocabulary_size - 1}
    return {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
