"""Requests ranked together get the bits that each of them gets by itself."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, strategies as st

from app.ranking.batch import RankedRequest, rank_alone, rank_batch
from app.ranking.calibration import Calibration, Isotonic, Platt, Scale
from app.ranking.explanation import Explanation
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker, RankingOptions
from tests.support.expressions import GOOD

TASKS = ("click", "like", "dwell", "hide")
WEIGHTS = {"click": 1.0, "like": -0.7, "dwell": 0.3}
CALIBRATIONS: dict[str, Calibration] = {
    "click": Platt(method="platt", slope=1.3, intercept=-0.4),
    "like": Isotonic(method="isotonic", scores=(0.0, 0.3, 0.9), calibrated=(0.1, 0.1, 0.8)),
    "dwell": Scale(method="scale", factor=0.7),
}
POLICIES = (
    Policy(name="sum", formula="weighted_sum", weights=WEIGHTS),
    Policy(name="product", formula="power_product", weights=WEIGHTS),
    Policy(name="boosted", formula="power_product", weights=WEIGHTS, multiplier="boost"),
    Policy(name="other-boost", formula="power_product", weights=WEIGHTS, multiplier="other"),
    Policy(name="place", formula="rank_position", weights=WEIGHTS),
    Policy(
        name="bent-place",
        formula="rank_position",
        weights=WEIGHTS,
        alpha={"click": 0.5, "like": 1.7},
        beta={"dwell": 20.0},
    ),
    *(
        Policy(
            name=f"expression-{number}",
            formula="expression",
            expression=text,
            weights={name: 0.6 for name in ("like", "hide", "fresh") if f"w.{name}" in text},
        )
        for number, text in enumerate(GOOD)
    ),
)


@cache
def ranker(policy: int, *, is_calibrated: bool, is_reweighted: bool) -> Ranker:
    made = Ranker.of(POLICIES[policy], TASKS, CALIBRATIONS if is_calibrated else {})
    overrides = dict.fromkeys(list(made.adjustable)[:1], 0.25)
    return made.reweighted(overrides) if is_reweighted else made


rankers = st.builds(
    ranker,
    st.integers(0, len(POLICIES) - 1),
    is_calibrated=st.booleans(),
    is_reweighted=st.booleans(),
)
any_options = st.builds(
    RankingOptions,
    rankers,
    top_k=st.none() | st.integers(1, 50),
    explain=st.booleans(),
)


@st.composite
def mixes(draw) -> tuple[list[int], list[RankingOptions], int]:
    """Sizes of requests, their options, and a seed for scores; often with one ranker for all."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12))
    options = [draw(any_options) for _ in sizes]
    if draw(st.booleans()):
        shared = options[0].ranker
        options = [
            RankingOptions(shared, own_options.top_k, own_options.explain)
            for own_options in options
        ]
    return sizes, options, draw(st.integers(0, 2**32 - 1))


def scores_with_ties(rows: int, seed: int) -> npt.NDArray[np.float32]:
    """`[rows, K]`: zeros, ties, whole rows that are equal, and numbers of all sizes."""
    rng = np.random.default_rng(seed)
    scores = rng.random((rows, len(TASKS)), np.float32) * rng.choice([1, 1, 1e-12, 300], (rows, 1))
    scores[rng.random(scores.shape) < 0.2] = rng.choice([0.0, 0.25, 1.0])
    twins = rng.integers(0, rows, rows)
    mixed: npt.NDArray[np.float32] = np.where(rng.random((rows, 1)) < 0.3, scores[twins], scores)
    return mixed.astype(np.float32)


def multipliers_of(rows: int, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed + 1)
    return {
        name: rng.choice(np.array([0, 1e-12, 0.5, 1, 40], np.float32), (rows, 1))
        for name in ("boost", "other")
    }


def bits(array: npt.NDArray[np.generic] | None) -> object:
    return None if array is None else (array.dtype, array.shape, array.tobytes())


def explanation_bits(explanation: Explanation | None) -> object:
    if explanation is None:
        return None
    e = explanation
    arrays = (e.positions, e.sort_keys, e.raw, e.calibrated, e.shares, e.leads, e.remainders)
    return id(e.ranker), [bits(array) for array in arrays]


def check_equal(together: RankedRequest, alone: RankedRequest) -> None:
    for name in ("scores", "sort_keys", "rank_score", "ranking", "multiplier"):
        assert bits(getattr(together, name)) == bits(getattr(alone, name)), name
    assert explanation_bits(together.explanation) == explanation_bits(alone.explanation)


