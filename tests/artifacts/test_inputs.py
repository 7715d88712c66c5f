"""The rules of inputs: what an artifact may say about its features."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input

ID: dict[str, Any] = {"name": "item", "side": "candidate", "vocabulary_size": 10}
DENSE: dict[str, Any] = {"name": "quality", "side": "candidate"}
INT64_END = 2**63


def test_kind_selects_the_type_of_an_input():
    read = TypeAdapter(Input).validate_python({"kind": "id_list", "max_length": 2, **ID})
    assert read == IdListInput(max_length=2, **ID)


def refused(kind: type, fields: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(fields)
    return str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": 0},
        {"name": ""},
        {"name": "a/b"},
        {"name": "../up"},
        {"name": ".hidden"},
        {"name": "line\nend"},
        {"name": "end\n"},
        {"name": "x" * 65},
        {"side": "server"},
        {"dim": 2, "default": (1.0,)},
        {"default": (float("nan"),)},
        {"default": (float("inf"),)},
        {"default": (1e39,)},
        {"defualt": (1.0,)},
        {"missing": "default"},
        {"missing": "nan"},
        {"missing": "unknown", "default": (1.0,)},
    ],
    ids=str,
)
def test_a_dense_input_that_breaks_a_rule_is_refused(fields):
    refused(DenseInput, DENSE | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"vocabulary_size": 0},
        {"vocabulary_size": INT64_END},
        {"unknown": 10},
        {"unknown": -1},
        {"unknown": "drop"},
        {"unknown": "reject", "missing": "unknown"},
        {"default": INT64_END},
        {"default": 10, "unknown": "reject"},
        {"default": -1, "unknown": "reject"},
    ],
    ids=str,
)
def test_an_id_input_that_breaks_a_rule_is_refused(fields):
    refused(IdInput, ID | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_length": 0},
        {"max_length": 2, "default": (1, 2, 3)},
        {"max_length": 2, "default": (1, INT64_END)},
        {"max_length": 2, "default": (1, 10), "unknown": "reject"},
        {"max_length": 2, "padding": INT64_END},
        {"max_length": 2, "padding": -INT64_END - 1},
        {"max_length": 2, "padding_side": "both"},
        {"max_length": 2, "unknown": 10},
    ],
    ids=str,
)
def test_an_id_list_input_that_breaks_a_rule_is_refused(fields):
    refused(IdListInput, ID | fields)


def test_unknown_default_is_accepted_if_unknown_ids_are():
    assert IdInput(**ID, default=-1).default == -1


@pytest.mark.parametrize("name", ["wage per hour", "_item", "停留", "p(click)", "x" * 64])
def test_features_have_names_of_any_script_with_spaces_inside(name):
    assert DenseInput(**DENSE | {"name": name}).name == name
