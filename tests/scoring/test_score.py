"""Score calls to a real model: correct responses, and a clear error for each wrong request."""

import asyncio
import gzip
import json
import zlib

import numpy as np
import pytest

from app.protocol.json_body import LARGE_BYTES
from tests.support.direct import direct_scores

SCORE = "/v1/models/tiny/score"


async def test_example_request_of_a_model_is_answered(client, example):
    response = await client.post(SCORE, json=example)
    assert response.status_code == 200
    answer = response.json()
    assert answer["model"] == "tiny"
    assert answer["version"] == 1
    assert list(answer["scores"]) == ["click", "like", "dwell"]
    assert sorted(answer["ranking"]) == sorted(example["candidate_keys"])


async def test_scores_are_those_of_the_torchscript_file(client, example, tiny):
    answer = (await client.post(SCORE, json=example)).json()
    for task, scores in direct_scores(tiny, example).items():
        assert answer["scores"][task] == pytest.approx(scores, rel=1e-5)


async def test_ranking_follows_the_rank_score_and_the_policy(client, example):
    answer = (await client.post(SCORE, json=example)).json()
    policy = answer["policy"]
    assert policy["formula"] == "power_product"
    product = np.prod(
        [np.array(answer["scores"][t]) ** weight for t, weight in policy["weights"].items()], axis=0
    )
    assert answer["rank_score"] == pytest.approx(product, rel=1e-5)
    best_first = np.argsort(-np.array(answer["rank_score"]), kind="stable")
    assert answer["ranking"] == [example["candidate_keys"][i] for i in best_first]


async def test_numbers_read_back_as_the_same_float32_and_bytes_are_stable(client, example):
    first = await client.post(SCORE, json=example)
    second = await client.post(SCORE, json=example)
    assert first.content == second.content
    for number in first.json()["scores"]["click"]:
        assert len(str(number)) <= 13
        assert str(np.float32(number)) == str(number)


async def test_candidates_as_objects_score_like_columns(client, example):
    columns = example["candidates"]
    rows = len(example["candidate_keys"])
    objects = [{name: values[row] for name, values in columns.items()} for row in range(rows)]
    as_columns = await client.post(SCORE, json=example)
    as_objects = await client.post(SCORE, json=example | {"candidates": objects})
    assert as_objects.content == as_columns.content


async def test_ranking_without_candidate_keys_lists_positions(client, example):
    del example["candidate_keys"]
    answer = (await client.post(SCORE, json=example)).json()
    assert sorted(answer["ranking"]) == [0, 1, 2]


async def test_top_k_shortens_the_ranking_and_not_the_scores(client, example):
    answer = (await client.post(SCORE, json=example | {"ranking": {"top_k": 1}})).json()
    assert len(answer["ranking"]) == 1
    assert len(answer["scores"]["click"]) == len(answer["rank_score"]) == 3


async def test_weights_of_the_request_are_applied_and_echoed(client, example):
    weights = {"click": 0, "like": 0, "dwell": -1}
    answer = (await client.post(SCORE, json=example | {"ranking": {"weights": weights}})).json()
    assert answer["policy"]["weights"] == weights
    by_dwell = np.argsort(answer["scores"]["dwell"], kind="stable")
    assert answer["ranking"] == [example["candidate_keys"][i] for i in by_dwell]


async def test_request_without_candidates_has_an_empty_response(client, example):
    forms: list[object] = [{name: [] for name in example["candidates"]}, []]
    for candidates in forms:
        response = await client.post(
            SCORE, json={"user": example["user"], "candidates": candidates}
        )
        assert response.status_code == 200
        answer = response.json()
        assert answer["ranking"] == answer["rank_score"] == answer["scores"]["dwell"] == []


async def test_id_outside_the_vocabulary_is_unknown_and_counted(client, example):
    example["candidates"]["item_id"] = [10**12, 0, -5]
    example["candidates"]["category"] = [1, 1, 1]
    example["candidates"]["quality"] = [[0, 0]] * 3
    answer = (await client.post(SCORE, json=example)).json()
    assert len(set(answer["scores"]["click"])) == 1
    metrics = (await client.get("/metrics")).text
    counted = 'gatehouse_unknown_id_total{feature="item_id",model="tiny"} 2.0'
    assert counted in metrics


