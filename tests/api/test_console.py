"""The console's page, the route of its example request, and the home page's link to it.

`tests.end_to_end.test_console` opens it in a browser.
"""

import base64
import hashlib
import re
from pathlib import Path

import httpx
import pytest

from app.artifacts.store import Artifact


async def test_console_is_one_page_with_a_strict_content_policy(client):
    response = await client.get("/console")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "https://" not in response.text
    assert 'src="' not in response.text
    assert ' style="' not in response.text  # the policy would refuse it


async def test_policy_of_the_console_allows_its_own_script_and_style_only(client):
    response = await client.get("/console")
    [policy] = response.headers.get_list("content-security-policy")
    allowed = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert allowed.pop("connect-src") == "'self'"
    assert allowed.pop("img-src") == "data:"
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert set(allowed) == {"default-src", "frame-ancestors", "base-uri", "form-action"}
    assert set(allowed.values()) == {"'none'"}
    assert "default-src 'self'" in (await client.get("/docs")).headers["content-security-policy"]


@pytest.mark.parametrize("count", [1, 2, 12, 32])
async def test_example_has_as_many_candidates_as_asked_for_and_works(client, count):
    answer = await client.get("/v1/models/tiny/example", params={"candidates": count})
    assert len(answer.json()["candidate_keys"]) == count
    scored = await client.post("/v1/models/tiny/score", json=answer.json())
    assert len(scored.json()["ranking"]) == count


async def test_example_is_by_default_that_of_the_models_page(client):
    shown = (await client.get("/v1/models/tiny")).json()["example_request"]
    assert (await client.get("/v1/models/tiny/example")).json() == shown


async def test_example_is_limited_to_the_golden_candidates(client):
    answer = await client.get("/v1/models/tiny/example", params={"candidates": 100})
    assert len(answer.json()["candidate_keys"]) == 32


@pytest.mark.parametrize("count", ["0", "101", "-1", "x", "", "²", "1" * 20])
async def test_wrong_number_of_example_candidates_is_a_problem_document(client, count):
    answer = await client.get("/v1/models/tiny/example", params={"candidates": count})
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-request"
    assert "from 1 to 100" in answer.json()["detail"]


async def test_example_of_an_unknown_model_is_not_found(client):
    answer: httpx.Response = await client.get("/v1/models/nothing/example")
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/model-not-found"


async def test_home_page_says_that_versions_are_refused(service, client):
    assert "refused" not in (await client.get("/")).text
    refused = service.service.registry.refused
    for version, text in ((8, "One version is refused"), (9, "2 versions are refused")):
        refused[Artifact("tiny", version, Path())] = "damaged"
        page = (await client.get("/")).text
        assert text in page
        assert 'href="/console#models"' in page
    refused.clear()
