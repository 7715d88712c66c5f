"""The native dialect of score calls: one user and n candidates in JSON.

`app.api.openapi.schemas` describes both documents.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from app.artifacts.manifest import Manifest
from app.engine.request import RequestFeatures
from app.errors import FieldError, InvalidRequest
from app.protocol.dialect import Content, ParseContext, ParsedRequest
from app.protocol.features import encode
from app.protocol.json_body import decode_request
from app.protocol.ranking_options import read_options
from app.protocol.sent_ids import ids_of_document
from app.protocol.validation import MISSING, ValidationReport, check_keys
from app.ranking.batch import RankedRequest
from app.ranking.ranker import Ranker, RankingOptions

ROUTES = {
    "/v1/score": "Score with the default model",
    "/v1/models/{model}/score": "Score with a model",
    "/v1/models/{model}/versions/{version}/score": "Score with one version of a model",
}

Keys = Sequence[str | int]

_MEMBERS = frozenset(("user", "candidates", "candidate_keys", "ranking"))
_HEADERS = b"content-type: application/json\r\n"


class Native:
    """The dialect for recommender backends."""

    path = re.compile(
        r"/v1/(?:models/(?P<model>[^/]+)/(?:versions/(?P<version>[0-9]{1,16})/)?)?score"
    )
    media_types = frozenset((b"application/json",))

    def route(self, model: str | None, version: str | None) -> str:
        """Return the template of a path."""
        if model is None:
            return "/v1/score"
        return f"/v1/models/{{model}}{'/versions/{version}' if version else ''}/score"

    def parse(self, body: bytes, context: ParseContext) -> ParsedRequest:
        """Read a request body; see `Dialect.parse`."""
        manifest = context.model.manifest
        document = decode_request(body, manifest, max_candidates=context.max_candidates)
        decoded_at = time.perf_counter()
        features, ranking, keys = read_request(document, context)
        writer = ScoreResponseWriter(manifest, ranking.ranker, keys, context.role)
        parsed = ParsedRequest(features, ranking, writer, decoded_at)
        if context.key_feature and isinstance(document, dict):
            parsed.routing_key = document.get("user", {}).get(context.key_feature)
        if context.keeps_ids and isinstance(document, dict):
            parsed.ids = ids_of_document(document, manifest)
        return parsed


def read_request(
    document: object, context: ParseContext
) -> tuple[RequestFeatures, RankingOptions, Keys | None]:
    """Check a parsed document; return its features, ranking options and candidate keys.

    Raises:
        InvalidRequest, PayloadTooLarge: see `Dialect.parse`.
    """
    if not isinstance(document, dict):
        raise InvalidRequest([FieldError("", "must be an object")])
    report = ValidationReport()
    report.unknown_keys("", document, _MEMBERS)
    features = encode(
        context.model.manifest,
        document.get("user", {}),
        document.get("candidates", MISSING),
        report,
        max_candidates=context.max_candidates,
        vocabularies=context.model.vocabularies,
    )
    keys = check_keys(document.get("candidate_keys"), features.rows, report)
    ranking = read_options(document.get("ranking"), context.policies, report)
    report.raise_any()
    return features, ranking, keys


@dataclass(slots=True)
class ScoreResponseWriter:
    """Writes scores, rank scores and the ranking.

    Attributes:
        manifest: of the model.
        ranker: whose policy was applied.
        keys: the candidates' keys; None for positions.
        role: of the version.
    """

    manifest: Manifest
    ranker: Ranker
    keys: Keys | None
    role: str = "active"

    def write(self, ranked: RankedRequest) -> Content:
        """Return the response's content."""
        manifest, keys = self.manifest, self.keys
        by_task = np.ascontiguousarray(ranked.scores.T)  # [K, n]
        ranking = ranked.ranking.tolist()
        if keys is not None:
            ranking = [keys[position] for position in ranking]
        document: dict[str, object] = {
            "model": manifest.name,
            "version": manifest.version,
            "role": self.role,
            "scores": dict(zip(manifest.task_names, by_task, strict=True)),
            "rank_score": ranked.rank_score,
            "ranking": ranking,
            "policy": self.ranker.description,
        }
        if ranked.explanation is not None:
            document["explanation"] = ranked.explanation.document(keys)
        # orjson writes a float32 as the shortest text that reads back as the same float32.
        return _HEADERS, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
