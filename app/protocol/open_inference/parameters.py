"""The `parameters` of an inference request, and of its tensors."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from app.engine.request import Priority
from app.errors import did_you_mean
from app.protocol.ranking_options import is_integer, read_options
from app.protocol.validation import LARGEST_TIMEOUT_S, ValidationReport, cut, join, listing
from app.ranking.policies import ModelPolicies
from app.ranking.ranker import RankingOptions

_PRIORITIES = (None, Priority.HIGH, Priority.NORMAL, Priority.LOW)
"""By Triton's number; 0 is the default."""

_EXTENSIONS = {
    "sequence_": "sequences are not supported",
    "shared_memory_": "shared memory is not supported",
    "classification": "classification is not supported; the outputs are scores",
}
"""Parameters of extensions that this server does not implement, by the beginning of their name."""

_IGNORED = frozenset(("content_type", "headers"))
"""Parameters that MLServer's clients put into requests, inputs and outputs. `content_type` names
the Python codec of a tensor (`np`, `pd`, `str`) and changes nothing here, except for `base64`: it
asks the server to decode the data."""

_WEIGHT = "weights."
_OF_REQUESTS = frozenset(("policy", "priority", "timeout", "binary_data_output", "weights.<task>"))


@dataclass(frozen=True, slots=True)
class Parameters:
    """A request's parameters.

    Attributes:
        ranking: how to rank the candidates.
        timeout_s: from the request's arrival, or None if not given.
        priority: None if not given.
        is_binary: whether outputs are binary unless they say otherwise.
    """

    ranking: RankingOptions
    timeout_s: float | None = None
    priority: Priority | None = None
    is_binary: bool = False


def read_parameters(
    parameters: object, policies: ModelPolicies, report: ValidationReport
) -> Parameters:
    """Check a request's parameters; every problem goes into the report."""
    if parameters is None:
        return Parameters(policies.default_options)
    refuse_parameters(parameters, "", _OF_REQUESTS, report)
    if not isinstance(parameters, dict):
        return Parameters(policies.default_options)
    is_binary = parameters.get("binary_data_output", False)
    if not isinstance(is_binary, bool):
        report.add("/parameters/binary_data_output", "must be true or false")
    return Parameters(
        _ranking_options(parameters, policies, report),
        _timeout_s(parameters, report),
        _priority(parameters, report),
        is_binary is True,
    )


def refuse_parameters(
    parameters: object, pointer: str, known: Collection[str], report: ValidationReport
) -> None:
    """Report parameters that are not an object, and each one that this server does not accept.

    Args:
        parameters: that member of a request, an input or an output.
        pointer: of the request, the input or the output.
        known: the parameters that are valid there; `content_type` is accepted anywhere.
        report: takes every problem.
    """
    if parameters is None:
        return
    at = f"{pointer}/parameters"
    if not isinstance(parameters, dict):
        report.add(at, "must be an object")
        return
    for name, value in parameters.items():
        if report.full:
            return
        if name in known or (known is _OF_REQUESTS and name.startswith(_WEIGHT)):
            continue
        if name not in _IGNORED:
            report.add(join(at, name), _why(name, known))
        elif value == "base64":
            report.add(join(at, name), "base64 is not supported; send the strings themselves")


def _why(name: str, known: Collection[str]) -> str:
    for start, why in _EXTENSIONS.items():
        if name.startswith(start):
            return why
    nearest = did_you_mean(name, known)
    return f'unknown parameter "{cut(name)}"{nearest} (known: {listing(known)})'


def _timeout_s(parameters: dict[str, Any], report: ValidationReport) -> float | None:
    timeout_us = parameters.get("timeout", 0)
    if is_integer(timeout_us) and 0 <= timeout_us <= LARGEST_TIMEOUT_S * 1e6:
        return timeout_us / 1e6 or None
    largest = f"{LARGEST_TIMEOUT_S * 1e6:.0f}"
    report.add("/parameters/timeout", f"must be an integer between 0 and {largest} (microseconds)")
    return None


def _priority(parameters: dict[str, Any], report: ValidationReport) -> Priority | None:
    level = parameters.get("priority", 0)
    if is_integer(level) and 0 <= level < len(_PRIORITIES):
        return _PRIORITIES[level]
    detail = "must be 1 (high), 2 (normal), 3 (low) or 0 (the default)"
    report.add("/parameters/priority", detail)
    return None


def _ranking_options(
    parameters: dict[str, Any], policies: ModelPolicies, report: ValidationReport
) -> RankingOptions:
    """Read `policy` and `weights.<name>` as the native API reads its options."""
    weights = {
        name.removeprefix(_WEIGHT): weight
        for name, weight in parameters.items()
        if name.startswith(_WEIGHT)
    }
    policy = parameters.get("policy")
    if "policy" in parameters and not isinstance(policy, str):
        report.add("/parameters/policy", "must be a string")
        policy = None
    if not weights and policy is None:
        return policies.default_options
    ranking = ValidationReport()
    options = read_options({"policy": policy, "weights": weights or None}, policies, ranking)
    for problem in ranking.problems:
        pointer = problem.pointer.replace("/ranking/weights/", f"/parameters/{_WEIGHT}")
        report.add(pointer.replace("/ranking/", "/parameters/"), problem.detail)
    return options
