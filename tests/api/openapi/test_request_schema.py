"""The JSON Schema of a model's request accepts exactly what the encoder accepts."""

import math
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import assume, given

from app.api.openapi.request_schema import request_schema
from app.api.openapi.score_schemas import ScoreRequest
from app.artifacts.encoding import Identity
from app.artifacts.inputs import DenseInput, IdInput
from tests.support.builders import manifest
from tests.support.documents import Case, cases, damaged


def fits(case: Case) -> bool:
    schema = request_schema(case.manifest, ScoreRequest.model_json_schema())
    document = {"user": case.user, "candidates": case.candidates}
    return bool(jsonschema_rs.validator_for(schema).is_valid(document))


@pytest.mark.no_cover
@pytest.mark.slow
@given(cases())
def test_schema_allows_what_the_encoder_accepts(case):
    if case.candidates == {}:  # without columns, the schema cannot require any
        case.candidates = []
    assert fits(case)


def is_expressible(case: Case, name: str, value: Any) -> bool:
    """Return whether JSON can hold the value, and a schema can express that it is wrong."""
    feature = next(feature for feature in case.manifest.inputs if feature.name == name)
    if isinstance(value, float) and not isinstance(feature, DenseInput):
        return False  # to JSON Schema, 1.0 is an integer
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return value.isprintable()  # no lone surrogate
    return True


@pytest.mark.no_cover
@pytest.mark.slow
@given(damaged())
def test_schema_refuses_what_the_encoder_refuses(drawn):
    case, damages = drawn
    for damage in damages:
        name = next(part for part in damage.place[1:] if isinstance(part, str))
        feature = next(feature for feature in case.manifest.inputs if feature.name == name)
        assume(is_expressible(case, name, damage.value))
        if not isinstance(feature, DenseInput) and feature.unknown == "reject":
            assume(isinstance(feature.encoding, Identity))  # the schema does not list a vocabulary
    assert not fits(case)


def test_feature_with_default_is_optional_and_shows_the_default():
    inputs = (
        IdInput(name="city", side="user", vocabulary_size=9, default=4),
        DenseInput(name="price", side="candidate"),
    )
    schema = request_schema(manifest(inputs=inputs), ScoreRequest.model_json_schema())
    assert schema["properties"]["user"]["properties"]["city"]["default"] == 4
    assert schema["required"] == ["candidates"]
    is_valid = jsonschema_rs.validator_for(schema).is_valid
    assert is_valid({"candidates": {"price": [0.5]}})
    assert not is_valid({"candidates": {}})
    assert not is_valid({"candidates": [{"price": 0.5, "prize": 1}]})


@pytest.mark.parametrize("part", ["candidate_keys", "ranking"])
def test_other_members_are_the_same_for_every_model(part):
    generic = ScoreRequest.model_json_schema()
    assert request_schema(manifest(), generic)["properties"][part] == generic["properties"][part]
