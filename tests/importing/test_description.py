"""Descriptions of modules from elsewhere, in a file or as options."""

import tomllib
from typing import Any

import pytest

from app.artifacts.manifest import Description, Output, RowsCall
from app.importing.description import ForeignInvalid, ForeignModel, from_flags, read
from tests.support.foreign import NAMED, TENSORS


def described(model: ForeignModel) -> Description:
    return model.description({task.name: Output() for task in model.tasks})


def test_flags_describe_one_matrix_in_the_order_of_its_columns():
    model = from_flags("ctr", ("age", "item@9", "face:4"), ("age",), ("a:logit", "b:seconds"))
    description = described(model)
    assert [(i.name, i.kind, i.side) for i in description.inputs] == [
        ("age", "dense", "user"),
        ("item", "id", "candidate"),
        ("face", "dense", "candidate"),
    ]
    assert isinstance(description.call, RowsCall)
    (argument,) = description.call.arguments
    assert argument.pack == ("age", "item", "face")
    assert (argument.dtype, argument.rank) == ("float32", 2)


@pytest.mark.parametrize(
    ("gives", "kind", "link", "unit"),
    [
        ("probability", "binary", "identity", "probability"),
        ("logit", "binary", "sigmoid", "probability"),
        ("log-probability", "binary", "exp", "probability"),
        ("seconds", "duration", "identity", "seconds"),
        ("log-seconds", "duration", "exp", "seconds"),
        ("log1p-seconds", "duration", "expm1", "seconds"),
        ("number", "regression", "identity", ""),
    ],
)
def test_the_meaning_of_an_output_sets_kind_link_and_unit(gives, kind, link, unit):
    (task,) = described(from_flags("ctr", ("x",), (), (f"t:{gives}",))).tasks
    assert (task.kind, task.link, task.unit) == (kind, link, unit)


def test_an_id_outside_its_vocabulary_is_an_error_unless_a_row_is_named():
    user, recent, item, _ = ForeignModel.model_validate(tomllib.loads(TENSORS)).inputs
    assert [feature.unknown for feature in (user, recent, item)] == [0, "reject", "reject"]  # type: ignore[union-attr]


def test_scores_are_multiplied_by_default_unless_one_is_a_plain_number():
    product = described(from_flags("ctr", ("x",), (), ("a:logit", "b:log-seconds"))).ranking
    total = described(from_flags("ctr", ("x",), (), ("a:logit", "b:number"))).ranking
    assert (product.formula, total.formula) == ("power_product", "weighted_sum")
    assert product.weights == total.weights == {"a": 1, "b": 1}


def test_a_described_ranking_policy_is_used():
    ranking = described(ForeignModel.model_validate(tomllib.loads(NAMED))).ranking
    assert ranking.weights == {"click": 1, "value": 0.1}


def told(**changes: Any) -> dict[str, Any]:
    return {
        "name": "ctr",
        "inputs": [{"name": "x", "side": "user", "kind": "dense"}],
        "tasks": [{"name": "click", "gives": "logit"}],
    } | changes


ID_LIST = {"name": "h", "side": "user", "kind": "id_list", "vocabulary_size": 9, "max_length": 2}


