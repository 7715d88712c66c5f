"""The native dialect of scoring calls: one user and n candidates in JSON.

`app.protocol.score_request` knows how a request is read, `app.api.openapi.schemas` describes both documents.
"""

import re

import numpy as np
import orjson

from app.artifacts.manifest import Manifest
from app.engine.request import RequestOptions
from app.protocol.json_body import decode_request
from app.protocol.score_request import ScoreRequest, read_request
from app.scoring.score import Call, Headers
from app.scoring.service import Answer

ROUTES = {
    "/v1/score": "Score with the default model",
    "/v1/models/{model}/score": "Score with a model",
    "/v1/models/{model}/versions/{version}/score": "Score with one version of a model",
}

_HEADERS = ((b"content-type", b"application/json"),)


class Native:
    """Scoring calls as a recommender backend makes them."""

    path = re.compile(
        r"/v1/(?:models/(?P<model>[^/]+)/(?:versions/(?P<version>[0-9]{1,16})/)?)?score"
    )
    media_types = frozenset((b"application/json",))

    def route(self, name: str | None, version: str | None) -> str:
        """Return the template of a path."""
        if name is None:
            return "/v1/score"
        return f"/v1/models/{{model}}{'/versions/{version}' if version else ''}/score"

    def decode(self, body: bytes, call: Call) -> object:
        """Parse JSON."""
        return decode_request(body, call.model.manifest, max_candidates=call.limits.max_candidates)

    def read(self, document: object, call: Call) -> tuple[ScoreRequest, RequestOptions]:
        """Check a document and encode its features; its headers alone state its terms."""
        model = call.model
        request = read_request(
            document,
            model.manifest,
            call.rankers,
            max_candidates=call.limits.max_candidates,
            vocabularies=model.vocabularies,
        )
        return request, call.terms

    def write(self, request: ScoreRequest, answer: Answer, call: Call) -> tuple[Headers, bytes]:
        """Return scores, rank scores and the ranking."""
        return _HEADERS, _content(call.model.manifest, request, answer)


def _content(manifest: Manifest, request: ScoreRequest, answer: Answer) -> bytes:
    by_task = np.ascontiguousarray(answer.scores.T)  # [K, n]
    ranking = answer.ranking.tolist()
    if request.keys is not None:
        ranking = [request.keys[position] for position in ranking]
    document: dict[str, object] = {
        "model": manifest.name,
        "version": manifest.version,
        "scores": dict(zip(manifest.task_names, by_task, strict=True)),
        "rank_score": answer.rank_score,
        "ranking": ranking,
        "policy": request.wanted.ranker.echo,
    }
    if answer.explanation is not None:
        document["explanation"] = answer.explanation.document(request.keys)
    # orjson writes a float32 as the shortest text that reads back as the same float32.
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
