"""Tuning finds known weights again, and finds no sure gain in noise."""

import math

import numpy as np
import pytest

from app.ranking.policy import Policy
from app.tuning.goal import Mix, Ndcg
from app.tuning.policy_evaluator import PolicyEvaluator
from app.tuning.search import tune_policy
from app.tuning.trade_off import PlotUnavailable, TradeOff, front, save_plot
from tests.tuning import worlds

CLICKS = Ndcg({"click": 1.0}, 5)


@pytest.fixture(scope="module")
def parts():
    """Clicks follow click¹ · like³ · dwell⁰·³; the policy has all three exponents at 1."""
    return worlds.log(3000).split(0.3)


@pytest.fixture(scope="module")
def found(parts):
    return tune_policy(parts[0], parts[1], worlds.ranker(), CLICKS, tries=200)


def test_the_exponents_that_the_outcomes_were_drawn_with_are_found(found):
    click, like, dwell = (found.after.weights[task] for task in worlds.TASKS)
    assert like / click == pytest.approx(3, rel=0.35)
    assert dwell / click == pytest.approx(0.3, abs=0.25)
    assert found.is_sure
    assert found.gains["NDCG@5"].change > 0.03
    assert found.gains["click@5"].low > 0


def test_the_gain_is_measured_on_the_held_out_requests(parts, found):
    _, held_out = parts
    alone = PolicyEvaluator(held_out, worlds.ranker())
    assert found.gains["NDCG@5"] == alone.gain(CLICKS, found.after.weights)


def test_a_policy_at_the_optimum_gains_nothing(parts):
    best = {"click": 1.0, "like": 3.0, "dwell": 0.3}
    found = tune_policy(parts[0], parts[1], worlds.ranker(weights=best), CLICKS, tries=80)
    assert abs(found.gains["NDCG@5"].change) < 0.01


def test_scores_without_information_give_no_sure_gain():
    fit, held_out = worlds.log(600, exponents=(0, 0, 0)).split(0.3)
    found = tune_policy(fit, held_out, worlds.ranker(), CLICKS, tries=80)
    assert not found.is_sure


def test_a_mix_raises_the_outcome_below_its_target():
    fit, held_out = worlds.log(1500).split(0.3)
    goal = Mix({"click": 1.1, "dwell": 1.0}, 3)
    found = tune_policy(fit, held_out, worlds.ranker(), goal, tries=80)
    change = found.gains[str(goal)]
    assert change.before == pytest.approx(1 / 1.1, rel=0.01)
    assert found.is_sure
    assert found.gains["click@3"].change > 0


def test_the_policys_bounds_are_respected(parts):
    bounded = worlds.ranker(bounds={"like": (0.0, 1.5), "click": (1.0, 1.0)})
    found = tune_policy(parts[0], parts[1], bounded, CLICKS, tries=60)
    assert found.after.weights["like"] <= 1.5
    Policy.model_validate(found.after.model_dump())  # is valid in a policies file


def test_the_trade_off_has_the_present_policy_at_its_origin(found):
    points = found.trade_off()
    assert list(points.changes) == ["click", "like", "dwell"]
    assert [change[0] for change in points.changes.values()] == pytest.approx([0, 0, 0])
    now, then = found.gains["click@5"].before, found.gains["click@5"].after
    assert points.found["click"] == pytest.approx(then / now - 1)


def test_the_front_is_every_point_that_no_other_beats():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 200))
    expected = {
        i for i in range(200) if not any((x > x[i]) & (y >= y[i]) | (x >= x[i]) & (y > y[i]))
    }
    edge = front(x, y)
    assert set(edge.tolist()) == expected
    assert (np.diff(x[edge]) > 0).all()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_a_small_file(found, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{suffix}"
    save_plot(found.trade_off(), "a title", path)
    assert 5_000 < path.stat().st_size < 150_000


def test_a_plot_that_cannot_be_written_is_an_error_of_one_line(found, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(PlotUnavailable, match="at least two outcomes"):
        save_plot(TradeOff(5, {"click": np.zeros(3)}, {"click": 0.0}), "", tmp_path / "a.png")
    with pytest.raises(PlotUnavailable, match=r"a\.doc"):
        save_plot(found.trade_off(), "", tmp_path / "a.doc")
    assert math.isfinite(found.gains["NDCG@5"].after)
