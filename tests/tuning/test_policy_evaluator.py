"""Sort keys under other weights are those that a server would rank by."""

import numpy as np
import pytest

from app.ranking.calibration import Platt
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker, order
from app.tuning.policy_evaluator import PolicyEvaluator
from tests.tuning import worlds

OTHER = {"click": 0.7, "like": -2.5, "dwell": 0.2}
EXPRESSION = "click**w.click * (1 + w.like*like) + w.dwell*log1p(dwell)"


@pytest.mark.parametrize(
    "changes",
    [
        {"formula": "weighted_sum"},
        {"formula": "power_product"},
        {"formula": "rank_position", "alpha": {"like": 0.5}, "beta": {"click": 2.0}},
        {"formula": "expression", "expression": EXPRESSION},
    ],
    ids=lambda changes: changes["formula"],
)
def test_other_weights_order_each_request_as_a_server_would(changes):
    log = worlds.log(30)
    policy = worlds.ranker(**changes).policy
    calibrations = {"click": Platt(method="platt", slope=0.5, intercept=0.3)}
    sort_keys = PolicyEvaluator(log, Ranker.of(policy, worlds.TASKS, calibrations)).sort_keys(OTHER)
    served = Ranker.of(policy.reweighted(OTHER), worlds.TASKS, calibrations)
    for number in range(log.requests):
        rows = np.flatnonzero(log.request == number)
        expected = served.sort_keys(log.scores[rows])
        assert np.allclose(sort_keys[rows], expected, rtol=1e-12, atol=1e-12)
        assert order(sort_keys[rows]).tolist() == order(expected).tolist()


def test_a_weight_that_the_policy_lacks_counts():
    log = worlds.log(30)
    ranker = Ranker.of(Policy(weights={"click": 1.0}), worlds.TASKS)
    expected = log.scores.astype(float) @ np.array([1.0, 0.0, 3.0])
    evaluator = PolicyEvaluator(log, ranker)
    assert np.allclose(evaluator.sort_keys({"click": 1.0, "dwell": 3.0}), expected)
