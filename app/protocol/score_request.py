"""A native score request, read from parsed JSON; every problem is found before any is reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from app.artifacts.encoding import Vocabularies
from app.artifacts.manifest import Manifest
from app.errors import InvalidRequest, Problem
from app.protocol.features import EncodedRequest, encode
from app.protocol.ranking_options import read_options
from app.protocol.validation import MISSING, Findings
from app.ranking.policies import Rankers
from app.ranking.ranker import Wanted

_PARTS = frozenset(("user", "candidates", "candidate_keys", "ranking"))


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What a caller asked for, checked.

    Attributes:
        features: the user's and the candidates' columns.
        keys: the candidates' names, or None where positions do.
        wanted: how they are to be ranked.
    """

    features: EncodedRequest
    keys: Sequence[str | int] | None
    wanted: Wanted


def read_request(
    document: object,
    manifest: Manifest,
    rankers: Rankers,
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
    wanted = read_options(document.get("ranking"), rankers, findings)
    findings.raise_any()
    return ScoreRequest(features, keys, wanted)


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
