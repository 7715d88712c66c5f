"""A native score request, read from parsed JSON; every problem is found before any is reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from app.artifacts.encoding import Vocabularies
from app.artifacts.manifest import Manifest
from app.engine.request import RequestFeatures
from app.errors import FieldError, InvalidRequest
from app.protocol.features import encode
from app.protocol.ranking_options import read_options
from app.protocol.validation import MISSING, ValidationReport, check_keys
from app.ranking.policies import ModelPolicies
from app.ranking.ranker import RankingOptions

_PARTS = frozenset(("user", "candidates", "candidate_keys", "ranking"))


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What a caller asked for, checked.

    Attributes:
        features: the user's and the candidates' columns.
        keys: the candidates' names, or None where positions do.
        wanted: how they are to be ranked.
    """

    features: RequestFeatures
    keys: Sequence[str | int] | None
    wanted: RankingOptions


def read_request(
    document: object,
    manifest: Manifest,
    rankers: ModelPolicies,
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
        raise InvalidRequest([FieldError("", "must be an object")])
    report = ValidationReport()
    report.unknown_keys("", document, _PARTS)
    features = encode(
        manifest,
        document.get("user", {}),
        document.get("candidates", MISSING),
        report,
        max_candidates=max_candidates,
        vocabularies=vocabularies,
    )
    keys = check_keys(document.get("candidate_keys"), features.rows, report)
    wanted = read_options(document.get("ranking"), rankers, report)
    report.raise_any()
    return ScoreRequest(features, keys, wanted)
