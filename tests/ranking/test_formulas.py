"""The four formulas and the order, under any scores and weights."""

import itertools
import math
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, strategies as st
from hypothesis.extra import numpy as arrays

from app.ranking.calibration import Isotonic, Platt, Scale
from app.ranking.formulas import SMALLEST_SCORE
from app.ranking.policy import LARGEST_WEIGHT, Formula, Policy
from app.ranking.ranker import Ranker, order

TASKS = ("click", "like", "dwell")
FORMULAS: tuple[Formula, ...] = get_args(Formula)
LINEAR: tuple[Formula, ...] = ("weighted_sum", "power_product", "rank_position")
LARGEST = float(np.finfo(np.float32).max)
EXPRESSION = "w.click*click + w.like*like + w.dwell*dwell"

Given = npt.NDArray[np.float32]

formulas = st.sampled_from(FORMULAS)
rows = st.integers(0, 6)
moderate_weights = st.fixed_dictionaries({task: st.floats(-3, 3) for task in TASKS})
any_weights = st.fixed_dictionaries(
    {task: st.floats(-LARGEST_WEIGHT, LARGEST_WEIGHT) for task in TASKS}
)


def scores(low: float = 0.0, high: float = 1.0) -> st.SearchStrategy[Given]:
    elements = st.floats(float(np.float32(low)), high, width=32)
    return rows.flatmap(lambda n: arrays.arrays(np.float32, (n, len(TASKS)), elements=elements))


def ranker(formula: Formula, weights: dict[str, float], **fields: Any) -> Ranker:
    if formula == "expression":
        fields.setdefault("expression", EXPRESSION)
    return Ranker.of(Policy(formula=formula, weights=weights, **fields), TASKS)


def fuse(given_scores: Given, chosen: Ranker) -> Given:
    return chosen.rank_scores(chosen.sort_keys(given_scores))


def naive(given_scores: Given, chosen: Policy) -> list[float]:
    """Each candidate's rank score, in plain Python."""
    columns = {task: [float(s) for s in given_scores[:, k]] for k, task in enumerate(TASKS)}
    found = []
    for row in range(len(given_scores)):
        by_task = [(chosen.weights[task], columns[task][row], columns[task]) for task in TASKS]
        match chosen.formula:
            case "power_product":
                found.append(math.prod(max(s, SMALLEST_SCORE) ** w for w, s, _ in by_task))
            case "rank_position":
                positions = [1 + sum(other > s for other in column) for _, s, column in by_task]
                found.append(
                    math.fsum(
                        chosen.weights[task]
                        / (position ** (chosen.alpha or {})[task] + (chosen.beta or {})[task])
                        for task, position in zip(TASKS, positions, strict=True)
                    )
                )
            case _:
                found.append(math.fsum(w * s for w, s, _ in by_task))
    return found


@given(scores(0, 600), formulas, moderate_weights)
def test_rank_scores_equal_those_of_a_plain_loop(given_scores, formula, weights):
    more: dict[str, Any] = {}
    if formula == "rank_position":
        more = {"alpha": {"click": 0.5, "like": 1, "dwell": 2}, "beta": dict.fromkeys(TASKS, 3.0)}
    chosen = ranker(formula, weights, **more)
    want = naive(given_scores, chosen.policy)
    found = fuse(given_scores, chosen)
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
def test_rank_scores_are_finite_for_extreme_scores_and_weights(extreme, formula, weights):
    given_scores = np.array(extreme, np.float32).reshape(-1, 3)
    chosen = ranker(formula, weights)
    assert np.isfinite(chosen.sort_keys(given_scores)).all()
    assert np.isfinite(fuse(given_scores, chosen)).all()


@given(scores(), formulas, moderate_weights, st.data())
def test_a_higher_score_never_ranks_lower_if_its_weight_is_positive(
    given_scores, formula, weights, data
):
    assume(len(given_scores))
    row = data.draw(st.integers(0, len(given_scores) - 1))
    column = data.draw(st.integers(0, len(TASKS) - 1))
    rise = data.draw(st.floats(0, 1, width=32))
    better = given_scores.copy()
    better[row, column] += np.float32(rise)
    chosen = ranker(formula, weights)
    before, after = (
        float(fuse(task_scores, chosen)[row]) for task_scores in (given_scores, better)
    )
    slack = 1e-6 * max(1.0, abs(before))
    if weights[TASKS[column]] >= 0:
        assert after >= before - slack
    else:
        assert after <= before + slack


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(("weight", "best_first"), [(0.5, [2, 1, 0]), (-0.5, [0, 1, 2])])
def test_the_sign_of_a_weight_decides_which_end_is_best(formula, weight, best_first):
    given_scores = np.array([[0.1, 0.5, 0.5], [0.2, 0.5, 0.5], [0.3, 0.5, 0.5]], np.float32)
    chosen = ranker(formula, {"click": weight, "like": 1.0, "dwell": 0.0})
    assert order(chosen.sort_keys(given_scores)).tolist() == best_first


