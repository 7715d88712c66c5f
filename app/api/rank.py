"""`POST /v1/models/{model}/rank`: rank given scores with a policy that the request writes.

For trying a policy before it is in the policies file. The formulas, the calibrations and the order
are those of a score call, but any formula and any weight is allowed, and nothing is scored.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from app.api.openapi.responses import SCHEMA, problems
from app.errors import (
    ClientDisconnected,
    InvalidRequest,
    MalformedBody,
    ModelNotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    Unauthorized,
    UnsupportedMediaType,
)
from app.file_problems import rule_of
from app.protocol.json_body import decode
from app.protocol.validation import MOST_PROBLEMS, ValidationReport, check_keys, join
from app.ranking.batch import rank_alone
from app.ranking.formulas import Scores
from app.ranking.policies import ModelPolicies
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker, RankingOptions
from app.scoring.body import BodyReader
from app.scoring.keys import Keys
from app.scoring.request_headers import check_body_headers, read_headers
from app.scoring.service import Service

MOST_CANDIDATES = 1000
_MAX_BODY_BYTES = 1 << 20
_MOST_VALUES = 65_536
_MEDIA_TYPES = frozenset((b"application/json",))
_LARGEST = float(np.finfo(np.float32).max)
_MEMBERS = frozenset(("scores", "policy", "multiplier", "candidate_keys", "explain"))
_ERRORS = (
    *(Unauthorized, ModelNotFound, NotReady, InvalidRequest, MalformedBody, RequestTimeout),
    *(PayloadTooLarge, UnsupportedMediaType, Overloaded),
)


def routes(service: Service, bodies: BodyReader, keys: Keys) -> APIRouter:
    """Return the route; it needs an API key where score calls do."""
    router = APIRouter(prefix="/v1/models", tags=["models"])
    schema = {"$ref": SCHEMA.format(model="RankRequest")}
    answer = {"$ref": SCHEMA.format(model="RankResponse")}

    @router.post(
        "/{model}/rank",
        summary="Rank scores with a policy that the request writes, to try it",
        response_class=Response,
        responses={
            200: {"description": "Ranked", "content": {"application/json": {"schema": answer}}},
            **problems(*_ERRORS),
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        },
    )
    async def rank(model: str, request: Request) -> Response:
        headers = read_headers(request.scope["headers"])
        keys.name_of(headers.get(b"authorization"))
        policies = service.policies.of(service.registry.active(model))
        length, coding = check_body_headers(headers, _MEDIA_TYPES, _MAX_BODY_BYTES)
        try:
            body = await bodies.read(
                request.receive, length=length, coding=coding, deadline=math.inf
            )
        except ClientDisconnected:
            return Response()
        if len(body) > _MAX_BODY_BYTES:
            raise PayloadTooLarge(f"the body is larger than {_MAX_BODY_BYTES} bytes")
        document = ranked_document(decode(body, most_values=_MOST_VALUES), policies)
        content = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    return router


def ranked_document(document: object, policies: ModelPolicies) -> dict[str, object]:
    """Return the response to a request, parsed from JSON.

    Args:
        document: see `RankRequest` in `app.api.openapi.score_schemas`.
        policies: of the model; its tasks and their calibrations are used.

    Raises:
        InvalidRequest: lists every problem.
    """
    report = ValidationReport()
    if not isinstance(document, dict):
        report.add("", "the body must be an object")
        raise InvalidRequest(report.problems)
    report.unknown_members("", document, _MEMBERS)
    tasks = policies.default.tasks
    scores = _scores(document.get("scores"), tasks, report)  # [n, K]
    ranker = _ranker(document.get("policy"), policies.default, report)
    explain = document.get("explain")
    if explain is not None and not isinstance(explain, bool):
        report.add("/explain", "must be true or false")
    keys = check_keys(document.get("candidate_keys"), len(scores), report)
    multiplier = document.get("multiplier")
    needs = ranker is not None and ranker.policy.multiplier is not None
    column = None
    if needs:
        column = _numbers(multiplier, "/multiplier", report)
        if column is not None and len(column) != len(scores):
            report.add("/multiplier", f"has {len(column)} numbers for {len(scores)} candidates")
    elif multiplier is not None:
        report.add("/multiplier", "the policy has no multiplier")
    report.raise_any()
    assert ranker is not None
    ranked = rank_alone(scores, RankingOptions(ranker, explain=explain is True), column)
    ranking = ranked.ranking.tolist()
    answer: dict[str, object] = {
        "rank_score": ranked.rank_score,
        "ranking": ranking if keys is None else [keys[position] for position in ranking],
        "policy": ranker.description,
    }
    if ranked.explanation is not None:
        answer["explanation"] = ranked.explanation.document(keys)
    return answer


def _scores(scores: object, tasks: Sequence[str], report: ValidationReport) -> Scores:
    """Return the scores `[n, K]`; without rows if there is a problem."""
    empty = np.empty((0, len(tasks)), np.float32)
    if not isinstance(scores, Mapping):
        report.add("/scores", "must be an object: task to scores, one for each candidate")
        return empty
    report.unknown_members("/scores", scores, frozenset(tasks), "unknown task")
    columns: list[Scores] = []
    for task in tasks:
        column = _numbers(scores.get(task), join("/scores", task), report)
        if column is not None:
            columns.append(column)
    if len(columns) < len(tasks):
        return empty
    if len({len(column) for column in columns}) > 1:
        counts = ", ".join(f"{t} {len(c)}" for t, c in zip(tasks, columns, strict=True))
        report.add("/scores", f"all tasks need the same number of scores ({counts})")
        return empty
    return np.stack(columns, axis=1)


def _numbers(values: object, pointer: str, report: ValidationReport) -> Scores | None:
    """Return a list of numbers `[n]`, or None and a problem."""
    if not isinstance(values, list):
        report.add(pointer, "must be a list of numbers")
        return None
    if not 1 <= len(values) <= MOST_CANDIDATES:
        report.add(pointer, f"must have 1 to {MOST_CANDIDATES} numbers")
        return None
    if not all(type(value) in (int, float) and abs(value) < _LARGEST for value in values):
        report.add(pointer, "must be a list of finite numbers that fit float32")
        return None
    return np.array(values, np.float32)


def _ranker(fields: object, own: Ranker, report: ValidationReport) -> Ranker | None:
    """Return the policy of a request, compiled with the calibrations of the model's own one."""
    if not isinstance(fields, dict):
        report.add("/policy", "must be an object, as in policies.toml")
        return None
    known = frozenset(Policy.model_fields) - {"bounds"}
    report.unknown_members("/policy", fields, known)
    try:
        policy = Policy.model_validate({n: v for n, v in fields.items() if n in known})
        calibrations = dict(zip(own.tasks, own.calibrations, strict=True))
        return Ranker.of(policy, own.tasks, calibrations)
    except ValidationError as error:
        for problem in error.errors(include_url=False)[:MOST_PROBLEMS]:
            pointer = "/policy"
            for part in problem["loc"]:
                pointer = join(pointer, str(part))
            report.add(pointer, rule_of(problem, is_json=True))
    except ValueError as error:
        report.add("/policy", str(error))
    return None
