"""Fusion and order: a good rank score under any scores and weights."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, strategies as st
from hypothesis.extra import numpy as arrays

from app.ranking.fusion import SMALLEST_SCORE, merit, order, rank_scores
from app.ranking.policy import LARGEST_WEIGHT, Formula, Policy

TASKS = ("click", "like", "dwell")
FORMULAS: tuple[Formula, ...] = ("weighted_sum", "power_product")
LARGEST = float(np.finfo(np.float32).max)

formulas = st.sampled_from(FORMULAS)
rows = st.integers(0, 6)
moderate_weights = st.fixed_dictionaries({task: st.floats(-3, 3) for task in TASKS})
any_weights = st.dictionaries(
    st.sampled_from(TASKS), st.floats(-LARGEST_WEIGHT, LARGEST_WEIGHT), min_size=1
)


def scores(low: float = 0.0, high: float = 1.0) -> st.SearchStrategy[npt.NDArray[np.float32]]:
    elements = st.floats(float(np.float32(low)), high, width=32)
    return rows.flatmap(lambda n: arrays.arrays(np.float32, (n, len(TASKS)), elements=elements))


def policy(formula: Formula, weights: dict[str, float]) -> Policy:
    return Policy(formula=formula, weights=weights)


def fuse(
    given_scores: npt.NDArray[np.float32], tasks: tuple[str, ...], chosen: Policy
) -> npt.NDArray[np.float32]:
    return rank_scores(merit(given_scores, tasks, chosen), chosen)


def naive(row: npt.NDArray[np.float32], chosen: Policy) -> float:
    weighed = [(float(s), chosen.weights.get(t, 0.0)) for s, t in zip(row, TASKS, strict=True)]
    if chosen.formula == "weighted_sum":
        return math.fsum(weight * score for score, weight in weighed)
    return float(math.prod(max(score, SMALLEST_SCORE) ** weight for score, weight in weighed))


@given(scores(0, 600), formulas, moderate_weights)
def test_rank_scores_are_what_a_plain_loop_gives(given_scores, formula, weights):
    chosen = policy(formula, weights)
    want = [naive(row, chosen) for row in given_scores]
    found = fuse(given_scores, TASKS, chosen)
    assert found.dtype == np.float32
    assert found.shape == (len(given_scores),)
    np.testing.assert_allclose(found, np.clip(want, -LARGEST, LARGEST), rtol=1e-5, atol=1e-6)


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 1e-45, LARGEST, -LARGEST]), min_size=3, max_size=3)
    ),
    formulas,
    any_weights | st.sampled_from([dict.fromkeys(TASKS, w * LARGEST_WEIGHT) for w in (-1, 1)]),
)
def test_a_rank_score_is_finite_at_every_end(extreme, formula, weights):
    given_scores = np.array(extreme, np.float32).reshape(-1, 3)
    assert np.isfinite(fuse(given_scores, TASKS, policy(formula, weights))).all()


@given(scores(), formulas, moderate_weights, st.data())
def test_a_better_score_never_ranks_lower_where_its_weight_is_positive(
    given_scores, formula, weights, data
):
    assume(len(given_scores))
    row = data.draw(st.integers(0, len(given_scores) - 1))
    column = data.draw(st.integers(0, len(TASKS) - 1))
    rise = data.draw(st.floats(0, 1, width=32))
    better = given_scores.copy()
    better[row, column] += np.float32(rise)
    chosen = policy(formula, weights)
    before, after = (float(fuse(each, TASKS, chosen)[row]) for each in (given_scores, better))
    slack = 1e-6 * max(1.0, abs(before))
    if weights[TASKS[column]] >= 0:
        assert after >= before - slack
    else:
        assert after <= before + slack


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(("weight", "best_first"), [(0.5, [2, 1, 0]), (-0.5, [0, 1, 2])])
def test_the_sign_of_a_weight_decides_which_end_is_best(formula, weight, best_first):
    given_scores = np.array([[0.1, 0.5, 0.5], [0.2, 0.5, 0.5], [0.3, 0.5, 0.5]], np.float32)
    chosen = policy(formula, {"click": weight, "like": 1.0})
    assert order(merit(given_scores, TASKS, chosen)).tolist() == best_first


@given(scores(), formulas, moderate_weights, st.randoms(use_true_random=False))
def test_candidates_in_another_order_get_the_same_rank_scores(
    given_scores, formula, weights, random
):
    shuffled = list(range(len(given_scores)))
    random.shuffle(shuffled)
    chosen = policy(formula, weights)
    found = fuse(given_scores, TASKS, chosen)
    np.testing.assert_allclose(
        fuse(given_scores[shuffled], TASKS, chosen), found[shuffled], rtol=1e-6, atol=1e-12
    )


@given(scores(), formulas, moderate_weights)
def test_a_task_without_a_weight_does_not_count(given_scores, formula, weights):
    del weights["like"]
    other = given_scores.copy()
    other[:, 1] = 0.25
    chosen = policy(formula, weights)
    np.testing.assert_allclose(
        fuse(other, TASKS, chosen), fuse(given_scores, TASKS, chosen), rtol=1e-6
    )


@given(scores(0.01), moderate_weights, st.integers(0, 2), st.floats(0.1, 10))
def test_scaling_one_task_keeps_the_order_of_power_product(given_scores, weights, column, factor):
    chosen = policy("power_product", weights)
    scaled = given_scores.copy()
    scaled[:, column] *= np.float32(factor)
    before, after = (fuse(each, TASKS, chosen).astype(float) for each in (given_scores, scaled))
    for i, j in itertools.combinations(range(len(before)), 2):
        if not math.isclose(before[i], before[j], rel_tol=1e-5):
            assert (before[i] < before[j]) == (after[i] < after[j])


def test_a_score_of_zero_does_not_erase_the_other_tasks():
    chosen = policy("power_product", {"click": 1.0, "like": 1.0})
    given_scores = np.array([[0.0, 0.9, 0.0], [0.0, 0.1, 0.0]], np.float32)
    assert order(merit(given_scores, TASKS, chosen)).tolist() == [0, 1]
    np.testing.assert_allclose(fuse(given_scores, TASKS, chosen), [9e-10, 1e-10], rtol=1e-5)


MERITS = st.lists(st.sampled_from([-1.0, 0.0, -0.0, 0.5, LARGEST, -LARGEST]), max_size=12)


@given(MERITS, st.none() | st.integers(1, 20))
def test_the_order_is_best_first_with_ties_as_they_were_sent(merits, top_k):
    best_first = sorted(range(len(merits)), key=lambda i: -merits[i])
    found = order(np.array(merits, np.float64), top_k)
    assert found.tolist() == best_first[:top_k]


def test_no_candidates_have_an_order_too():
    none = merit(np.empty((0, 3), np.float32), TASKS, policy("power_product", {"click": 1.0}))
    assert none.shape == (0,)
    assert order(none, 5).tolist() == []


def test_scores_are_left_as_they_are():
    given_scores = np.zeros((2, 3), np.float32)
    fuse(given_scores, TASKS, policy("power_product", {"click": 1.0}))
    assert not given_scores.any()


@pytest.mark.parametrize("weight", [8.0, -8.0, 1e3, LARGEST_WEIGHT])
def test_the_order_outlives_rank_scores_beyond_float32(weight):
    given_scores = np.array([[1e-4, 0, 0], [2e-4, 0, 0], [3e-4, 0, 0]], np.float32)
    chosen = policy("power_product", {"click": weight})
    merits = merit(given_scores, TASKS, chosen)
    assert order(merits).tolist() == ([2, 1, 0] if weight > 0 else [0, 1, 2])
    assert np.isfinite(rank_scores(merits, chosen)).all()


@given(scores(0, 600), formulas, any_weights)
def test_rank_scores_never_contradict_the_order(given_scores, formula, weights):
    chosen = policy(formula, weights)
    merits = merit(given_scores, TASKS, chosen)
    in_order = rank_scores(merits, chosen)[order(merits)]
    assert (np.diff(in_order.astype(np.float64)) <= 0).all()
