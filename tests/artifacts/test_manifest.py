"""The manifest's rules: what an artifact may say about itself."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.artifacts.inputs import DenseInput, IdListInput
from app.artifacts.manifest import (
    Argument,
    Description,
    FileDigest,
    Manifest,
    Precision,
    RowsCall,
    TaskOutput,
    first_problem,
)
from app.ranking.policy import Policy
from tests.support.builders import description, manifest, task

TASK: dict[str, Any] = {"name": "click", "kind": "binary", "unit": "", "link": "sigmoid"}


def test_a_manifest_survives_being_written_and_read():
    written = manifest(
        call=RowsCall(
            style="dict",
            arguments=(
                Argument(name="x", pack=("age", "recent", "item", "quality"), dtype="float32"),
            ),
        )
    )
    assert Manifest.model_validate_json(written.model_dump_json()) == written


def test_a_figure_that_could_not_be_measured_is_written_and_read_as_none():
    written = manifest(evaluation={"click": {"auc": float("nan"), "log_loss": 0.5}})
    read = Manifest.model_validate_json(written.model_dump_json())
    assert read.evaluation == {"click": {"auc": None, "log_loss": 0.5}}


def test_the_sides_inputs_keep_their_order():
    assert [feature.name for feature in manifest().user_inputs] == ["age", "recent"]
    assert [feature.name for feature in manifest().candidate_inputs] == ["item", "quality"]
    assert manifest().task_names == ("click", "dwell")


def refused(kind: type, fields: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(fields)
    return str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"link": "softplus"},
        {"kind": "ordinal"},
        {"unit": "x" * 33},
        {"clamp": (1.0, 1.0)},
        {"clamp": (1.0, 0.0)},
        {"clamp": (0.0, float("nan"))},
        {"clamp": (0.0, float("inf"))},
        {"output": {"column": -1}},
        {"output": {"path": ""}},
    ],
    ids=str,
)
def test_a_task_that_breaks_a_rule_is_refused(fields):
    refused(TaskOutput, TASK | fields)


@pytest.mark.parametrize(
    "tolerance", [{"cpu": 0.0}, {"cpu": float("inf")}, {"cpu": float("nan")}, {"tpu": 0.1}], ids=str
)
def test_tolerance_that_is_not_a_positive_number_is_refused(tolerance):
    refused(Precision, {"tolerance": tolerance})


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"pack": ()}, "at least 1 item"),
        ({"dtype": "float16"}, "float32"),
        ({"rank": 3}, "1 or 2"),
        ({"rank": 1, "pack": ("age", "item")}, "rank 1"),
    ],
    ids=str,
)
def test_an_argument_that_breaks_a_rule_is_refused(fields, rule):
    argument = {"name": "x", "pack": ("age",), "dtype": "float32"}
    assert rule in refused(Argument, argument | fields)


def rows_call(*arguments: tuple[str, tuple[str, ...]]) -> RowsCall:
    return RowsCall(
        style="positional",
        arguments=tuple(
            Argument(name=name, pack=pack, dtype="float32") for name, pack in arguments
        ),
    )


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"name": "a/b"}, "pattern"),
        ({"inputs": ()}, "at least 1 item"),
        ({"tasks": ()}, "at least 1 item"),
        ({"tasks": (task("click"), task("click"))}, "two tasks have the same name"),
        (
            {
                "inputs": (
                    DenseInput(name="quality", side="candidate"),
                    DenseInput(name="quality", side="user"),
                )
            },
            "two inputs have the same name",
        ),
        ({"ranking": Policy(weights={"like": 1.0})}, 'ranking: unknown task "like"'),
        (
            {"call": rows_call(("x", ("age", "recent", "item", "quality", "price")))},
            'arguments: unknown input "price"',
        ),
        (
            {"call": rows_call(("x", ("age", "item")))},
            'no argument packs the input "quality", "recent"',
        ),
        (
            {"call": rows_call(("x", ("age", "recent")), ("x", ("item", "quality")))},
            "two arguments have the same name",
        ),
        ({"colour": "red"}, "Extra inputs"),
    ],
    ids=str,
)
def test_a_description_whose_names_disagree_is_refused(changes, rule):
    with pytest.raises(ValidationError) as caught:
        description(**changes)
    assert rule in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"version": 0},
        {"created": "yesterday"},
        {"files": {"model.ts": FileDigest(sha256="0" * 64, size=0)}},
        {"files": {"../model.ts": FileDigest(sha256="0" * 64, size=0)}},
    ],
    ids=str,
)
def test_a_manifest_that_breaks_a_rule_is_refused(changes):
    with pytest.raises(ValidationError):
        manifest(**changes)


@pytest.mark.parametrize("fields", [{"sha256": "0" * 63}, {"sha256": "G" * 64}, {"size": -1}])
def test_a_digest_that_breaks_a_rule_is_refused(fields):
    refused(FileDigest, {"sha256": "0" * 64, "size": 0} | fields)


def test_values_do_not_change():
    with pytest.raises(ValidationError):
        description().name = "other"  # type: ignore[misc]  # that it is refused is the point


def test_description_and_manifest_differ_by_what_publishing_adds():
    added = set(Manifest.model_fields) - set(Description.model_fields)
    assert added == {"format", "version", "created", "torch_version", "files"}


LISTED = (
    IdListInput(name="h", side="user", vocabulary_size=9, max_length=2, padding=0),
    DenseInput(name="x", side="candidate"),
)


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ({"pack": [{"of": "x", "take": "length"}]}, "only an id_list has length; x is not one"),
        ({"pack": [{"of": "h", "take": "ids", "empty": 9}]}, "empty must be below 9"),
        ({"pack": [{"of": "h", "take": "ids", "at_least": 1}]}, "at_least is for take = "),
        ({"pack": [{"of": "h", "take": "mask", "empty": 1}]}, "empty is for take = "),
        ({"pack": [{"of": "h", "take": "mask"}], "rank": 1}, "rank 1 takes one number per row"),
        ({"pack": [{"of": "g", "take": "mask"}]}, 'unknown input "g"'),
        ({"pack": [{"of": "h", "take": "lenght"}]}, "take: "),
        ({"pack": ["h"], "dtype": "int8"}, "dtype: "),
    ],
    ids=str,
)
def test_a_derived_part_that_breaks_a_rule_is_refused(argument, rule):
    arguments = [
        {"name": "a", "dtype": "int64"} | argument,
        {"name": "rest", "dtype": "float32", "pack": ["h", "x"]},
    ]
    call = {"layout": "rows", "style": "dict", "arguments": arguments}
    with pytest.raises(ValidationError) as caught:
        description(inputs=LISTED, call=call)
    assert rule in first_problem(caught.value, {"call": call})


def test_a_multiplier_is_a_number_that_is_never_nan():
    price = DenseInput(name="price", side="candidate", default=(1.0,), missing="default")
    policy = {"formula": "power_product", "weights": {"click": 1.0}, "multiplier": "price"}
    assert description(inputs=(price,), ranking=policy).ranking.multiplier == "price"
    with pytest.raises(ValidationError, match="and not one that may be NaN"):
        description(inputs=(price.model_copy(update={"missing": "nan"}),), ranking=policy)
