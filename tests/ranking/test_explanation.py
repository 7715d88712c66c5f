"""Explanations: shares that add up to the sort key, in words and numbers."""

from typing import Any, get_args

import numpy as np
import orjson
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from app.api.openapi.score_schemas import Explanation as Schema
from app.ranking.calibration import Scale
from app.ranking.explanation import MAX_EXPLAINED, Explanation, explain
from app.ranking.formulas import STEP
from app.ranking.policy import Formula, Policy
from app.ranking.ranker import Ranker, order

TASKS = ("click", "like", "dwell")
SCORES = np.array([[0.1, 0.4, 10], [0.3, 0.2, 5], [0.2, 0.3, 60]], np.float32)
PRODUCT = Policy(formula="power_product", weights={"click": 1.0, "dwell": 0.5})


def explained(
    policy: Policy, scores: Any = SCORES, multiplier: Any = None, **calibrations: Any
) -> Explanation:
    ranker = Ranker.of(policy, TASKS, calibrations)
    sort_keys = ranker.sort_keys(scores, multiplier)
    return explain(ranker, scores, sort_keys, order(sort_keys), multiplier)


def read(explanation: Explanation, keys: Any = None) -> dict[str, Any]:
    """The document, through JSON."""
    content = orjson.dumps(explanation.document(keys), option=orjson.OPT_SERIALIZE_NUMPY)
    Schema.model_validate_json(content)
    found: dict[str, Any] = orjson.loads(content)
    return found


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(0, 5), st.just(3)), elements=st.floats(0, 1, width=32)
    ),
    st.sampled_from([formula for formula in get_args(Formula) if formula != "expression"]),
    st.fixed_dictionaries({task: st.floats(-3, 3) for task in TASKS}),
)
def test_shares_add_up_to_the_sort_key(scores, formula, weights):
    found = explained(Policy(formula=formula, weights=weights), scores)
    np.testing.assert_allclose(found.shares.sum(1), found.sort_keys, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.remainders, 0, atol=1e-9)


def test_the_multiplier_has_a_share():
    boosted = PRODUCT.model_copy(update={"multiplier": "boost"})
    found = explained(boosted, multiplier=np.array([1, 2, 4], np.float32))
    np.testing.assert_allclose(found.remainders, 0, atol=1e-9)
    best = read(found)["candidates"][0]
    assert best["candidate"] == 2
    assert best["multiplier"]["raw"] == best["multiplier"]["calibrated"] == 4
    assert best["multiplier"]["share"] == pytest.approx(np.log(4))
    assert best["multiplier"]["lead"] == pytest.approx(np.log(4) - np.log(8) / 3)


def test_shares_of_a_product_are_logarithms():
    found = read(explained(PRODUCT), keys=["a", "b", "c"])
    assert found["share"] == "weight x log(score); they add up to the log of the rank score"
    best = found["candidates"][0]
    assert best["candidate"] == "c"
    assert best["tasks"].keys() == {"click", "dwell"}  # like has no weight
    dwell = best["tasks"]["dwell"]
    assert dwell["raw"] == dwell["calibrated"] == 60
    assert dwell["share"] == pytest.approx(0.5 * np.log(60))
    assert dwell["lead"] == pytest.approx(0.5 * (np.log(60) - np.log([10, 5, 60]).mean()))
    assert best["total"] == pytest.approx(np.log(0.2) + 0.5 * np.log(60))
    assert "remainder" not in best


def test_leads_add_up_to_the_distance_from_the_mean():
    found = explained(PRODUCT)
    mean = found.sort_keys.mean()  # all three are explained
    np.testing.assert_allclose(found.leads.sum(1), found.sort_keys - mean)


def test_an_explanation_has_raw_and_calibrated_scores():
    found = explained(PRODUCT, dwell=Scale(method="scale", factor=0.5))
    dwell = read(found)["candidates"][0]["tasks"]["dwell"]
    assert (dwell["raw"], dwell["calibrated"]) == (60, 30)
    assert dwell["share"] == pytest.approx(0.5 * np.log(30))


def test_shares_of_an_expression_are_finite_differences_with_a_remainder():
    text = "click * (1 + w.like*like)"
    policy = Policy(formula="expression", expression=text, weights={"like": 2.0})
    found = read(explained(policy))
    assert found["share"].startswith("finite difference: how much the rank score falls when")
    best = found["candidates"][0]
    assert best["candidate"] == 1
    by_hand = (0.3 * 1.4 - 0.3 * (1 - STEP) * 1.4) / STEP, (0.4 - 0.4 * (1 - STEP)) * 0.3 / STEP
    assert best["tasks"]["click"]["share"] == pytest.approx(by_hand[0], rel=1e-5)
    assert best["tasks"]["like"]["share"] == pytest.approx(by_hand[1], rel=1e-5)
    assert best["remainder"] == pytest.approx(0.42 - sum(by_hand), abs=1e-5)
    assert best["tasks"].keys() == {"click", "like"}


def test_an_expression_that_overflows_is_explained_in_finite_numbers():
    policy = Policy(formula="expression", expression="log(click) + exp(dwell*99)", weights={})
    found = read(explained(policy, np.array([[0, 0, 600], [0, 0, 0]], np.float32)))
    numbers = [candidate["total"] for candidate in found["candidates"]]
    numbers += [
        share["share"] for candidate in found["candidates"] for share in candidate["tasks"].values()
    ]
    assert all(isinstance(number, float) for number in numbers)


def test_only_the_best_candidates_are_explained():
    many = np.random.default_rng(0).random((MAX_EXPLAINED + 9, 3), np.float32)
    assert len(read(explained(PRODUCT, many))["candidates"]) == MAX_EXPLAINED
    assert read(explained(PRODUCT, many[:0]))["candidates"] == []
