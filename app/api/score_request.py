"""A native score request, read from parsed JSON; every problem is found before any is reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from app.artifacts.encoding import Vocabularies
from app.artifacts.manifest import Manifest
from app.engine.document import MISSING, Findings, join
from app.engine.encode import EncodedRequest, encode
from app.errors import InvalidRequest, Problem
from app.ranking.policy import LARGEST_WEIGHT, Policy

_PARTS = frozenset(("user", "candidates", "candidate_keys", "ranking"))
_OPTIONS = frozenset(("policy", "weights", "top_k"))


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What a caller asked for, checked.

    Attributes:
        features: the user's and the candidates' columns.
        keys: the candidates' names, or None where positions do.
        policy: the policy to apply, the request's own weights included.
        top_k: how long the ranking is at most; None means whole.
    """

    features: EncodedRequest
    keys: Sequence[str | int] | None
    policy: Policy
    top_k: int | None


def read_request(
    document: object,
    manifest: Manifest,
    *,
    max_candidates: int,
    vocabularies: Vocabularies = MappingProxyType({}),
) -> ScoreRequest:
    """Check a document and encode its features.

    Raises:
        InvalidRequest: with every problem (the first 20).
        PayloadTooLarge: there are too many candidates.
    """
    if not isinstance(document, dict):
        raise InvalidRequest([Problem("", "must be an object")])
    findings = Findings()
    findings.strangers("", document, _PARTS)
    features = encode(
        manifest,
        document.get("user", {}),
        document.get("candidates", MISSING),
        findings,
        max_candidates=max_candidates,
        vocabularies=vocabularies,
    )
    keys = _read_keys(document.get("candidate_keys"), features.rows, findings)
    options = document.get("ranking")
    if options is None:
        options = {}
    elif not isinstance(options, dict):
        findings.problem("/ranking", "must be an object")
        options = {}
    findings.strangers("/ranking", options, _OPTIONS)
    policy = _read_policy(options, manifest, findings)
    top_k = options.get("top_k")
    if top_k is not None and not (_is_integer(top_k) and top_k >= 1):
        findings.problem("/ranking/top_k", "must be a whole number, 1 or more")
    findings.raise_any()
    return ScoreRequest(features, keys, policy, top_k)


def _read_keys(keys: Any, rows: int, findings: Findings) -> Sequence[str | int] | None:  # noqa: ANN401
    if keys is None:
        return None
    if not isinstance(keys, list):
        findings.problem("/candidate_keys", "must be a list, one key a candidate")
        return None
    if len(keys) != rows:
        if not findings.problems:  # else n itself is in doubt
            findings.problem("/candidate_keys", f"has {len(keys)} keys for {rows} candidates")
        return None
    if not set(map(type, keys)) <= {str, int}:
        for row, key in enumerate(keys):
            if not isinstance(key, str | int) or isinstance(key, bool):
                findings.problem(f"/candidate_keys/{row}", "must be a string or an integer")
    return keys


def _read_policy(options: dict[str, Any], manifest: Manifest, findings: Findings) -> Policy:
    policy = manifest.ranking
    if options.get("policy") not in (None, policy.name):
        findings.problem("/ranking/policy", f"is no policy of this model; it has {policy.name}")
    weights = options.get("weights")
    if weights is None:
        return policy
    if not isinstance(weights, dict):
        findings.problem("/ranking/weights", "must be an object, task name to number")
        return policy
    findings.strangers("/ranking/weights", weights, frozenset(manifest.task_names))
    for task, weight in weights.items():
        if findings.full:
            break
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not abs(weight) <= LARGEST_WEIGHT:
            limit = f"must be a number from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}"
            findings.problem(join("/ranking/weights", task), limit)
    return policy.reweighted(weights)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
