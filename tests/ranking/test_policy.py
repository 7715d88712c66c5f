"""Policies: their fields are checked, and new weights make a new policy."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from app.ranking.policy import ANY_WEIGHT, LARGEST_WEIGHT, Policy


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": {}},
        {"weights": {"click": math.nan}},
        {"weights": {"click": math.inf}},
        {"weights": {"click": LARGEST_WEIGHT * 1.01}},
        {"weights": {"click": -LARGEST_WEIGHT * 1.01}},
        {"formula": "eval"},
        {"name": "Feed"},
        {"name": ""},
        {"name": "a b"},
        {"name": "x" * 65},
        {"bonus": 1},
    ],
    ids=str,
)
def test_a_policy_that_breaks_a_rule_is_refused(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        Policy(**({"weights": {"click": 1.0}} | fields))


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"alpha": {"click": 2.0}}, "alpha is for formula rank_position, not weighted_sum"),
        ({"beta": {"click": 2.0}}, "beta is for formula rank_position"),
        ({"multiplier": "boost"}, "multiplier is for formula power_product"),
        ({"expression": "click"}, "expression is for formula expression"),
        ({"formula": "expression"}, 'needs the key "expression"'),
        ({"formula": "expression", "expression": "click +"}, r"a function or ... .at column 8."),
        (
            {"formula": "expression", "expression": "click"},
            "weights: the expression does not read w.click",
        ),
        (
            {"formula": "expression", "expression": "w.a*click*w.click"},
            "w.a of the expression has no weight",
        ),
        ({"formula": "rank_position", "alpha": {"like": 1.0}}, 'alpha: "like" has no weight'),
        ({"formula": "rank_position", "beta": {"click": -0.1}}, "greater than or equal to 0"),
        ({"bounds": {"click": [2.0, 1.0]}}, r"must be \[low, high\]"),
        ({"bounds": {"click": [2.0, 3.0]}}, "weights.click: 1 is outside its bounds, 2 to 3"),
        ({"bounds": {"like": [2.0, 3.0]}}, "weights.like: 0 is outside its bounds, 2 to 3"),
        ({"bounds": {"click": [0.0]}}, "bounds.click"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_together_are_refused(fields, rule):
    with pytest.raises(ValidationError, match=rule):
        Policy(**({"weights": {"click": 1.0}} | fields))


def test_without_bounds_a_request_may_set_every_weight():
    tasks = ("click", "like")
    assert Policy(weights={"click": 1.0}).adjustable(tasks) == dict.fromkeys(tasks, ANY_WEIGHT)
    expression = Policy(formula="expression", expression="click*w.a", weights={"a": 1.0})
    assert expression.adjustable(tasks) == {"a": ANY_WEIGHT}


def test_with_bounds_a_request_may_set_only_the_named_weights():
    bounded = Policy(weights={"click": 1.0, "like": 1.0}, bounds={"like": (0.0, 2.0)})
    assert bounded.adjustable(("click", "like")) == {"like": (0.0, 2.0)}
    assert Policy(weights={"click": 1.0}, bounds={}).adjustable(("click",)) == {}


def test_tasks_are_those_with_a_weight_or_bounds_or_in_the_expression():
    assert Policy(weights={"click": 1.0}, bounds={"like": (0, 1)}).tasks == {"click", "like"}
    expression = Policy(formula="expression", expression="like*w.click", weights={"click": 1.0})
    assert expression.tasks == {"like"}


def test_unset_fields_are_not_serialised():
    """So that an older version can read the manifest of a policy without newer fields."""
    plain = Policy(weights={"click": 1.0})
    written = {"name": "default", "formula": "weighted_sum", "weights": {"click": 1.0}}
    assert plain.model_dump() == plain.model_dump(mode="json") == written
    assert Policy(**written) == plain


def test_only_weights_are_required():
    policy = Policy(weights={"click": LARGEST_WEIGHT, "like": -LARGEST_WEIGHT})
    assert (policy.name, policy.formula) == ("default", "weighted_sum")


def test_reweighted_returns_a_new_policy():
    policy = Policy(name="feed", formula="power_product", weights={"click": 1.0, "like": 2.0})
    other = policy.reweighted({"like": -1.0, "dwell": 3.0})
    assert other == Policy(
        name="feed", formula="power_product", weights={"click": 1.0, "like": -1.0, "dwell": 3.0}
    )
    assert policy.weights == {"click": 1.0, "like": 2.0}
