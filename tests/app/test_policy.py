"""Policies: bounded weights, and overrides that leave the policy itself alone."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from app.ranking.policy import LARGEST_WEIGHT, Policy


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


def test_a_policy_needs_weights_only():
    policy = Policy(weights={"click": LARGEST_WEIGHT, "like": -LARGEST_WEIGHT})
    assert (policy.name, policy.formula) == ("default", "weighted_sum")


def test_reweighting_makes_a_new_policy():
    policy = Policy(name="feed", formula="power_product", weights={"click": 1.0, "like": 2.0})
    other = policy.reweighted({"like": -1.0, "dwell": 3.0})
    assert other == Policy(
        name="feed", formula="power_product", weights={"click": 1.0, "like": -1.0, "dwell": 3.0}
    )
    assert policy.weights == {"click": 1.0, "like": 2.0}
