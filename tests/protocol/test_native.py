"""The native dialect with a model whose scores are easy to compute."""

import json

import pytest

from app.artifacts.store import Artifact
from app.main import gatehouse
from app.settings import Settings
from tests.support.fakes import sums_model
from tests.support.in_process import client_of

SCORE = "/v1/models/sums/score"
NUMBERS = [0.1, 16777216, 2, 1e-7, 0]
REQUEST = {
    "user": {"u": 1},
    "candidates": {"c": NUMBERS},
    "candidate_keys": ["é", 7, '"', "d", "e"],
    "ranking": {"top_k": 4},
}
ANSWER = (
    '{"model":"sums","version":1,"role":"active",'
    '"scores":{"sum":[1.1,16777216.0,3.0,1.0000001,1.0],"own":[0.1,16777216.0,2.0,1e-7,0.0]},'
    '"rank_score":[1.1,16777216.0,3.0,1.0000001,1.0],"ranking":[7,"\\"","é","d"],'
    '"policy":{"name":"default","formula":"weighted_sum","weights":{"sum":1.0}}}'
)


@pytest.fixture(scope="module")
async def client(tmp_path_factory):
    """A client of a service in which `sums` is active."""
    store = tmp_path_factory.mktemp("store")
    async with gatehouse(Settings(store=store, lanes=1, request_timeout_ms=30_000)) as parts:
        parts.service.registry.activate(Artifact("sums", 1, store), sums_model())
        async with client_of(parts) as client:
            yield client


async def test_response_is_the_same_byte_for_byte(client):
    for _ in range(3):
        response = await client.post(SCORE, json=REQUEST)
        assert response.headers["content-type"] == "application/json"
        assert response.text == ANSWER


async def test_response_does_not_depend_on_how_the_request_is_written(client):
    objects = REQUEST | {"candidates": [{"c": number} for number in NUMBERS]}
    lists = REQUEST | {"candidates": {"c": [[number] for number in NUMBERS]}}
    spaced = json.dumps(dict(reversed(REQUEST.items())), indent=3)
    for content in (json.dumps(objects), json.dumps(lists), spaced, " " * 40_000 + spaced):
        headers = {"content-type": "application/json"}
        response = await client.post(SCORE, content=content, headers=headers)
        assert response.text == ANSWER


async def test_other_methods_are_refused_with_the_allowed_one(client):
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE"):
        response = await client.request(method, SCORE)
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"
