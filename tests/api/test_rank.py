"""Ranking given scores with a policy of the request's own, as the playground does."""

import json
from typing import Any

import numpy as np
import pytest

RANK = "/v1/models/tiny/rank"
SECRET = "0123456789abcdef0123456789abcdef"
POLICIES = {
    "product": {"formula": "power_product", "weights": {"click": 1.0, "like": 0.7, "dwell": -0.2}},
    "sum": {"formula": "weighted_sum", "weights": {"click": 0.3, "dwell": 0.01}},
    "position": {
        "formula": "rank_position",
        "weights": {"click": 1, "like": 2},
        "beta": {"like": 3},
    },
    "expression": {
        "formula": "expression",
        "expression": "click * (1 + w.l * like) + log1p(dwell)",
        "weights": {"l": 2.0},
    },
}


@pytest.fixture
async def scored(client):
    """A request of 20 candidates, and its response."""
    example = (await client.get("/v1/models/tiny/example", params={"candidates": 20})).json()
    del example["ranking"]
    return example, (await client.post("/v1/score", json=example)).json()


async def rank(client, **body):
    response = await client.post(RANK, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_policy_of_the_model_ranks_as_the_score_call_did(client, scored):
    example, answer = scored
    policy = {name: answer["policy"][name] for name in ("formula", "weights")}
    ranked = await rank(
        client, scores=answer["scores"], policy=policy, candidate_keys=example["candidate_keys"]
    )
    assert ranked["ranking"] == answer["ranking"]
    assert ranked["rank_score"] == answer["rank_score"]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
async def test_any_formula_gives_the_order_of_its_definition(client, scored, policy):
    _, answer = scored
    ranked = await rank(client, scores=answer["scores"], policy=policy, explain=True)
    s = {task: np.array(column) for task, column in answer["scores"].items()}

    def position(column):
        return 1 + (column[None, :] > column[:, None]).sum(1)

    expected = {
        "power_product": s["click"] * s["like"] ** 0.7 * np.maximum(s["dwell"], 1e-9) ** -0.2,
        "weighted_sum": 0.3 * s["click"] + 0.01 * s["dwell"],
        "rank_position": 1 / position(s["click"]) + 2 / (position(s["like"]) + 3),
        "expression": s["click"] * (1 + 2 * s["like"]) + np.log1p(s["dwell"]),
    }[policy["formula"]]
    assert ranked["rank_score"] == pytest.approx(list(expected), rel=1e-4)
    by_rank = [expected[i] for i in ranked["ranking"]]
    assert by_rank == sorted(by_rank, reverse=True)
    assert ranked["policy"]["formula"] == policy["formula"]
    assert len(ranked["explanation"]["candidates"]) == 20


async def test_multiplier_multiplies(client):
    scores = {"click": [0.5, 0.4], "like": [0.1, 0.1], "dwell": [1, 1]}
    policy = {"formula": "power_product", "weights": {"click": 1.0}, "multiplier": "price"}
    ranked = await rank(client, scores=scores, policy=policy, multiplier=[1, 2])
    assert ranked["rank_score"] == pytest.approx([0.5, 0.8])
    assert ranked["ranking"] == [1, 0]


async def test_calibration_of_the_model_is_applied(client, service):
    policies = service.service.policies
    before = policies.active
    text = b'[policy.a]\nweights={click=1.0}\n[default]\ntiny="a"\n'
    text += b'[calibration.tiny.dwell]\nmethod="scale"\nfactor=10.0\n'
    policies.activate(type(before).parse(text), service.service.registry.active_models())
    try:
        scores = {"click": [0.5], "like": [0.5], "dwell": [3.0]}
        ranked = await rank(client, scores=scores, policy={"weights": {"dwell": 1.0}})
    finally:
        policies.activate(before, service.service.registry.active_models())
    assert ranked["rank_score"] == [30.0]


GOOD: dict[str, Any] = {
    "scores": {"click": [0.1, 0.2], "like": [0.1, 0.2], "dwell": [1, 2]},
    "policy": {"weights": {"click": 1.0}},
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"scores": None}, "/scores: must be an object: task to scores, one for each candidate"),
        ({"scores": {"click": [1]}}, "/scores/like: must be a list of numbers"),
        (
            {"scores": GOOD["scores"] | {"clik": [1, 2]}},
            '/scores/clik: unknown task "clik"; did you mean "click"?',
        ),
        ({"scores": GOOD["scores"] | {"like": [1]}}, "all tasks need the same number of scores"),
        (
            {"scores": GOOD["scores"] | {"like": [1, True]}},
            "/scores/like: must be a list of finite",
        ),
        (
            {"scores": GOOD["scores"] | {"like": [1, 1e39]}},
            "/scores/like: must be a list of finite",
        ),
        ({"scores": GOOD["scores"] | {"like": [0] * 1001}}, "/scores/like: must have 1 to 1000"),
        ({"policy": 1}, "/policy: must be an object, as in policies.toml"),
        ({"policy": {"weights": {"clik": 1.0}}}, '/policy: unknown task "clik"'),
        ({"policy": {"weights": {"click": "1"}}}, "/policy/weights/click: must be a number"),
        ({"policy": {"weights": {}}}, "/policy: weights: at least one is needed"),
        (
            {"policy": {"wieghts": {"click": 1.0}}},
            '/policy/wieghts: unknown key "wieghts"; did you mean "weights"?',
        ),
        (
            {"policy": {"formula": "expression", "expression": "__import__('os')"}},
            "/policy/expression: ",
        ),
        ({"multiplier": [1, 2]}, "/multiplier: the policy has no multiplier"),
        (
            {
                "policy": {
                    "formula": "power_product",
                    "weights": {"click": 1.0},
                    "multiplier": "price",
                },
                "multiplier": [1],
            },
            "/multiplier: has 1 numbers for 2 candidates",
        ),
        ({"candidate_keys": ["a", "a"]}, "/candidate_keys"),
        ({"explain": 1}, "/explain: must be true or false"),
        ({"more": 1}, "/more: unknown key"),
    ],
)
async def test_wrong_request_names_the_place_and_the_rule(client, change, problem):
    response = await client.post(RANK, json=GOOD | change)
    assert response.status_code == 422
    answer = response.json()
    found = [f"{error['pointer']}: {error['detail']}" for error in answer["errors"]]
    assert any(problem in line for line in found), found


