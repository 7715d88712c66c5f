"""What a request says of its ranking: which policy, which weights, how many, and why."""

from collections.abc import Mapping
from typing import Any

from app.protocol.validation import ValidationReport, join
from app.ranking.policies import ModelPolicies
from app.ranking.policy import ANY_WEIGHT, Interval
from app.ranking.ranker import Ranker, RankingOptions

_OPTIONS = frozenset(("policy", "weights", "top_k", "explain"))


def read_options(
    options: object, rankers: ModelPolicies, report: ValidationReport
) -> RankingOptions:
    """Read the member `ranking` of a request; None is nothing said.

    Args:
        options: an object with `policy`, `weights`, `top_k` and `explain`, none of them needed.
        rankers: those of the model, taken once for this request.
        report: takes every problem; where it has any, the result is not fit for use.
    """
    if options is None:
        return rankers.wanted
    if not isinstance(options, dict):
        report.add("/ranking", "must be an object")
        return rankers.wanted
    report.unknown_keys("/ranking", options, _OPTIONS)
    ranker = _picked(options.get("policy"), rankers, report)
    ranker = _reweighted(ranker, options.get("weights"), report) or rankers.default
    top_k = options.get("top_k")
    if top_k is not None and not (_is_integer(top_k) and top_k >= 1):
        report.add("/ranking/top_k", "must be a whole number, 1 or more")
    explain = options.get("explain")
    if explain is not None and not isinstance(explain, bool):
        report.add("/ranking/explain", "must be true or false")
    return RankingOptions(ranker, top_k, explain is True)


def _picked(name: object, rankers: ModelPolicies, report: ValidationReport) -> Ranker | None:
    if name is None:
        return rankers.default
    ranker = rankers.by_name.get(name) if isinstance(name, str) else None
    if ranker is None:
        known = ", ".join(rankers.by_name)
        report.add("/ranking/policy", f"is no policy of this model; it has {known}")
    return ranker


def _reweighted(
    ranker: Ranker | None,
    weights: Any,  # noqa: ANN401
    report: ValidationReport,
) -> Ranker | None:
    """Apply a request's own weights; of an unknown policy they need only be numbers."""
    if weights is None:
        return ranker
    if not isinstance(weights, dict):
        report.add("/ranking/weights", "must be an object, name to number")
        return ranker
    adjustable: Mapping[str, Interval] = dict.fromkeys(weights, ANY_WEIGHT)
    if ranker is not None:
        adjustable = ranker.adjustable
        allowed = ", ".join(sorted(adjustable)) or "none"
        detail = f"may not be set; of policy {ranker.policy.name} may: {allowed}"
        report.unknown_keys("/ranking/weights", weights, frozenset(adjustable), detail)
    is_fit = weights.keys() <= adjustable.keys()
    for name, weight in weights.items():
        if report.full:
            is_fit = False  # whatever the rest is
            break
        low, high = adjustable.get(name, ANY_WEIGHT)
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if name in adjustable and not (is_number and low <= weight <= high):
            rule = f"must be a number from {low:g} to {high:g}"
            report.add(join("/ranking/weights", name), rule)
            is_fit = False
    return ranker.reweighted(weights) if is_fit and ranker is not None else ranker


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
