"""CORS and security headers: pages of other origins may call only if a setting says so."""

import httpx
import pytest

from app.api.browsers import parse_origins
from app.errors import ConfigurationInvalid
from app.main import gatehouse
from app.settings import Settings
from tests.support.in_process import client_of

PAGE = {"origin": "https://example.org"}
PREFLIGHT = PAGE | {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def shares(response: httpx.Response) -> bool:
    return any(name.startswith("access-control-") for name in response.headers)


async def test_by_default_no_other_origin_may_read_a_response(client, example):
    preflight = await client.options("/v1/score", headers=PREFLIGHT)
    assert preflight.status_code == 405
    answers = [
        preflight,
        await client.post("/v1/score", json=example, headers=PAGE),
        await client.get("/v1/models", headers=PAGE),
        await client.options("/v1/models", headers=PREFLIGHT),
    ]
    assert not any(map(shares, answers))


async def test_only_allowed_origins_may_call(store):
    allowed = "https://example.org, http://localhost:3000"
    settings = Settings(store=store.folder, lanes=1, cors_origins=allowed)
    async with gatehouse(settings) as parts, client_of(parts) as client:
        preflight = await client.options("/v1/score", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE["origin"]
        assert preflight.headers["x-request-id"]
        answer = await client.get("/v1/models", headers=PAGE)
        assert answer.headers["access-control-allow-origin"] == PAGE["origin"]
        assert "retry-after" in answer.headers["access-control-expose-headers"]
        stranger = {"origin": "https://example.com"}
        refused = await client.options("/v1/score", headers=PREFLIGHT | stranger)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("text", ["*", "example.org", "https://a.org/", "https://a.org b", "null"])
def test_invalid_origin_is_refused_and_not_repeated(text):
    with pytest.raises(ConfigurationInvalid, match="must be scheme://host") as caught:
        parse_origins(f"https://example.org, {text}")
    assert text not in str(caught.value).removesuffix("https://example.org")


def test_origins_are_separated_by_commas():
    assert parse_origins("") == parse_origins(" , ") == []
    assert parse_origins("https://a.org,http://[::1]:80 ") == ["https://a.org", "http://[::1]:80"]


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_load_nothing_from_other_hosts_and_cannot_be_framed(client, path):
    headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


async def test_documents_do_not_have_the_headers_of_pages(client):
    assert "content-security-policy" not in (await client.get("/v1/models")).headers