async def test_version_may_be_named_and_the_default_model_needs_no_name(client, example):
    named = await client.post(SCORE, json=example)
    pinned = await client.post("/v1/models/tiny/versions/1/score", json=example)
    unnamed = await client.post("/v1/score", json=example)
    assert named.content == pinned.content == unnamed.content


async def test_response_has_its_request_id_and_server_timing(client, example):
    response = await client.post(SCORE, json=example, headers={"x-request-id": "abc-123"})
    assert response.headers["x-request-id"] == "abc-123"
    stages = [stage.split(";")[0] for stage in response.headers["server-timing"].split(", ")]
    assert stages == ["decode", "encode", "queue", "collate", "compute", "rank", "respond"]


async def test_malformed_request_id_is_replaced(client, example):
    response = await client.post(SCORE, json=example, headers={"x-request-id": 'a"b c'})
    assert response.headers["x-request-id"] not in ("", 'a"b c')


async def test_concurrent_requests_get_their_own_scores(client, example, tiny):
    rng = np.random.default_rng(7)

    requests = [
        {
            "user": example["user"] | {"user_id": int(rng.integers(1, 60))},
            "candidates": {
                "item_id": rng.integers(1, 50, size).tolist(),
                "category": rng.integers(1, 5, size).tolist(),
                "quality": rng.normal(size=(size, 2)).round(4).tolist(),
            },
        }
        for size in rng.integers(1, 300, 60)
    ]
    answers = await asyncio.gather(*(client.post(SCORE, json=request) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        assert answer.status_code == 200, answer.text
        expected = direct_scores(tiny, request)["dwell"]
        assert answer.json()["scores"]["dwell"] == pytest.approx(expected, rel=1e-4)


# What is wrong, and the pointer of the error.
WRONG = {
    "a feature that does not exist": ({"candidates": {"colour": [1, 2, 3]}}, "/candidates/colour"),
    "a user feature that does not exist": ({"user": {"iq": 1}}, "/user/iq"),
    "a column of another length": ({"candidates": {"category": [1, 2]}}, "/candidates/category"),
    "a row of another length": (
        {"candidates": {"quality": [[1, 2], [1, 2, 3], [1, 2]]}},
        "/candidates/quality/1",
    ),
    "a string for a number": (
        {"candidates": {"quality": [[1, 2], [1, "2"], [1, 2]]}},
        "/candidates/quality/1/1",
    ),
    "null for a number": (
        {"candidates": {"quality": [[1, 2], [1, 2], [None, 2]]}},
        "/candidates/quality/2/0",
    ),
    "a number beyond float32": (
        {"candidates": {"quality": [[1, 2], [1, 1e39], [1, 2]]}},
        "/candidates/quality/1/1",
    ),
    "an id that is no integer": (
        {"candidates": {"item_id": [1, 2.5, 3]}},
        "/candidates/item_id/1",
    ),
    "an id that is a string": ({"user": {"user_id": "7"}}, "/user/user_id"),
    "an id that is true": ({"user": {"user_id": True}}, "/user/user_id"),
    "an id beyond int64": ({"user": {"user_id": 2**63}}, "/user/user_id"),
    "a list that is too long": ({"user": {"recent_items": [1] * 5}}, "/user/recent_items"),
    "a list that is none": ({"user": {"recent_items": 1}}, "/user/recent_items"),
    "a column that is no list": ({"candidates": {"item_id": 5}}, "/candidates/item_id"),
    "candidates that are neither": ({"candidates": "all"}, "/candidates"),
    "a user that is none": ({"user": [1]}, "/user"),
    "keys of another length": ({"candidate_keys": ["a"]}, "/candidate_keys"),
    "a key that is no key": ({"candidate_keys": ["a", "b", 1.5]}, "/candidate_keys/2"),
    "an option that does not exist": ({"ranking": {"topk": 1}}, "/ranking/topk"),
    "a policy that does not exist": ({"ranking": {"policy": "best"}}, "/ranking/policy"),
    "a weight for no task": ({"ranking": {"weights": {"buy": 1}}}, "/ranking/weights/buy"),
    "a weight that is no number": (
        {"ranking": {"weights": {"click": "1"}}},
        "/ranking/weights/click",
    ),
    "a top_k of nothing": ({"ranking": {"top_k": 0}}, "/ranking/top_k"),
    "a part that does not exist": ({"candidate": {}}, "/candidate"),
}


def changed(example, changes):
    for part, change in changes.items():
        if isinstance(change, dict) and isinstance(example.get(part), dict):
            example[part] = example[part] | change
        else:
            example[part] = change
    return example


@pytest.mark.parametrize(("changes", "pointer"), WRONG.values(), ids=WRONG)
async def test_error_names_the_place_in_the_request(client, example, changes, pointer):
    response = await client.post(SCORE, json=changed(example, changes))
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "/problems/invalid-request"
    assert problem["instance"] == response.headers["x-request-id"]
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


@pytest.mark.parametrize("feature", ["user_id", "activity", "recent_items"])
async def test_missing_feature_is_named(client, example, feature):
    del example["user"][feature]
    problem = (await client.post(SCORE, json=example)).json()
    assert [error["pointer"] for error in problem["errors"]] == [f"/user/{feature}"]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "-1e39"])
