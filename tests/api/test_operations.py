"""Routes for operators: health, readiness, metrics, home page, documentation."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.api.problems import ERRORS
from app.main import gatehouse
from app.settings import Settings
from tests.support.in_process import client_of


async def test_a_server_with_a_model_is_alive_and_ready(client):
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 200


async def test_a_server_without_a_model_is_alive_and_not_ready(tmp_path):
    async with gatehouse(Settings(store=tmp_path, lanes=1)) as parts, client_of(parts) as client:
        assert (await client.get("/livez")).status_code == 200
        for response in (await client.get("/readyz"), await client.post("/v1/score", json={})):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["type"] == "/problems/not-ready"
        assert "No model is active yet" in (await client.get("/")).text


async def test_draining_server_answers_and_closes_connections(service, client, example):
    service.service.readiness.is_draining = True
    try:
        readiness = await client.get("/readyz")
        assert readiness.status_code == 503
        assert readiness.json()["type"] == "/problems/draining"
        answer = await client.post("/v1/score", json=example)
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
    finally:
        service.service.readiness.is_draining = False


PLANNED_BY = ("min_chunk_rows", "max_wait_ms", "max_queue_rows")
PATHS = (
    *("/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/problems/draining"),
    *(
        "/v1/models",
        "/v1/models/tiny",
        "/v1/processes",
        "/v1/engine",
        "/v1/events",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
    ),
    *("/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/tiny/config", "/v2/models/stats"),
)


@pytest.mark.parametrize("path", PATHS)
async def test_head_is_answered_as_get_without_a_body(client, path):
    get, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    changing = {"x-request-id"} | (
        {"content-length"} if path in ("/metrics", "/v1/engine") else set()
    )
    for name in get.headers.keys() - changing:
        assert head.headers[name] == get.headers[name]


async def test_engine_shows_the_settings_that_a_plan_needs(client):
    engine = (await client.get("/v1/engine")).json()
    defaults = {name: Settings.model_fields[name].default for name in PLANNED_BY}
    assert {name: engine[name] for name in PLANNED_BY} == defaults


async def test_head_requests_are_counted_by_route(client):
    async def counted() -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        series = 'route="/v1/models/{model}",status="200"} '
        counts = [line for line in lines if line.startswith("gatehouse_requests_total")]
        return sum(float(line.split()[-1]) for line in counts if series in line)

    before = await counted()
    await client.head("/v1/models/tiny")
    assert await counted() == before + 1
    assert (await client.head("/nothing")).status_code == 404


async def test_home_page_links_to_every_page(client):
    page = (await client.get("/")).text
    for target in ("/console", "/docs", "/v1/models", "/metrics", "/v1/models/tiny"):
        assert f'href="{target}"' in page
        assert (await client.get(target)).status_code == 200


async def test_docs_load_nothing_from_other_hosts(client):
    page = (await client.get("/docs")).text
    assert "https://" not in page.replace("https://fastapi.tiangolo.com", "")
    assert (await client.get("/static-offline-docs/swagger-ui-bundle.js")).status_code == 200


async def test_the_models_page_describes_the_model(client):
    card = (await client.get("/v1/models")).json()["models"][0]
    assert card["name"] == "tiny"
    assert [task["name"] for task in card["tasks"]] == ["click", "like", "dwell"]
    assert 0 < card["evaluation"]["click"]["auc"] < 1
    assert card["score_url"] == "/v1/models/tiny/score"


async def test_metrics_are_in_the_exposition_format(client):
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name for family in text_string_to_metric_families(response.text)}
    assert {
        "gatehouse_requests",
        "gatehouse_request_duration_seconds",
        "gatehouse_stage_duration_seconds",
        "gatehouse_batch_rows",
        "gatehouse_batch_requests",
        "gatehouse_queue_rows",
        "gatehouse_shed",
        "gatehouse_failures",
        "gatehouse_model_info",
    } <= families


async def test_unknown_paths_share_one_metric_label(client):
    for path in ("/a", "/b", "/v1/models/x/y/z"):
        response = await client.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
    metrics = (await client.get("/metrics")).text
    assert 'route="other",status="404"' in metrics
    assert "/v1/models/x" not in metrics


async def test_unknown_model_names_are_not_metric_labels(client):
    await client.post("/v1/models/surprise/score", json={})
    assert "surprise" not in (await client.get("/metrics")).text


async def test_every_error_has_a_page(client):
    for slug, error in ERRORS.items():
        page = await client.get(f"/problems/{slug}")
        assert page.status_code == 200
        assert error.title in page.text
    assert (await client.get("/problems/none")).status_code == 404


async def test_openapi_documents_the_score_routes_with_an_example_that_works(client):
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/models/{model}/score"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    response = await client.post("/v1/score", json=content["examples"]["tiny"]["value"])
    assert response.status_code == 200
    assert {"200", "400", "404", "413", "415", "422", "429", "500", "503", "504"} <= set(
        operation["responses"]
    )


async def test_every_openapi_reference_resolves(client):
    document = (await client.get("/openapi.json")).json()

    def references(node):
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for child in node.values():
                yield from references(child)
        elif isinstance(node, list):
            for child in node:
                yield from references(child)

    found = set(references(document))
    assert found
    for reference in found:
        target = document
        for key in reference.removeprefix("#/").split("/"):
            target = target[key]


async def test_score_response_matches_its_schema(client, example):
    from app.api.openapi.score_schemas import ScoreRequest, ScoreResponse

    ScoreRequest.model_validate(example)
    answer = ScoreResponse.model_validate((await client.post("/v1/score", json=example)).json())
    assert len(answer.scores["click"]) == len(answer.ranking) == 3


async def test_bug_in_the_server_is_a_problem_document_with_an_id(service, client, example):
    registry = service.service.registry
    service.service.registry = None  # any bug
    try:
        response = await client.post("/v1/score", json=example)
    finally:
        service.service.registry = registry
    assert response.status_code == 500
    problem = response.json()
    assert problem["type"] == "/problems/internal-error"
    assert problem["instance"] == response.headers["x-request-id"]
    assert "NoneType" not in response.text