MANY = tuple(f"t{k}" for k in range(12))  # with this many columns a BLAS product depends on the row


@given(st.sampled_from(LINEAR), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_shuffled_candidates_get_the_same_sort_keys_to_the_bit(formula, n, seed):
    random = np.random.default_rng(seed)
    given_scores = random.random((n, len(MANY)), np.float32)
    given_scores[n // 2] = given_scores[0]  # a tie
    weights = dict(zip(MANY, random.normal(size=len(MANY)).tolist(), strict=True))
    chosen = Ranker.of(Policy(formula=formula, weights=weights), MANY)
    shuffled = random.permutation(n)
    found = chosen.sort_keys(given_scores)
    np.testing.assert_array_equal(chosen.sort_keys(given_scores[shuffled]), found[shuffled])
    assert found[n // 2] == found[0]


@given(scores(), moderate_weights, st.randoms(use_true_random=False))
def test_shuffled_candidates_get_the_same_values_of_an_expression(given_scores, weights, random):
    shuffled = list(range(len(given_scores)))
    random.shuffle(shuffled)
    text = "click**w.click * exp(w.like*like) / (1 + dwell**w.dwell)"
    chosen = ranker("expression", weights, expression=text)
    found = chosen.sort_keys(given_scores)
    np.testing.assert_array_equal(chosen.sort_keys(given_scores[shuffled]), found[shuffled])


@pytest.mark.parametrize("formula", LINEAR)
def test_a_task_without_a_weight_is_ignored(formula):
    given_scores = np.array([[0.1, 0.9, 0.5], [0.2, 0.1, 0.5]], np.float32)
    chosen = ranker(formula, {"click": 1.0, "dwell": 0.5})
    other = given_scores.copy()
    other[:, 1] = 0.25
    np.testing.assert_array_equal(fuse(other, chosen), fuse(given_scores, chosen))


@given(scores(0.01), moderate_weights, st.integers(0, 2), st.floats(0.1, 10))
def test_scaling_one_task_keeps_the_order_of_power_product(given_scores, weights, column, factor):
    chosen = ranker("power_product", weights)
    scaled = given_scores.copy()
    scaled[:, column] *= np.float32(factor)
    before, after = (
        fuse(task_scores, chosen).astype(float) for task_scores in (given_scores, scaled)
    )
    for i, j in itertools.combinations(range(len(before)), 2):
        if not math.isclose(before[i], before[j], rel_tol=1e-5):
            assert (before[i] < before[j]) == (after[i] < after[j])


@given(scores(), moderate_weights, st.integers(0, 2))
def test_rank_position_ignores_monotone_miscalibration(given_scores, weights, column):
    chosen = ranker("rank_position", weights)
    warped = given_scores.copy()
    warped[:, column] = np.sqrt(warped[:, column]) * 7 + 1
    assume(len(set(warped[:, column])) == len(set(given_scores[:, column])))  # no new ties
    np.testing.assert_array_equal(chosen.sort_keys(warped), chosen.sort_keys(given_scores))


def test_a_score_of_0_does_not_cancel_the_other_tasks():
    chosen = ranker("power_product", {"click": 1.0, "like": 1.0})
    given_scores = np.array([[0.0, 0.9, 0.0], [0.0, 0.1, 0.0]], np.float32)
    assert order(chosen.sort_keys(given_scores)).tolist() == [0, 1]
    np.testing.assert_allclose(fuse(given_scores, chosen), [9e-10, 1e-10], rtol=1e-5)


def test_a_multiplier_multiplies_the_product():
    chosen = ranker("power_product", {"click": 1.0}, multiplier="boost")
    given_scores = np.array([[0.2, 0, 0], [0.2, 0, 0], [0.1, 0, 0]], np.float32)
    sort_keys = chosen.sort_keys(given_scores, np.array([1.0, 0.0, 3.0], np.float32))
    np.testing.assert_allclose(chosen.rank_scores(sort_keys), [0.2, 2e-10, 0.3], rtol=1e-5)


def test_scores_are_calibrated_before_they_are_fused():
    chosen = Ranker.of(
        Policy(weights={"click": 1.0, "like": 1.0, "dwell": 1.0}),
        TASKS,
        {
            "click": Platt(method="platt", slope=2.0, intercept=0.0),
            "like": Isotonic(method="isotonic", scores=(0.0, 1.0), calibrated=(10.0, 20.0)),
            "dwell": Scale(method="scale", factor=0.5),
        },
    )
    given_scores = np.array([[0.5, 0.1, 60], [0.5, 0.3, 60]], np.float32)
    np.testing.assert_allclose(chosen.sort_keys(given_scores), [0.5 + 11 + 30, 0.5 + 13 + 30])
    assert chosen.reweighted({"click": 2.0}).sort_keys(given_scores)[0] == pytest.approx(42)


SORT_KEYS = st.lists(st.sampled_from([-1.0, 0.0, -0.0, 0.5, LARGEST, -LARGEST]), max_size=12)


@given(SORT_KEYS, st.none() | st.integers(1, 20))
def test_order_is_best_first_and_ties_keep_their_order(sort_keys, top_k):
    best_first = sorted(range(len(sort_keys)), key=lambda i: -sort_keys[i])
    found = order(np.array(sort_keys, np.float64), top_k)
    assert found.tolist() == best_first[:top_k]


@given(st.integers(100, 600), st.integers(1, 10**6), st.integers(0, 2**32 - 1))
def test_order_of_many_rows_equals_a_stable_sort(n, values, seed):
    sort_keys = np.random.default_rng(seed).integers(0, values, n) / 7 - 1
    best_first = sorted(range(n), key=lambda i: -sort_keys[i])
    assert order(sort_keys).tolist() == best_first
    assert order(sort_keys, 5).tolist() == best_first[:5]


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_candidates_have_an_empty_order(formula):
    chosen = ranker(formula, dict.fromkeys(TASKS, 1.0))
    none = chosen.sort_keys(np.empty((0, 3), np.float32))
    assert none.shape == chosen.rank_scores(none).shape == (0,)
    assert order(none, 5).tolist() == []


@pytest.mark.parametrize("formula", FORMULAS)
def test_ranking_does_not_change_the_scores(formula):
    given_scores = np.zeros((2, 3), np.float32)
    fuse(given_scores, ranker(formula, dict.fromkeys(TASKS, 1.0)))
    assert not given_scores.any()


@pytest.mark.parametrize("weight", [8.0, -8.0, 1e3, LARGEST_WEIGHT])
def test_order_is_right_even_if_rank_scores_overflow_float32(weight):
    given_scores = np.array([[1e-4, 0, 0], [2e-4, 0, 0], [3e-4, 0, 0]], np.float32)
    chosen = ranker("power_product", {"click": weight})
    sort_keys = chosen.sort_keys(given_scores)
    assert order(sort_keys).tolist() == ([2, 1, 0] if weight > 0 else [0, 1, 2])
    assert np.isfinite(chosen.rank_scores(sort_keys)).all()


@given(scores(0, 600), formulas, any_weights)
def test_rank_scores_never_contradict_the_order(given_scores, formula, weights):
    chosen = ranker(formula, weights)
    sort_keys = chosen.sort_keys(given_scores)
    in_order = chosen.rank_scores(sort_keys)[order(sort_keys)]
    assert (np.diff(in_order.astype(np.float64)) <= 0).all()


def test_a_policy_with_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r'unknown task "buy" \(known: click, like, dwell\)'):
        Ranker.of(Policy(weights={"buy": 1.0}), TASKS)
    with pytest.raises(ValueError, match=r'unknown task "clik"; did you mean "click"\?'):
        Ranker.of(Policy(weights={"clik": 1.0}), TASKS)


def test_a_request_with_its_own_weights_has_no_shadow():
    shadow = Ranker.of(Policy(weights={"like": 1.0}), ("click", "like"))
    ranker = Ranker.of(Policy(weights={"click": 1.0}), ("click", "like"), shadow=shadow)
    assert ranker.shadow is shadow
    assert ranker.reweighted({"click": 2.0}).shadow is None
