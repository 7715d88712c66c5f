"""Calibration: every method keeps the order, is finite, and follows its formula."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from pydantic import TypeAdapter, ValidationError

from app.ranking.calibration import MAX_KNOTS, Calibration, Isotonic, NoCalibration, Platt, Scale

READ: TypeAdapter[Any] = TypeAdapter(Calibration)

factors = st.floats(1e-6, 1e6)
numbers = st.floats(-1e6, 1e6)
knots = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8, unique=True)
methods = st.one_of(
    st.builds(Platt, method=st.just("platt"), slope=factors, intercept=numbers),
    st.builds(Scale, method=st.just("scale"), factor=factors),
    st.just(NoCalibration()),
    knots.flatmap(
        lambda x: st.lists(st.floats(-1e3, 1e3), min_size=len(x), max_size=len(x)).map(
            lambda y: Isotonic(method="isotonic", scores=sorted(x), calibrated=sorted(y))
        )
    ),
)
probabilities = st.lists(st.floats(0, 1, width=32), max_size=9)


@given(methods, probabilities)
def test_every_method_keeps_the_order_and_is_finite(method, scores):
    given_scores = np.sort(np.array(scores, np.float32))
    found = method(given_scores)
    assert found.dtype == np.float64
    assert found.shape == given_scores.shape
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()


@given(st.floats(0.1, 5), st.floats(-3, 3), st.floats(0.0078125, 0.9921875, width=32))
def test_platt_is_a_sigmoid_of_the_logit(slope, intercept, p):
    z = slope * math.log(p / (1 - p)) + intercept
    found = Platt(method="platt", slope=slope, intercept=intercept)(np.array([p], np.float32))
    assert found[0] == pytest.approx(1 / (1 + math.exp(-z)), rel=1e-9)


def test_platt_with_slope_1_and_intercept_0_changes_nothing():
    p = np.array([0.01, 0.5, 0.99], np.float32)
    np.testing.assert_allclose(Platt(method="platt", slope=1, intercept=0)(p), p, rtol=1e-7)


def test_isotonic_is_linear_between_knots_and_constant_beyond():
    isotonic = Isotonic(method="isotonic", scores=(0.2, 0.4), calibrated=(0.1, 0.5))
    found = isotonic(np.array([0.0, 0.2, 0.3, 0.4, 1.0], np.float32))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.3, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"method": "platt", "slope": 0, "intercept": 0}, "slope"),
        ({"method": "platt", "slope": -1, "intercept": 0}, "slope"),
        ({"method": "platt", "slope": math.nan, "intercept": 0}, "slope"),
        ({"method": "platt", "slope": 1}, "intercept"),
        ({"method": "scale", "factor": 0}, "factor"),
        ({"method": "scale", "factor": math.inf}, "factor"),
        ({"method": "isotonic", "scores": [], "calibrated": []}, "scores"),
        (
            {"method": "isotonic", "scores": [0, 0], "calibrated": [0, 1]},
            "must be strictly ascending",
        ),
        (
            {"method": "isotonic", "scores": [0, 1], "calibrated": [1, 0]},
            "calibrated must be ascending",
        ),
        ({"method": "isotonic", "scores": [0, 1], "calibrated": [1]}, "2 scores but 1"),
        (
            {
                "method": "isotonic",
                "scores": list(range(MAX_KNOTS + 1)),
                "calibrated": [0] * (MAX_KNOTS + 1),
            },
            "scores",
        ),
        ({"method": "none", "slope": 1}, "slope"),
        ({"method": "beta"}, "method"),
        ({}, "method"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_calibration_that_breaks_a_rule_is_refused(fields, rule):
    with pytest.raises(ValidationError, match=rule):
        READ.validate_python(fields)
