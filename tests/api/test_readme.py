"""The API's README: its requests work, its error is the server's, its table is complete."""

import json
import re
import shutil

import pytest

from app.api.problems import ERRORS
from app.artifacts.artifact_files import read_manifest
from app.main import gatehouse
from app.settings import Settings
from tests import REPOSITORY
from tests.support.in_process import client_of
from tests.support.model_tables import publish_rows, random_rows

README = (REPOSITORY / "app/api/README.md").read_text(encoding="utf-8")
FIRST = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:json|sh)\n(.*?)^```$", README, re.S | re.M)
CURL, ANSWER, *REQUESTS, EXPLAINED, PROBLEM = (
    json.loads(block) if block.startswith("{") else block for block in BLOCKS
)
COLUMNS, OBJECTS, *BY_KEYS = REQUESTS
BY_KEYS.append(json.loads(CURL.partition("-d '")[2].strip().rstrip("'")))


def test_first_request_and_its_answer_are_those_of_the_first_page():
    assert f"```sh\n{CURL}```" in FIRST
    assert ANSWER in map(json.loads, re.findall(r"^```json\n(.*?)^```$", FIRST, re.S | re.M))


async def test_both_forms_of_candidates_get_the_same_response(client):
    columns, objects = [
        await client.post("/v1/models/tiny/score", json=request) for request in (COLUMNS, OBJECTS)
    ]
    assert columns.status_code == 200
    assert columns.content == objects.content
    assert len(columns.json()["ranking"]) == 1


@pytest.mark.parametrize("sent", BY_KEYS)
async def test_requests_by_keys_are_answered_where_the_model_has_tables(sent, tiny, tmp_path):
    shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
    manifest = read_manifest(tiny)
    for kind, key, keys in (("items", "item_id", [11, 12, 14]), ("users", "user_id", [42])):
        publish_rows(tmp_path, manifest, kind, key, random_rows(manifest, kind, keys))
    async with gatehouse(Settings(store=tmp_path, lanes=1)) as parts:
        await parts.start()
        async with client_of(parts) as client:
            response = await client.post("/v1/models/tiny/score", json=sent)
            assert response.status_code == 200, response.text
            assert response.json()["tables"] == {"items": "1", "users": "1"}


async def test_explanation_has_the_printed_members(client):
    asked = COLUMNS | {"ranking": {"weights": {"like": 1.0}, "top_k": 1, "explain": True}}
    explanation = (await client.post("/v1/models/tiny/score", json=asked)).json()["explanation"]
    printed = EXPLAINED["explanation"]
    assert explanation.keys() == printed.keys()
    assert (explanation["share"], explanation["lead"]) == (printed["share"], printed["lead"])
    (candidate,), (expected,) = explanation["candidates"], printed["candidates"]
    assert candidate.keys() == expected.keys()
    for task, share in expected["tasks"].items():
        assert candidate["tasks"][task].keys() == share.keys()


async def test_printed_error_is_the_response_to_its_mistake(client):
    user = COLUMNS["user"].copy()
    user["age_bukcet"] = user.pop("age_bucket")
    headers = {"x-request-id": PROBLEM["instance"]}
    response = await client.post("/v1/score", json=COLUMNS | {"user": user}, headers=headers)
    assert response.json() == PROBLEM


def test_table_of_errors_is_complete():
    table = {
        slug: int(status)
        for status, slugs in re.findall(r"^\| (\d{3}) \| (.*?) \|", README, re.M)
        for slug in re.findall(r"`([a-z-]+)`", slugs)
    }
    assert table == {slug: int(error.status) for slug, error in ERRORS.items()}
