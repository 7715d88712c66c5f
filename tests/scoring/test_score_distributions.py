"""What is seen of answers after they were sent: score distributions, and shadows compared."""

import asyncio

import numpy as np
import pytest

from app.engine.request import RequestFeatures
from app.ranking.agreement import kendall_tau, overlap
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker
from app.scoring.shadow import MOST_COMPARED, Observation, Ranked
from app.telemetry.metrics import Metrics
from app.telemetry.ranking import TAU_EDGES
from tests.support.clock import VirtualTimeLoop

TASKS = ("click", "like")
SCORES = np.random.default_rng(3).random((40, 2), np.float32)


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def metrics():
    return Metrics()


def ranked(scores=SCORES, *, shadow: Policy | None = None, boost: object = None) -> Ranked:
    other = None if shadow is None else Ranker.of(shadow, TASKS)
    ranker = Ranker.of(Policy(name="live", weights={"click": 1.0}), TASKS, shadow=other)
    sort_keys = ranker.sort_keys(scores)
    candidate = {} if boost is None else {"boost": np.array(boost, np.float32).reshape(-1, 1)}
    request = RequestFeatures(user={}, candidate=candidate, rows=len(scores), unknown_ids={})
    return Ranked(request, ranker, scores, sort_keys, ranker.rank_scores(sort_keys))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"gatehouse_{name}", labels)


def both(metrics: Metrics, name: str) -> float | None:
    return value(metrics, name, policy="live", shadow="next")


def edge_of(tau: float) -> float:
    return next(edge for edge in TAU_EDGES if tau <= edge)


def tau_edge(metrics: Metrics) -> float:
    """The lowest bucket that counted the one τ."""
    labels = {"policy": "live", "shadow": "next"}
    return next(
        edge
        for edge in TAU_EDGES
        if value(metrics, "shadow_kendall_tau_bucket", le=str(edge), **labels)
    )


LIKES = Policy(name="next", weights={"like": 1.0})


async def test_a_shadow_is_compared_with_what_was_answered(metrics):
    answer = ranked(shadow=LIKES)
    Observation(metrics.ranking).look_later("feed", answer)
    assert both(metrics, "shadow_top_10_overlap_count") is None  # the answer comes first
    await asyncio.sleep(0)
    live, other = SCORES[:, 0].astype(float), SCORES[:, 1].astype(float)
    assert both(metrics, "shadow_top_10_overlap_count") == 1
    assert tau_edge(metrics) == edge_of(kendall_tau(live, other))
    assert both(metrics, "shadow_top_10_overlap_sum") == pytest.approx(overlap(live, other, 10))


async def test_a_shadow_may_multiply_by_a_feature_that_the_live_policy_does_not_read(metrics):
    shadow = Policy(name="next", formula="power_product", weights={"like": 0.0}, multiplier="boost")
    scores = np.array([[0.1, 0], [0.2, 0], [0.3, 0]], np.float32)
    answer = ranked(scores, shadow=shadow, boost=[3, 2, 1])
    Observation(metrics.ranking).look_later("feed", answer)
    await asyncio.sleep(0)
    assert tau_edge(metrics) == -0.5


@pytest.mark.parametrize("rows", [0, 1])
async def test_fewer_than_two_candidates_have_no_order_to_compare(metrics, rows):
    Observation(metrics.ranking).look_later("feed", ranked(SCORES[:rows], shadow=LIKES))
    await asyncio.sleep(0)
    assert both(metrics, "shadow_top_10_overlap_count") is None


async def test_of_very_many_candidates_some_are_compared(metrics):
    """All pairs of them would hold up the event loop."""
    many = np.linspace(0, 1, 4 * MOST_COMPARED, dtype=np.float32)
    scores = np.stack([many, np.where(np.arange(len(many)) % 4 == 0, many, 0)], axis=1)
    Observation(metrics.ranking).look_later("feed", ranked(scores, shadow=LIKES))
    await asyncio.sleep(0)
    assert tau_edge(metrics) == 1.0  # every fourth agrees, and no others


async def test_looks_are_as_rare_as_they_should_be_whatever_the_load(metrics):
    observation = Observation(metrics.ranking, every_s=0.05)
    seen = 0
    for _ in range(1000):
        seen += observation.is_due()
        await asyncio.sleep(0.001)
    assert 18 <= seen <= 21


async def test_after_a_long_look_there_is_a_longer_pause(metrics):
    observation = Observation(metrics.ranking, every_s=0.05)
    assert observation.is_due()
    observation.took(0.008)
    await asyncio.sleep(0.7)
    assert not observation.is_due()
    await asyncio.sleep(0.2)
    assert observation.is_due()


async def test_scores_are_counted_by_task_and_bucket(metrics):
    scores = np.array([[0.0, 0.25], [0.5, 7.0], [0.5, 5000.0]], np.float32)
    Observation(metrics.ranking).look_later("feed", ranked(scores))
    Observation(metrics.ranking).look_later("feed", ranked(scores))
    await asyncio.sleep(0)

    def below(edge: str, task: str) -> float | None:
        return value(metrics, "task_score_bucket", model="feed", task=task, le=edge)

    assert [below(edge, "click") for edge in ("0.0", "0.4", "0.5", "+Inf")] == [2, 2, 6, 6]
    assert [below(edge, "like") for edge in ("0.2", "0.3", "10.0", "1000.0")] == [0, 2, 4, 4]
    assert value(metrics, "task_score_count", model="feed", task="like") == 6
    assert value(metrics, "task_score_sum", model="feed", task="click") == pytest.approx(2)
    assert value(metrics, "rank_score_count", model="feed") == 6
    assert b"gatehouse_task_score_bucket" in metrics.render()