async def test_number_that_is_not_finite_is_named_by_its_place(client, example, literal):
    example["candidates"]["quality"][2][1] = 987654
    body = json.dumps(example).replace("987654", literal)
    response = await client.post(SCORE, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/candidates/quality/2/1"


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("-1e39", "must be finite and within the range of float32"),
        ("NaN", "must be finite and within the range of float32"),
        ("1e400", "must be finite and within the range of float32"),
        ("null", "must be a number"),
        ("[0.5]", "must be a number"),
        ("0.5,0.5", "must have 2 numbers, has 3"),
    ],
)
async def test_wrong_number_in_a_large_request_is_named_by_its_place(client, example, text, detail):
    rows = 1000
    del example["candidate_keys"]
    quality = [[i / 7, -i / 11] for i in range(rows)]
    example["candidates"] = {"item_id": [1] * rows, "category": [1] * rows, "quality": quality}
    good = json.dumps(example)
    assert len(good) > LARGE_BYTES
    headers = {"content-type": "application/json"}
    response = await client.post(SCORE, content=good, headers=headers)
    assert response.status_code == 200
    assert len(response.json()["rank_score"]) == rows
    quality[900][1] = 987654
    wrong = json.dumps(example).replace("987654", text)
    response = await client.post(SCORE, content=wrong, headers=headers)
    assert response.status_code == 422
    place = "" if "," in text else "/1"
    assert response.json()["errors"] == [
        {"pointer": f"/candidates/quality/900{place}", "detail": detail}
    ]


async def test_every_problem_is_reported_at_once(client, example):
    example["user"]["user_id"] = "x"
    example["candidates"]["item_id"][1] = None
    example["ranking"] = {"top_k": -1}
    problem = (await client.post(SCORE, json=example)).json()
    pointers = {error["pointer"] for error in problem["errors"]}
    assert pointers == {"/user/user_id", "/candidates/item_id/1", "/ranking/top_k"}


async def test_no_value_is_echoed(client, example):
    example["user"]["user_id"] = "secret-value"
    example["candidates"]["quality"][0] = ["secret-value", 1]
    response = await client.post(SCORE, json=example)
    assert response.status_code == 422
    assert "secret" not in response.text


NO_JSON = [b"", b"{", b"[1", b'{"user": }', b"\xff\xfe", b"[" * 5000]


