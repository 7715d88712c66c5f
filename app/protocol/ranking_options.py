"""A request's ranking options: policy, weights, `top_k` and `explain`."""

from collections.abc import Mapping
from typing import Any

from app.errors import did_you_mean
from app.protocol.validation import ValidationReport, join, listing
from app.ranking.policies import ModelPolicies
from app.ranking.policy import ANY_WEIGHT, Interval
from app.ranking.ranker import Ranker, RankingOptions

_OPTIONS = frozenset(("policy", "weights", "top_k", "explain"))


def read_options(
    options: object, policies: ModelPolicies, report: ValidationReport
) -> RankingOptions:
    """Read the member `ranking` of a request; None stands for no options.

    Args:
        options: an object with any of `policy`, `weights`, `top_k` and `explain`.
        policies: the model's policies, of one policy set.
        report: takes every problem; if it has any, the result is not fit for use.
    """
    if options is None:
        return policies.default_options
    if not isinstance(options, dict):
        report.add("/ranking", "must be an object")
        return policies.default_options
    report.unknown_members("/ranking", options, _OPTIONS)
    ranker = _read_policy(options.get("policy"), policies, report)
    ranker = _apply_weights(ranker, options.get("weights"), report) or policies.default
    top_k = options.get("top_k")
    if top_k is not None and not (is_integer(top_k) and top_k >= 1):
        report.add("/ranking/top_k", "must be an integer of at least 1")
    explain = options.get("explain")
    if explain is not None and not isinstance(explain, bool):
        report.add("/ranking/explain", "must be true or false")
    return RankingOptions(ranker, top_k, explain is True)


def is_integer(value: object) -> bool:
    """Return whether a JSON value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _read_policy(name: object, policies: ModelPolicies, report: ValidationReport) -> Ranker | None:
    if name is None:
        return policies.default
    if not isinstance(name, str):
        report.add("/ranking/policy", "must be a string, the name of a policy")
        return None
    ranker = policies.by_name.get(name)
    if ranker is None:
        known = policies.by_name
        detail = f"unknown policy{did_you_mean(name, known)} (known: {listing(known)})"
        report.add("/ranking/policy", detail)
    return ranker


def _apply_weights(
    ranker: Ranker | None, weights: object, report: ValidationReport
) -> Ranker | None:
    """Apply a request's weights; if its policy is unknown, check only that they are numbers."""
    if weights is None:
        return ranker
    if not isinstance(weights, dict):
        report.add("/ranking/weights", "must be an object that maps names to numbers")
        return ranker
    adjustable: Mapping[str, Interval] = dict.fromkeys(weights, ANY_WEIGHT)
    if ranker is not None:
        adjustable = ranker.adjustable
        _report_fixed(ranker, weights, report)
    is_valid = weights.keys() <= adjustable.keys()
    for name, weight in weights.items():
        if report.full:
            is_valid = False  # the rest is not checked
            break
        low, high = adjustable.get(name, ANY_WEIGHT)
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if name in adjustable and not (is_number and low <= weight <= high):
            rule = f"must be a number between {low:g} and {high:g}"
            report.add(join("/ranking/weights", name), rule)
            is_valid = False
    return ranker.reweighted(weights) if is_valid and ranker is not None else ranker


def _report_fixed(ranker: Ranker, weights: dict[str, Any], report: ValidationReport) -> None:
    """Report the weights that a request may not set: of tasks, and of unknown names."""
    adjustable, name = frozenset(ranker.adjustable), ranker.policy.name
    fixed = [task for task in ranker.tasks if task in weights and task not in adjustable]
    for task in fixed:
        detail = f"policy {name} fixes this weight (adjustable: {listing(adjustable)})"
        report.add(join("/ranking/weights", task), detail)
    others = {task: weight for task, weight in weights.items() if task not in fixed}
    what = f"policy {name} has no weight"
    report.unknown_members("/ranking/weights", others, adjustable, what, "adjustable")