def measured(**changes: Any) -> dict[str, Any]:
    length = {"take": "length", "of": "h"}
    return {
        "inputs": [ID_LIST | {"padding": 0} | changes],
        "arguments": [{"name": "a", "pack": ["h", length], "dtype": "float32"}],
    }


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"inputs": 3}, "inputs: must be an array"),
        ({"inputs": [3]}, "inputs[0]: must be a table"),
        ({"inputs": [ID_LIST]}, "inputs: h: an id_list must state its padding"),
        ({"tasks": []}, "tasks: must have at least 1 item"),
        (
            {"tasks": [{"name": "a", "gives": "odds"}]},
            'tasks[a].gives: must be "probability", "logit", "log-probability", "seconds", ',
        ),
        ({"tasks": [{"name": "a", "gives": "logits"}]}, '"number"; did you mean "logit"?'),
        ({"tasks": [{"name": "a", "givs": "logit"}]}, 'unknown key "givs" in tasks[a]; did you'),
        ({"tasks": [{"name": "a"}]}, "tasks[a].gives: required key is missing"),
        ({"tasks": [{"name": "a/b", "gives": "logit"}]}, "tasks[a/b].name: must have 1 to 64"),
        ({"tasks": [{"name": "a", "gives": "logit", "clamp": [1]}]}, "clamp: item 2 is missing"),
        (
            {"inputs": [{"name": "x", "side": "user"}]},
            'inputs[x].kind: required key is missing: "dense", "id" or "id_list"',
        ),
        (
            {"inputs": [{"name": "x", "side": "user", "kind": "dens"}]},
            'inputs[x].kind: must be "dense", "id" or "id_list"; did you mean "dense"?',
        ),
        (
            {"inputs": [ID_LIST | {"padding": 0, "max_length": 0}]},
            "inputs[h].max_length: must be at least 1",
        ),
        (
            {"inputs": [ID_LIST | {"padding": 0, "unknown": "rejct"}]},
            'inputs[h].unknown: must be a whole number or "reject"; did you mean "reject"?',
        ),
        (
            {"inputs": [ID_LIST | {"padding": 0, "encoding": {"kind": "hash", "bukets": 9}}]},
            'unknown key "bukets" in inputs[h].encoding; did you mean "buckets"? (and 1 more)',
        ),
        (
            {"arguments": [{"name": "a", "pack": [{"take": "lenght", "of": "h"}]}]},
            'arguments[a].pack[0].take: must be "length", "mask", "padding" or "ids"; did you',
        ),
        (
            {"inputs": [{"name": "x", "kind": "dense"}]},
            'inputs[x].side: required key is missing: "user" or "candidate"',
        ),
        (
            {
                "tasks": [
                    {"name": "a", "gives": "logit", "output": {"column": 0}},
                    {"name": "b", "gives": "logit"},
                ]
            },
            "tasks: state the output of every task, or of none",
        ),
        ({"ranges": {"y": [0, 1]}}, 'ranges: unknown dense input "y"'),
        ({"ranges": {"x": [1, 0]}}, "ranges.x: must be [low, high] with low < high"),
        ({"ranking": {"weights": {"like": 1.0}}}, 'ranking: unknown task "like"; tasks: click'),
        (
            {"arguments": [{"name": "a", "pack": ["y"], "dtype": "float32"}]},
            'arguments: unknown input "y"',
        ),
        (
            measured(unknown=0),
            "h: unknown ids would be padding, row 0, but something is derived from the list",
        ),
        (measured(default=[3, 0]), "h: default contains 0, the padding"),
        (
            measured(padding=4, encoding={"kind": "hash", "buckets": 8}),
            "h: the hash gives ids the rows 1 to 8, but row 4 is the padding",
        ),
        ({"colour": "red"}, 'unknown key "colour"'),
    ],
    ids=str,
)
def test_a_description_that_breaks_a_rule_is_refused_in_one_line(tmp_path, changes, rule):
    path = tmp_path / "model.toml"
    path.write_text(toml(told(**changes)))
    with pytest.raises(ForeignInvalid) as caught:
        read(path)
    assert rule in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def toml(tables: dict[str, Any]) -> str:
    return "\n".join(f"{name} = {inline(value)}" for name, value in tables.items())


def inline(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {inline(member)}" for name, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return repr(value)


def test_ids_as_floats_must_fit_into_float32():
    largest = 2**24
    from_flags("ctr", (f"x@{largest}",), (), ("t:logit",))
    with pytest.raises(ForeignInvalid, match=r"x: float32 holds integers up to 2\*\*24 exactly"):
        from_flags("ctr", (f"x@{largest + 1}",), (), ("t:logit",))