def check_mix(sizes: Sequence[int], options: Sequence[RankingOptions], seed: int) -> None:
    bounds = np.cumsum([0, *sizes]).tolist()
    scores = scores_with_ties(bounds[-1], seed)
    features = [multipliers_of(size, seed + 7 * index) for index, size in enumerate(sizes)]
    together = rank_batch(
        scores, bounds, options, lambda request, name: features[request][name][:, 0]
    )
    assert len(together) == len(sizes)
    for request, own_options in enumerate(options):
        own = scores[bounds[request] : bounds[request + 1]].copy()
        name = own_options.ranker.policy.multiplier
        multiplier = None if name is None else features[request][name][:, 0]
        check_equal(together[request], rank_alone(own, own_options, multiplier))


@given(mixes())
def test_batch_results_equal_single_results_bit_for_bit(mix):
    check_mix(*mix)


@pytest.mark.parametrize("policy", range(len(POLICIES)))
@pytest.mark.parametrize("is_calibrated", [False, True])
@pytest.mark.parametrize(
    "sizes", [[1], [40], [1, 1, 1], [200, 300], [1, 500, 3], [7] * 100], ids=str
)
def test_batches_of_every_shape_rank_as_single_requests_do(policy, is_calibrated, sizes):
    """One row each, one request, few large ones, and many small ones are sorted differently."""
    one = ranker(policy, is_calibrated=is_calibrated, is_reweighted=False)
    options = [RankingOptions(one, 3 if size % 2 else None, explain=True) for size in sizes]
    check_mix(sizes, options, seed=policy)


@pytest.mark.parametrize("sizes", [[3, 4], [60, 60]], ids=str)
def test_ties_keep_the_order_of_the_candidates(sizes):
    options = [RankingOptions(ranker(0, is_calibrated=False, is_reweighted=False)) for _ in sizes]
    bounds = np.cumsum([0, *sizes]).tolist()
    scores = np.full((sum(sizes), len(TASKS)), 0.5, np.float32)
    for ranked, size in zip(rank_batch(scores, bounds, options, no_multiplier), sizes, strict=True):
        assert ranked.ranking.tolist() == list(range(size))


def test_requests_with_different_policies_keep_their_places():
    first = ranker(0, is_calibrated=False, is_reweighted=False)
    second = Ranker.of(Policy(weights={"hide": -1.0}), TASKS)
    options = [RankingOptions(chosen) for chosen in (first, second, first, second)]
    scores = np.zeros((8, len(TASKS)), np.float32)
    scores[:, 0] = [1, 2, 0, 0, 6, 5, 0, 0]
    scores[:, 3] = [0, 0, 3, 4, 0, 0, 8, 7]
    ranked = rank_batch(scores, [0, 2, 4, 6, 8], options, no_multiplier)
    assert [result.sort_keys.tolist() for result in ranked] == [[1, 2], [-3, -4], [6, 5], [-8, -7]]
    assert [result.ranking.tolist() for result in ranked] == [[1, 0], [0, 1], [0, 1], [1, 0]]


def test_multiplier_is_that_of_the_request():
    """Also where requests with another policy lie between them."""
    boosted, plain = (ranker(p, is_calibrated=False, is_reweighted=False) for p in (2, 1))
    options = [RankingOptions(chosen) for chosen in (boosted, plain, boosted)]
    boosts = {0: [1.0, 2.0], 2: [4.0, 3.0]}
    ranked = rank_batch(
        np.full((6, len(TASKS)), 0.5, np.float32),
        [0, 2, 4, 6],
        options,
        lambda request, _: np.array(boosts[request], np.float32),
    )
    multipliers = [
        None if result.multiplier is None else list(result.multiplier) for result in ranked
    ]
    assert multipliers == [[1, 2], None, [4, 3]]
    assert [result.ranking.tolist() for result in ranked] == [[1, 0], [0, 1], [0, 1]]


def test_empty_request_has_an_empty_ranking():
    options = RankingOptions(ranker(0, is_calibrated=True, is_reweighted=False), explain=True)
    ranked = rank_alone(np.empty((0, len(TASKS)), np.float32), options)
    assert (ranked.ranking.tolist(), ranked.rank_score.tolist()) == ([], [])


def no_multiplier(_request: int, name: str) -> npt.NDArray[np.float32]:
    raise AssertionError(name)
