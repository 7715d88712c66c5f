"""Rank the requests of a batch together: one NumPy call for all rows that share a policy.

Every result equals, to the last bit, what `rank_alone` gives for the request by itself
(`tests/ranking/test_batch.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from app.ranking.explanation import Explanation, explain
from app.ranking.formulas import Numbers, Scores, SortKeys
from app.ranking.ranker import Ranker, RankingOptions, order

_SORT_ALONE = 48
"""From this many rows per request on, one sort for each request is faster than one for all."""

MultiplierOf = Callable[[int, str], Numbers]
"""Returns a candidate feature `[n]` of the request at an index, by the feature's name."""


@dataclass(slots=True, eq=False)
class RankedRequest:
    """The result of one request with n candidates and K tasks.

    Attributes:
        scores: `[n, K]` float32, the model's scores in the candidates' order.
        sort_keys: `[n]` float64, what the candidates are ordered by.
        rank_score: `[n]` float32.
        ranking: positions of the candidates, best first, at most `top_k`.
        multiplier: `[n]`, the feature that the policy multiplies by, if it has one.
        explanation: if the request asks for one.
    """

    scores: Scores
    sort_keys: SortKeys
    rank_score: Scores
    ranking: npt.NDArray[np.intp]
    multiplier: Numbers | None = None
    explanation: Explanation | None = None


def rank_alone(
    scores: Scores, options: RankingOptions, multiplier: Numbers | None = None
) -> RankedRequest:
    """Rank one request, `scores` `[n, K]`; `multiplier` `[n]` if its policy names one."""
    ranker = options.ranker
    sort_keys = ranker.sort_keys(scores, multiplier)
    ranking = order(sort_keys, options.top_k)
    return _result(options, scores, sort_keys, ranker.rank_scores(sort_keys), ranking, multiplier)


def rank_batch(
    scores: Scores,
    bounds: Sequence[int],
    options: Sequence[RankingOptions],
    multiplier_of: MultiplierOf,
) -> list[RankedRequest]:
    """Rank R requests with N rows between them.

    Args:
        scores: `[N, K]` float32, finite.
        bounds: R + 1 row numbers; request r has the rows `bounds[r]` to `bounds[r + 1]`.
        options: R, one for each request.
        multiplier_of: gives the feature that a policy multiplies by.
    """
    first = options[0].ranker
    if all(option.ranker is first for option in options):
        return _rank_together(first, scores, bounds, options, multiplier_of, range(len(options)))
    by_ranker: dict[int, list[int]] = {}
    for request, option in enumerate(options):
        by_ranker.setdefault(id(option.ranker), []).append(request)
    results: list[RankedRequest | None] = [None] * len(options)
    for requests in by_ranker.values():
        rows = np.concatenate([np.arange(bounds[r], bounds[r + 1]) for r in requests])
        own_bounds = np.cumsum([0, *(bounds[r + 1] - bounds[r] for r in requests)]).tolist()
        own_options = [options[r] for r in requests]
        ranked = _rank_together(
            own_options[0].ranker, scores[rows], own_bounds, own_options, multiplier_of, requests
        )
        for request, result in zip(requests, ranked, strict=True):
            results[request] = result
    return [result for result in results if result is not None]


def _rank_together(
    ranker: Ranker,
    scores: Scores,
    bounds: Sequence[int],
    options: Sequence[RankingOptions],
    multiplier_of: MultiplierOf,
    requests: Sequence[int],
) -> list[RankedRequest]:
    """Rank the rows `[N, K]` of requests that share a policy; `requests` are their indices."""
    name = ranker.policy.multiplier
    multiplier = None
    if name is not None:
        multiplier = np.concatenate([multiplier_of(request, name) for request in requests])  # [N]
    if ranker.formula.is_row_wise:
        sort_keys = ranker.sort_keys(scores, multiplier)  # [N]
    else:
        sort_keys = np.empty(len(scores))
        for start, stop in pairwise(bounds):
            own = None if multiplier is None else multiplier[start:stop]
            sort_keys[start:stop] = ranker.sort_keys(scores[start:stop], own)
    rank_score = ranker.rank_scores(sort_keys)  # [N]
    places = _order_within(sort_keys, bounds)
    results = []
    for index, option in enumerate(options):
        start, stop = bounds[index], bounds[index + 1]
        own_keys = sort_keys[start:stop]
        ranking = order(own_keys) if places is None else places[start:stop]
        results.append(
            _result(
                option,
                scores[start:stop],
                own_keys,
                rank_score[start:stop],
                ranking if option.top_k is None else ranking[: option.top_k],
                None if multiplier is None else multiplier[start:stop],
            )
        )
    return results


def _order_within(sort_keys: SortKeys, bounds: Sequence[int]) -> npt.NDArray[np.intp] | None:
    """Return each request's order one after the other, `[N]`, by one sort.

    Returns None if it is cheaper to sort each request by itself.
    """
    rows, requests = len(sort_keys), len(bounds) - 1
    if rows == requests:  # one row each
        return np.zeros(rows, np.intp)
    if requests == 1 or rows >= _SORT_ALONE * requests:
        return None
    starts = np.array(bounds)
    counts = np.diff(starts)  # [R]
    owner = np.repeat(np.arange(requests), counts)  # [N]
    first_row = np.repeat(starts[:-1], counts)  # [N]
    found: npt.NDArray[np.intp] = np.lexsort((-sort_keys, owner)) - first_row  # ties keep order
    return found


def _result(
    options: RankingOptions,
    scores: Scores,
    sort_keys: SortKeys,
    rank_score: Scores,
    ranking: npt.NDArray[np.intp],
    multiplier: Numbers | None,
) -> RankedRequest:
    explanation = None
    if options.explain:
        explanation = explain(options.ranker, scores, sort_keys, ranking, multiplier)
    return RankedRequest(scores, sort_keys, rank_score, ranking, multiplier, explanation)
