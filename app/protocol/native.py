"""The native dialect of score calls: one user and n candidates in JSON.

`app.api.openapi.score_schemas` describes both documents.
"""

import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import NO_TABLES, ModelTables
from app.engine.request import RequestFeatures, TableUse
from app.errors import FieldError, InvalidRequest
from app.protocol.dialect import Content, ParseContext, ParsedRequest
from app.protocol.features import encode
from app.protocol.json_body import decode_request
from app.protocol.ranking_options import read_options
from app.protocol.sent_ids import ids_of_document
from app.protocol.table_features import (
    MOST_POSITIONS,
    are_keys,
    encode_with_tables,
    refuses,
    routing_key,
    spread,
)
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
        writer = ScoreResponseWriter(manifest, ranking.ranker, keys, context.role, features.tables)
        parsed = ParsedRequest(features, ranking, writer, decoded_at)
        if context.key_feature and isinstance(document, dict):
            name = context.key_feature
            sent = _sent_user_feature(document.get("user", {}), name, context.tables)
            parsed.routing_key = routing_key(sent, name, features)
        if context.keeps_ids and isinstance(document, dict):
            parsed.ids = ids_of_document(document, manifest, context.tables)
        return parsed


def read_request(
    document: object, context: ParseContext
) -> tuple[RequestFeatures, RankingOptions, Keys | None]:
    """Check a parsed document; return its features, ranking options and candidate keys.

    Raises:
        InvalidRequest, PayloadTooLarge: see `Dialect.parse`.
    """
    if not isinstance(document, dict):
        raise InvalidRequest([FieldError("", "the body must be an object")])
    report = ValidationReport()
    report.unknown_members("", document, _MEMBERS)
    model = context.model
    user = document.get("user", MISSING if model.manifest.user_names else {})
    candidates, keys = document.get("candidates", MISSING), document.get("candidate_keys")
    if context.tables is not NO_TABLES:
        features = encode_with_tables(
            model.manifest,
            context.tables,
            user,
            candidates,
            report,
            max_candidates=context.max_candidates,
            vocabularies=model.vocabularies,
        )
    else:
        features = encode(
            model.manifest,
            user,
            candidates,
            report,
            max_candidates=context.max_candidates,
            vocabularies=model.vocabularies,
        )
    rows, place = features.rows, "/candidate_keys"
    refused: Collection[int] = ()
    if features.tables is not None:
        rows = features.tables.sent
        if keys is None and are_keys(candidates):
            keys, place = candidates, "/candidates"
            if "items" in features.tables.unknown and refuses(context.tables.items):
                refused = features.tables.unknown["items"].tolist()
    keys = check_keys(keys, rows, report, place, refused)
    ranking = read_options(document.get("ranking"), context.policies, report)
    report.raise_any()
    return features, ranking, keys


def _sent_user_feature(user: object, name: str, tables: ModelTables) -> object:
    """Return a user feature as it was sent, or None."""
    if isinstance(user, dict):
        return user.get(name)
    return user if tables.users is not None and tables.users.table.key == name else None


@dataclass(slots=True)
class ScoreResponseWriter:
    """Writes scores, rank scores and the ranking.

    Attributes:
        manifest: of the model.
        ranker: whose policy was applied.
        keys: the candidates' keys; None for positions.
        role: of the version.
        tables: what the request takes from tables.
    """

    manifest: Manifest
    ranker: Ranker
    keys: Keys | None
    role: str = "active"
    tables: TableUse | None = None

    def write(self, ranked: RankedRequest) -> Content:
        """Return the response's content."""
        manifest, keys, rank_score = self.manifest, self.keys, ranked.rank_score
        by_task = np.ascontiguousarray(ranked.scores.T)  # [K, n]
        ranking = ranked.ranking.tolist()
        if self.tables is not None and self.tables.kept is not None:
            by_task, rank_score = spread(self.tables, ranked)
            kept = self.tables.kept.tolist()
            keys = kept if keys is None else [keys[position] for position in kept]
        if keys is not None:
            ranking = [keys[position] for position in ranking]
        document: dict[str, object] = {
            "model": manifest.name,
            "version": manifest.version,
            "role": self.role,
            "scores": dict(zip(manifest.task_names, by_task, strict=True)),
            "rank_score": rank_score,
            "ranking": ranking,
            "policy": self.ranker.description,
        }
        if self.tables is not None:
            document["tables"] = self.tables.versions
            if self.tables.unknown:
                document["unknown_keys"] = {
                    kind: {"count": len(unknown), "positions": unknown[:MOST_POSITIONS]}
                    for kind, unknown in self.tables.unknown.items()
                }
        if ranked.explanation is not None:
            document["explanation"] = ranked.explanation.document(keys)
        # orjson writes a float32 as the shortest text that reads back as the same float32.
        return _HEADERS, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
