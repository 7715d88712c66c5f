"""Expressions: Python's arithmetic as NumPy gives it, and nothing but arithmetic."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.ranking.expression import LARGEST, parse
from app.ranking.grammar import DEEPEST, LONGEST, MOST_NODES, ExpressionInvalid
from tests.support.expressions import ATTACKS, by_python, mutated, texts

SCORES = {
    "click": np.array([0.0, 0.02, 0.5, 1.0]),
    "like": np.array([1.0, 0.3, 0.1, 0.0]),
    "dwell": np.array([0.0, 12.5, 600.0, 3.25]),
}
WEIGHTS = {"like": 2.0, "fresh": -0.5}


@given(texts())
def test_an_expression_is_what_python_makes_of_it(text):
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


def test_what_is_no_number_ranks_last_and_an_infinity_is_the_largest_number():
    found = parse("log(click) - log(like) + 0*dwell")(SCORES, WEIGHTS)
    assert found[0] == -LARGEST
    assert found[3] == LARGEST
    assert parse("0/click")(SCORES, WEIGHTS)[0] == -LARGEST
    assert parse("9**9**9**9 * like")(SCORES, WEIGHTS).tolist() == [LARGEST] * 3 + [-LARGEST]


def test_an_expression_says_what_it_reads_once():
    compiled = parse("like * w.like + like * w.fresh + click * w.like")
    assert (compiled.tasks, compiled.weights) == (("like", "click"), ("like", "fresh"))


def test_no_candidates_have_values_too():
    none = {name: np.empty(0) for name in SCORES}
    assert parse("click*w.like")(none, WEIGHTS).shape == (0,)


def test_scores_are_left_as_they_are():
    before = {name: scores.copy() for name, scores in SCORES.items()}
    parse("click")(SCORES, WEIGHTS)[:] = 7
    for name, scores in before.items():
        np.testing.assert_array_equal(SCORES[name], scores)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "belongs here (at column 1)"),
        ("click +", "belongs here (at column 8)"),
        ("click like", "an operator or the end belongs here (at column 7)"),
        ("(click", "a closing bracket belongs here (at column 7)"),
        ("click)", "an operator or the end belongs here (at column 6)"),
        ("click * $like", "this character has no meaning here (at column 9)"),
        ("1 + 2", "reads no task, so it ranks nothing (at column 1)"),
        ("w.like", "reads no task"),
        ("sin(click)", "there is no such function; there are abs, clip, exp"),
        ("log(click, 2)", "takes 1 arguments, not 2 (at column 1)"),
        ("min(click)", "takes 2 to 8 arguments, not 1 (at column 1)"),
        ("click * 1e999", "this number is too large (at column 9)"),
        ("click +\n  like like", "(at line 2, column 8)"),
        ("x" * (LONGEST + 1), f"is longer than {LONGEST} characters"),
        ("(" * (DEEPEST + 1) + "click", f"is nested more than {DEEPEST} deep"),
        ("-" * (DEEPEST + 1) + "click", f"is nested more than {DEEPEST} deep"),
        ("+".join(["click"] * 80), f"has more than {MOST_NODES} parts"),
    ],
    ids=lambda each: each[:30],
)
def test_a_mistake_is_told_with_its_column(text, message):
    with pytest.raises(ExpressionInvalid) as caught:
        parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ATTACKS, ids=lambda text: ascii(text)[:40])
def test_an_attack_is_an_error_and_nothing_else(text):
    with pytest.raises(ExpressionInvalid):
        parse(text)


def accepted(text: str) -> bool:
    """Whether a text compiles; nothing but an error or finite numbers may come of it."""
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
def test_any_text_is_arithmetic_or_an_error(text):
    accepted(text)


@given(st.text(alphabet="clikew.019()+-*/, \t\n_e[]{}:='\"@\\"))
def test_any_text_of_the_grammars_characters_is_arithmetic_or_an_error(text):
    accepted(text)


def test_no_mutation_of_a_good_or_an_evil_expression_is_anything_but_arithmetic():
    source = random.Random(7)  # tests/bench/expression_fuzz.py goes on for as long as it is let
    found = [accepted(mutated(source)) for _ in range(3000)]
    assert 100 < sum(found) < 2900
