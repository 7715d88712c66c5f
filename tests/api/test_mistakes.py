"""The mistakes that callers make most, and the exact answers to them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.api.problems import nearest_path
from app.errors import ModelNotFound

SCORE = "/v1/models/tiny/score"
JSON = {"content-type": "application/json"}
Change = Callable[[dict[str, Any]], object]


def remove(side: str, name: str) -> Change:
    def change(request: dict[str, Any]) -> None:
        del request[side][name]

    return change


def rename(side: str, old: str, new: str) -> Change:
    def change(request: dict[str, Any]) -> None:
        request[side][new] = request[side].pop(old)

    return change


def put(value: Any, *place: Any) -> Change:
    def change(request: dict[str, Any]) -> None:
        inside: Any = request
        for step in place[:-1]:
            inside = inside[step]
        inside[place[-1]] = value

    return change


# A change of the example request, and the problems that the answer lists.
FIELD_MISTAKES: dict[str, tuple[Change, list[tuple[str, str]]]] = {
    "misspelt user feature": (
        rename("user", "age_bucket", "age_bukcet"),
        [
            (
                "/user/age_bukcet",
                'unknown user feature "age_bukcet"; did you mean "age_bucket"? '
                "(known: activity, age_bucket, recent_items, user_id)",
            ),
            ("/user/age_bucket", "required feature is missing"),
        ],
    ),
    "unknown candidate feature": (
        put([1, 2, 3], "candidates", "price"),
        [
            (
                "/candidates/price",
                'unknown candidate feature "price" (known: category, item_id, quality)',
            )
        ],
    ),
    "missing user feature": (
        remove("user", "user_id"),
        [("/user/user_id", "required feature is missing")],
    ),
    "missing candidate feature": (
        remove("candidates", "item_id"),
        [("/candidates/item_id", "required feature is missing")],
    ),
    "no user": (
        lambda request: request.pop("user"),
        [
            (
                "/user",
                "is required: an object of user features; "
                "the model needs: activity, age_bucket, recent_items, user_id",
            )
        ],
    ),
    "empty user": (
        put({}, "user"),
        [
            (
                "/user",
                "required features are missing: activity, age_bucket, recent_items, user_id",
            )
        ],
    ),
    "several missing candidate features": (
        lambda request: [request["candidates"].pop(name) for name in ("quality", "item_id")],
        [("/candidates", "required features are missing: item_id, quality")],
    ),
    "no list or object of candidates": (
        put(7, "candidates"),
        [
            (
                "/candidates",
                "must be an object of feature columns, or a list of candidate objects",
            )
        ],
    ),
    "string for an integer": (
        put("11", "candidates", "item_id", 1),
        [("/candidates/item_id/1", "must be an integer")],
    ),
    "string for a number": (
        put("0.5", "user", "activity", 2),
        [("/user/activity/2", "must be a number")],
    ),
    "single value for a column": (
        put(7, "candidates", "item_id"),
        [("/candidates/item_id", "must be a list with one value per candidate")],
    ),
    "misspelt member of the body": (
        lambda request: put(request["candidate_keys"], "candidate_key")(request),
        [
            (
                "/candidate_key",
                'unknown key "candidate_key"; did you mean "candidate_keys"? '
                "(known: candidate_keys, candidates, ranking, user)",
            )
        ],
    ),
    "misspelt ranking option": (
        put({"topk": 2}, "ranking"),
        [
            (
                "/ranking/topk",
                'unknown key "topk"; did you mean "top_k"? '
                "(known: explain, policy, top_k, weights)",
            )
        ],
    ),
    "duplicate candidate key": (
        put(["a", "b", "a"], "candidate_keys"),
        [("/candidate_keys/2", "duplicate key at position 2, first at position 0")],
    ),
}


@pytest.mark.parametrize("mistake", FIELD_MISTAKES)
async def test_mistake_in_the_body_is_reported_by_place(client, example, mistake):
    change, problems = FIELD_MISTAKES[mistake]
    change(example)
    response = await client.post(SCORE, json=example)
    assert response.status_code == 422
    answer = response.json()
    assert [(error["pointer"], error["detail"]) for error in answer["errors"]] == problems
    pointer, detail = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    assert answer["detail"] == f"{pointer}: {detail}{more}"


@dataclass
class Sent:
    """A request that is wrong as a whole."""

    method: str
    path: str
    status: int
    detail: str
    headers: dict[str, str] = field(default_factory=lambda: JSON)
    content: bytes = b"{}"


MISTAKES = {
    "GET on a scoring path": Sent("GET", SCORE, 405, "method not allowed; use POST"),
    "POST to a page": Sent("POST", "/v1/models", 405, "method not allowed; use GET, HEAD"),
    "trailing slash": Sent("POST", f"{SCORE}/", 404, f'path not found; did you mean "{SCORE}"?'),
    "trailing slash of the default model": Sent(
        "POST", "/v1/score/", 404, 'path not found; did you mean "/v1/score"?'
    ),
    "misspelt path": Sent(
        "POST", "/v1/model/tiny/score", 404, f'path not found; did you mean "{SCORE}"?'
    ),
    "path without version of the API": Sent(
        "POST", "/score", 404, 'path not found; did you mean "/v1/score"?'
    ),
    "unknown path": Sent("GET", "/predictions", 404, "path not found; /docs lists all paths"),
    "word for a version": Sent(
        "POST",
        "/v1/models/tiny/versions/latest/score",
        404,
        "path not found: the version in it must be an integer",
    ),
    "form content type": Sent(
        "POST",
        SCORE,
        415,
        "content-type must be application/json",
        {"content-type": "application/x-www-form-urlencoded"},
        b"user=1",
    ),
    "body that is not JSON": Sent(
        "POST",
        SCORE,
        400,
        "invalid JSON: unexpected character, expected a string key at line 1 column 2",
        JSON,
        b"{user",
    ),
    "V2: trailing slash": Sent(
        "POST",
        "/v2/models/tiny/infer/",
        404,
        'path not found; did you mean "/v2/models/tiny/infer"?',
    ),
    "V2: misspelt path": Sent(
        "GET", "/v2/health/alive", 404, 'path not found; did you mean "/v2/health/live"?'
    ),
    "V2: GET": Sent("GET", "/v2/models/tiny/infer", 405, "method not allowed; use POST"),
    "V2: form content type": Sent(
        "POST",
        "/v2/models/tiny/infer",
        415,
        "content-type must be application/json or application/octet-stream",
        {"content-type": "application/x-www-form-urlencoded"},
    ),
    "V2: missing inputs": Sent(
        "POST", "/v2/models/tiny/infer", 422, "/inputs: must be a list of tensors"
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_wrong_request_gets_an_answer_that_helps(client, mistake):
    sent = MISTAKES[mistake]
    response = await client.request(
        sent.method, sent.path, content=sent.content, headers=sent.headers
    )
    assert response.status_code == sent.status
    if sent.path.startswith("/v2"):
        assert response.json() == {"error": sent.detail}
        return
    answer = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert answer["detail"] == sent.detail
    assert (await client.get(answer["type"])).status_code == 200
    if sent.status == 405:
        assert response.headers["allow"] == sent.detail.rpartition("use ")[2]


async def test_wrong_model_is_answered_with_the_message_of_the_registry(service, client, example):
    with pytest.raises(ModelNotFound) as caught:
        service.service.registry.active("tinny")
    native = await client.post("/v1/models/tinny/score", json=example)
    v2 = await client.post("/v2/models/tinny/infer", json={})
    assert native.status_code == v2.status_code == 404
    assert native.json()["type"] == "/problems/model-not-found"
    assert native.json()["detail"] == v2.json()["error"] == str(caught.value)


@pytest.mark.parametrize("form", ["columns", "objects", "tensors"])
async def test_too_many_candidates_are_refused_with_the_limit(client, form):
    if form == "tensors":
        tensor = {"name": "item_id", "shape": [1001], "datatype": "INT64", "data": [1] * 1001}
        response = await client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
    else:
        many = {"item_id": [1] * 1001} if form == "columns" else [{"item_id": 1}] * 1001
        response = await client.post(SCORE, json={"user": {}, "candidates": many})
    assert response.status_code == 413
    answer = response.json()
    message = answer["error"] if form == "tensors" else answer["detail"]
    assert message == "too many candidates: 1001, limit 1000"


TEMPLATES = ("/v1/score", "/v1/models/{model}/score", "/v2/models/{model}/infer", "/livez", "/")


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/v1/models/a-model/score/", "/v1/models/a-model/score"),
        ("//v1//score", "/v1/score"),
        ("/v1/models/a-model/infer", "/v2/models/a-model/infer"),
        ("/live", "/livez"),
        ("/v1/models/x/y/z", None),
        ("/nothing/at/all", None),
        ("/v1/score" + "/" * 200, None),  # too long to compare
        ("/v1/score\n", None),
    ],
)
def test_nearest_path_takes_the_callers_own_model(path, nearest):
    assert nearest_path(path, TEMPLATES) == nearest


@pytest.mark.parametrize(
    ("path", "member"),
    [
        ("/v1/score", "detail"),
        ("/v1/models/tiny/rank", "detail"),
        ("/v2/models/tiny/infer", "error"),
    ],
)
async def test_a_body_that_is_a_list_is_called_the_body(client, path, member):
    response = await client.post(path, json=[])
    assert response.status_code == 422
    assert response.json()[member] == "the body must be an object"


async def test_a_wrong_query_parameter_has_no_place_in_the_body(client):
    response = await client.get("/v1/models/tiny/example?candidates=0")
    assert response.json()["detail"].startswith("query parameter candidates must be ")
