"""Sampled responses: how scores are distributed, and how shadow policies compare."""

import asyncio

import numpy as np
import pytest

from app.engine.request import RequestFeatures
from app.ranking.agreement import MOST_COMPARED, kendall_tau, overlap
from app.ranking.batch import rank_alone
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker, RankingOptions
from app.scoring.response_sampler import ResponseSampler
from app.telemetry.metrics import Metrics
from app.telemetry.ranking import TAU_BUCKETS
from tests.support.clock import VirtualTimeLoop
from tests.support.fakes import sums_model

FEED = sums_model("feed")
TASKS = ("click", "like")
SCORES = np.random.default_rng(3).random((40, 2), np.float32)


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def metrics():
    return Metrics()


def offer(
    sampler: ResponseSampler,
    scores=SCORES,
    *,
    now: float = 0.0,
    shadow: Policy | None = None,
    boost: object = None,
) -> None:
    """Offer a response of the policy `live`."""
    other = None if shadow is None else Ranker.of(shadow, TASKS)
    ranker = Ranker.of(Policy(name="live", weights={"click": 1.0}), TASKS, shadow=other)
    candidate = {} if boost is None else {"boost": np.array(boost, np.float32).reshape(-1, 1)}
    features = RequestFeatures(user={}, candidate=candidate, rows=len(scores), unknown_ids={})
    ranked = rank_alone(scores, RankingOptions(ranker))
    if now >= sampler.next_at:
        sampler.sample(now, FEED, features, ranker, ranked)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"gatehouse_{name}", labels)


def both(metrics: Metrics, name: str) -> float | None:
    return value(metrics, name, policy="live", shadow="next")


def edge_of(tau: float) -> float:
    return next(edge for edge in TAU_BUCKETS if tau <= edge)


def tau_edge(metrics: Metrics) -> float:
    """The lowest bucket that counted the one τ."""
    labels = {"policy": "live", "shadow": "next"}
    return next(
        edge
        for edge in TAU_BUCKETS
        if value(metrics, "shadow_kendall_tau_bucket", le=str(edge), **labels)
    )


LIKES = Policy(name="next", weights={"like": 1.0})


async def test_shadow_policy_is_compared_with_the_response(metrics):
    offer(ResponseSampler(metrics.ranking), shadow=LIKES)
    assert both(metrics, "shadow_top_10_overlap_count") is None  # the response is written first
    await asyncio.sleep(0)
    live, other = SCORES[:, 0].astype(float), SCORES[:, 1].astype(float)
    assert both(metrics, "shadow_top_10_overlap_count") == 1
    assert tau_edge(metrics) == edge_of(kendall_tau(live, other))
    assert both(metrics, "shadow_top_10_overlap_sum") == pytest.approx(overlap(live, other, 10))


async def test_shadow_policy_may_have_another_multiplier(metrics):
    shadow = Policy(name="next", formula="power_product", weights={"like": 0.0}, multiplier="boost")
    scores = np.array([[0.1, 0], [0.2, 0], [0.3, 0]], np.float32)
    offer(ResponseSampler(metrics.ranking), scores, shadow=shadow, boost=[3, 2, 1])
    await asyncio.sleep(0)
    assert tau_edge(metrics) == -0.5


@pytest.mark.parametrize("rows", [0, 1])
async def test_fewer_than_two_candidates_are_not_compared(metrics, rows):
    offer(ResponseSampler(metrics.ranking), SCORES[:rows], shadow=LIKES)
    await asyncio.sleep(0)
    assert both(metrics, "shadow_top_10_overlap_count") is None


async def test_only_some_of_very_many_candidates_are_compared(metrics):
    """All pairs of them would hold up the event loop."""
    many = np.linspace(0, 1, 4 * MOST_COMPARED, dtype=np.float32)
    scores = np.stack([many, np.where(np.arange(len(many)) % 4 == 0, many, 0)], axis=1)
    offer(ResponseSampler(metrics.ranking), scores, shadow=LIKES)
    await asyncio.sleep(0)
    assert tau_edge(metrics) == 1.0  # every fourth agrees, and no others


def sampled(metrics: Metrics) -> float:
    return value(metrics, "rank_score_count", model="feed") or 0


async def test_samples_are_limited_in_rate_whatever_the_load(metrics, monkeypatch):
    monkeypatch.setattr("time.monotonic", asyncio.get_running_loop().time)
    sampler = ResponseSampler(metrics.ranking, every_s=0.05)
    for _ in range(1000):
        offer(sampler, SCORES[:1], now=asyncio.get_running_loop().time())
        await asyncio.sleep(0.001)
    assert 18 <= sampled(metrics) <= 21


async def test_long_sample_is_followed_by_a_longer_pause(metrics, monkeypatch):
    loop = asyncio.get_running_loop()
    monkeypatch.setattr("time.monotonic", loop.time)
    sampler = ResponseSampler(metrics.ranking, every_s=0.05)
    offer(sampler, SCORES[:1], now=loop.time())
    sampler.pause_after(0.008)
    await asyncio.sleep(0.7)
    offer(sampler, SCORES[:1], now=loop.time())
    await asyncio.sleep(0.05)
    assert sampled(metrics) == 1
    await asyncio.sleep(0.1)
    offer(sampler, SCORES[:1], now=loop.time())
    await asyncio.sleep(0)
    assert sampled(metrics) == 2


async def test_scores_are_counted_by_task_and_bucket(metrics):
    scores = np.array([[0.0, 0.25], [0.5, 7.0], [0.5, 5000.0]], np.float32)
    for _ in range(2):
        offer(ResponseSampler(metrics.ranking), scores)
    await asyncio.sleep(0)

    def below(edge: str, task: str) -> float | None:
        return value(metrics, "task_score_bucket", model="feed", task=task, le=edge)

    assert [below(edge, "click") for edge in ("0.0", "0.4", "0.5", "+Inf")] == [2, 2, 6, 6]
    assert [below(edge, "like") for edge in ("0.2", "0.3", "10.0", "1000.0")] == [0, 2, 4, 4]
    assert value(metrics, "task_score_count", model="feed", task="like") == 6
    assert value(metrics, "task_score_sum", model="feed", task="click") == pytest.approx(2)
    assert value(metrics, "rank_score_count", model="feed") == 6
    assert b"gatehouse_task_score_bucket" in metrics.render()