async def test_body_that_is_no_object_or_too_large_is_refused(client):
    assert (await client.post(RANK, json=[])).status_code == 422
    assert (await client.post(RANK, content=b"{")).status_code == 400
    assert (await client.post(RANK, content=b"x" * (2 << 20))).status_code == 413
    assert (
        await client.post(RANK, content=b"{}", headers={"content-type": "a/b"})
    ).status_code == 415
    assert (await client.post("/v1/models/none/rank", json=GOOD)).status_code == 404


async def test_key_is_needed_where_score_calls_need_one(client, service):
    keys = service.keys
    before = keys._entries
    keys._entries = type(keys)(text=f"a:{SECRET}")._entries
    try:
        assert (await client.post(RANK, json=GOOD)).status_code == 401
        headers = {"authorization": f"Bearer {SECRET}"}
        assert (await client.post(RANK, json=GOOD, headers=headers)).status_code == 200
        document = (await client.get("/openapi.json")).json()
    finally:
        keys._entries = before
    assert document["paths"]["/v1/models/{model}/rank"]["post"]["security"] == [{"key": []}]


async def test_schema_of_the_document_has_the_fields_of_a_policy(client):
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    for name in ("RankRequest", "RankResponse", "TriedPolicy"):
        assert name in schemas
    assert set(schemas["TriedPolicy"]["properties"]) == {
        *("name", "formula", "weights", "multiplier", "alpha", "beta", "expression"),
    }
    assert json.dumps(schemas["RankRequest"]).count("TriedPolicy") == 1
