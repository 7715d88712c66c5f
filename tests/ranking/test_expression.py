"""Expressions have Python's precedence and NumPy's arithmetic, and can do arithmetic only."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.ranking.expression import (
    LARGEST,
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_NODES,
    ExpressionInvalid,
    parse,
)
from tests.support.expressions import ATTACKS, by_python, mutated, texts

SCORES = {
    "click": np.array([0.0, 0.02, 0.5, 1.0]),
    "like": np.array([1.0, 0.3, 0.1, 0.0]),
    "dwell": np.array([0.0, 12.5, 600.0, 3.25]),
}
WEIGHTS = {"like": 2.0, "fresh": -0.5}


@given(texts())
def test_an_expression_has_the_value_that_python_computes(text):
    compiled = parse(text)
    np.testing.assert_array_equal(compiled(SCORES, WEIGHTS), by_python(text, SCORES, WEIGHTS))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("click**0.8 * (1 + w.like*like) * log1p(dwell)", None),
        ("-click**2", -(SCORES["click"] ** 2)),
        ("click - like - dwell", SCORES["click"] - SCORES["like"] - SCORES["dwell"]),
        ("click ** like ** 2", SCORES["click"] ** SCORES["like"] ** 2),
        ("2 ** -click", 2 ** -SCORES["click"]),
        ("min(click, like, 0.2)", np.minimum(np.minimum(SCORES["click"], SCORES["like"]), 0.2)),
        ("clip(dwell, 1, 60)", np.clip(SCORES["dwell"], 1, 60)),
        (" click\n  + w . fresh", SCORES["click"] - 0.5),
        ("click/like/2", None),
        (".5e1*click + 1.", 5 * SCORES["click"] + 1),
    ],
)
def test_precedence_is_pythons(text, want):
    found = parse(text)(SCORES, WEIGHTS)
    if want is not None:
        np.testing.assert_array_equal(found, want)
    assert found.shape == (4,)
    assert np.isfinite(found).all()


def test_nan_ranks_last_and_infinity_becomes_the_largest_number():
    found = parse("log(click) - log(like) + 0*dwell")(SCORES, WEIGHTS)
    assert found[0] == -LARGEST
    assert found[3] == LARGEST
    assert parse("0/click")(SCORES, WEIGHTS)[0] == -LARGEST
    assert parse("9**9**9**9 * like")(SCORES, WEIGHTS).tolist() == [LARGEST] * 3 + [-LARGEST]


def test_an_expression_lists_its_tasks_and_weights_once():
    compiled = parse("like * w.like + like * w.fresh + click * w.like")
    assert (compiled.tasks, compiled.weights) == (("like", "click"), ("like", "fresh"))


def test_no_candidates_give_no_values():
    none = {name: np.empty(0) for name in SCORES}
    assert parse("click*w.like")(none, WEIGHTS).shape == (0,)


def test_evaluation_does_not_change_the_scores():
    before = {name: scores.copy() for name, scores in SCORES.items()}
    parse("click")(SCORES, WEIGHTS)[:] = 7
    for name, scores in before.items():
        np.testing.assert_array_equal(SCORES[name], scores)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'expected a number, a task, a weight, a function or "(" (at column 1)'),
        ("click +", 'a function or "(" (at column 8)'),
        ("click like", "expected an operator or the end of the expression (at column 7)"),
        ("(click", 'expected ")" (at column 7)'),
        ("click)", "expected an operator or the end of the expression (at column 6)"),
        ("click * $like", "unexpected character (at column 9)"),
        ("1 + 2", "reads no task, so all candidates would tie (at column 1)"),
        ("w.like", "reads no task"),
        ("sin(click)", 'unknown function "sin"; did you mean "min"? (known: abs, clip, exp, '),
        ("cosine(click)", 'unknown function "cosine" (known: abs, '),
        ("log(click, 2)", "log takes 1 argument, not 2 (at column 1)"),
        ("min(click)", "min takes 2 to 8 arguments, not 1 (at column 1)"),
        ("click * 1e999", "this number is too large (at column 9)"),
        ("click +\n  like like", "(at line 2, column 8)"),
        ("x" * (MAX_LENGTH + 1), f"is longer than {MAX_LENGTH} characters"),
        ("(" * (MAX_DEPTH + 1) + "click", f"is nested more than {MAX_DEPTH} levels deep"),
        ("-" * (MAX_DEPTH + 1) + "click", f"is nested more than {MAX_DEPTH} levels deep"),
        ("+".join(["click"] * 80), f"has more than {MAX_NODES} operands and operators"),
    ],
    ids=lambda value: value[:30],
)
def test_an_error_names_the_rule_and_the_column(text, message):
    with pytest.raises(ExpressionInvalid) as caught:
        parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ATTACKS, ids=lambda text: ascii(text)[:40])
def test_expression_that_attacks_python_is_refused(text):
    with pytest.raises(ExpressionInvalid):
        parse(text)


def accepted(text: str) -> bool:
    """Whether a text compiles; if it does, its values must be finite numbers."""
    try:
        compiled = parse(text)
    except ExpressionInvalid:
        return False
    assert set(text) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-*/(), \t\r\n"
    )
    scores: Mapping[str, Any] = dict.fromkeys(compiled.tasks, SCORES["click"])
    values = compiled(scores, dict.fromkeys(compiled.weights, 0.5))
    assert values.dtype == np.float64
    assert values.shape == (4,)
    assert np.isfinite(values).all()
    return True


@given(st.text())
def test_any_text_is_arithmetic_or_refused(text):
    accepted(text)


@given(st.text(alphabet="clikew.019()+-*/, \t\n_e[]{}:='\"@\\"))
def test_any_text_of_the_grammars_characters_is_arithmetic_or_refused(text):
    accepted(text)


def test_mutations_of_good_and_hostile_expressions_are_arithmetic_or_refused():
    source = random.Random(7)  # tests/bench/expression_fuzz.py runs for longer
    found = [accepted(mutated(source)) for _ in range(3000)]
    assert 100 < sum(found) < 2900