@pytest.mark.parametrize("body", NO_JSON)
async def test_body_that_is_not_json_is_malformed(client, body):
    response = await client.post(SCORE, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["type"] == "/problems/malformed-body"


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"user"'])
async def test_json_that_is_not_an_object_is_refused(client, body):
    response = await client.post(SCORE, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["errors"] == [{"pointer": "", "detail": "the body must be an object"}]


async def test_other_content_types_are_refused(client):
    response = await client.post(SCORE, data={"user": "1"})
    assert response.status_code == 415
    assert response.json()["type"] == "/problems/unsupported-media-type"


async def test_compressed_request_has_the_same_response(client, example):
    plain = await client.post(SCORE, json=example)
    for coding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        headers = {"content-type": "application/json", "content-encoding": coding}
        body = compress(json.dumps(example).encode())
        response = await client.post(SCORE, content=body, headers=headers)
        assert response.content == plain.content
    headers["content-encoding"] = "gzip"  # which it is not
    response = await client.post(SCORE, content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["detail"] == "the body is not gzip"


async def test_decompression_bomb_is_stopped_at_the_limit(client):
    bomb = gzip.compress(b" " * (1 << 24))
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = await client.post(SCORE, content=bomb, headers=headers)
    assert response.status_code == 413
    assert response.json()["detail"] == "the decompressed body is larger than 100000 bytes"


async def test_refused_content_coding_names_the_known_ones(client):
    headers = {"content-type": "application/json", "content-encoding": "br"}
    response = await client.post(SCORE, content=b"x", headers=headers)
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "gzip, deflate"
    response = await client.post(SCORE, content=b"x", headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert "accept-encoding" not in response.headers


async def test_large_response_is_compressed_if_the_client_accepts_it(client, example):
    example["candidates"] = {
        "item_id": [1] * 1000,
        "category": [1] * 1000,
        "quality": [[i / 7, -i] for i in range(1000)],
    }
    del example["candidate_keys"]
    answers = {}
    for accepted in ("identity", "gzip"):
        headers = {"accept-encoding": accepted}
        response = await client.post(SCORE, json=example, headers=headers)
        assert response.status_code == 200
        assert response.headers["vary"] == "accept-encoding"
        answers[accepted] = response
    assert answers["gzip"].headers["content-encoding"] == "gzip"
    assert "content-encoding" not in answers["identity"].headers
    length = int(answers["gzip"].headers["content-length"])
    assert length < int(answers["identity"].headers["content-length"]) / 1.5
    gzipped, plain = (answers[coding].json()["rank_score"] for coding in ("gzip", "identity"))
    assert gzipped == pytest.approx(plain, rel=1e-5)


async def test_body_over_the_limit_is_refused(client):
    response = await client.post(
        SCORE, content=b" " * 100_001, headers={"content-type": "application/json"}
    )
    assert response.status_code == 413
    assert response.json()["detail"] == "the body is larger than 100000 bytes"


async def test_chunked_body_over_the_limit_is_refused(client):
    async def chunks():
        for _ in range(11):
            yield b" " * 10_000

    response = await client.post(
        SCORE, content=chunks(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413


async def test_too_many_candidates_are_refused(client, example):
    example["candidates"] = {"item_id": [1] * 1001}
    response = await client.post(SCORE, json=example)
    assert response.status_code == 413
    assert response.json()["detail"] == "too many candidates: 1001, limit 1000"


@pytest.mark.parametrize(
    ("path", "slug"),
    [
        ("/v1/models/nobody/score", "model-not-found"),
        ("/v1/models/tiny/versions/9/score", "version-not-found"),
    ],
)
async def test_unknown_model_or_version_is_not_found(client, example, path, slug):
    response = await client.post(path, json=example)
    assert response.status_code == 404
    assert response.json()["type"] == f"/problems/{slug}"


async def test_other_methods_are_not_allowed(client):
    response = await client.get(SCORE)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("header", ["0", "-1", "1.5", "soon", "600001", "9" * 30])
async def test_invalid_timeout_is_refused(client, example, header):
    response = await client.post(SCORE, json=example, headers={"x-request-timeout-ms": header})
    assert response.status_code == 422
    assert "x-request-timeout-ms" in response.text


async def test_wrong_request_fails_no_other_request(client, example):
    good = await client.post(SCORE, json=example)
    bad = changed(json.loads(good.request.content), {"user": {"user_id": "x"}})
    answers = await asyncio.gather(
        *(client.post(SCORE, json=bad if i % 2 else example) for i in range(20))
    )
    assert [answer.status_code for answer in answers] == [200, 422] * 10
    for answer in answers[::2]:  # the other requests of a batch may change the last bit
        assert answer.json()["rank_score"] == pytest.approx(good.json()["rank_score"], rel=1e-5)


async def test_every_request_is_counted_by_route_model_and_status(client, example):
    await client.post(SCORE, json=example)
    metrics = (await client.get("/metrics")).text
    labels = 'model="tiny",route="/v1/models/{model}/score"'
    assert f'gatehouse_requests_total{{{labels},status="200"}}' in metrics
    assert 'gatehouse_stage_duration_seconds_count{stage="compute"}' in metrics
    assert "gatehouse_batch_rows_count" in metrics
    assert "gatehouse_queue_rows 0.0" in metrics
