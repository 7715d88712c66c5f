"""The V2 routes other than infer: health, metadata, configuration, statistics, repository."""

from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
from pydantic import ValidationError

from app.api.open_inference import EXTENSIONS, ServingSettings, model_config, model_metadata
from app.api.openapi.open_inference import example_infer_request
from app.artifacts.encoding import Hashed, Listed
from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.main import gatehouse
from app.protocol.open_inference.outputs import output_names
from app.ranking.policy import Policy
from app.scoring.call import Limits
from app.settings import Settings
from tests.support.artifacts import corrupt
from tests.support.builders import manifest, published, task
from tests.support.fakes import sums_model
from tests.support.in_process import client_of

READY = ("/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready")


@pytest.fixture
async def card(client):
    """The model card of the tiny model."""
    return (await client.get("/v1/models/tiny")).json()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_health_endpoints_answer_json_as_kserve_expects(client, method):
    """KServe's client reads the bodies; Triton's reads the status only."""
    for path, expected in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/tiny/ready", {"name": "tiny", "ready": True}),
        ("/v2/models/tiny/versions/1/ready", {"name": "tiny", "ready": True}),
    ):
        response = await client.request(method, path)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        if method == "GET":
            assert response.json() == expected
        else:
            assert response.content == b""


async def test_model_readiness_is_200_while_active_else_404(client):
    assert (await client.get("/v2/models/tiny/ready")).status_code == 200
    assert (await client.get("/v2/models/tiny/versions/1/ready")).status_code == 200
    for path in ("/v2/models/other/ready", "/v2/models/tiny/versions/2/ready"):
        response = await client.get(path)
        assert response.status_code == 404
        assert list(response.json()) == ["error"]


async def test_server_without_model_is_live_and_not_ready(tmp_path):
    async with gatehouse(Settings(store=tmp_path, lanes=1)) as parts, client_of(parts) as client:
        assert (await client.get("/v2/health/live")).status_code == 200
        for path in (*READY, "/v2/models/tiny"):
            response = await client.get(path)
            assert response.status_code == 503
            assert response.json() == {"error": "no model is active yet"}
            assert response.headers["retry-after"] == "1"


async def test_draining_server_is_live_and_not_ready(service, client):
    service.service.readiness.is_draining = True
    try:
        answers = [(await client.get(path)).status_code for path in READY]
        assert answers == [503, 503, 503]
        assert (await client.get("/v2/health/live")).status_code == 200
    finally:
        service.service.readiness.is_draining = False


async def test_server_with_a_stuck_lane_is_not_live(service, client, monkeypatch):
    monkeypatch.setattr(type(service.service), "is_alive", lambda *_: False)
    response = await client.get("/v2/health/live")
    assert response.status_code == 503
    assert response.json() == {"error": "a lane is stuck"}


async def test_server_metadata_lists_extensions(client):
    metadata = (await client.get("/v2")).json()
    assert metadata["name"] == "gatehouse"
    assert metadata["extensions"] == EXTENSIONS


async def test_model_metadata_lists_inputs_and_outputs(client, card):
    metadata = (await client.get("/v2/models/tiny")).json()
    assert (await client.get("/v2/models/tiny/versions/1")).json() == metadata
    assert [tensor["name"] for tensor in metadata["inputs"]] == [
        feature["name"] for feature in card["inputs"]
    ]
    shapes = {tensor["name"]: tensor["shape"] for tensor in metadata["inputs"]}
    assert shapes["quality"] == [-1, 2]
    assert shapes["recent_items"] == [-1, 4]
    assert shapes["item_id"] == [-1, 1]
    assert metadata["outputs"] == [
        {"name": name, "datatype": "FP32", "shape": [-1, 1]}
        for name in ("click", "like", "dwell", "rank_score")
    ]


@pytest.mark.parametrize("version", ["x", "0", "2", "1" * 30, "٣", "-1"])
async def test_inactive_or_invalid_version_is_404(client, version):
    for what in ("", "/ready", "/config", "/stats"):
        response = await client.get(f"/v2/models/tiny/versions/{version}{what}")
        assert response.status_code == 404
        assert list(response.json()) == ["error"]
        assert "version" in response.json()["error"]


def test_every_kind_of_feature_has_a_datatype_and_a_shape():
    string: dict[str, Any] = {"encoding": Hashed(buckets=8), "vocabulary_size": 9}
    inputs = (
        DenseInput(name="age", side="user"),
        IdListInput(name="recent", side="user", max_length=3, default=(), **string),
        IdInput(
            name="item",
            side="candidate",
            vocabulary_size=9,
            encoding=Listed(file="vocabulary.item.jsonl"),
        ),
        DenseInput(name="quality", side="candidate", dim=2),
    )
    described = replace(sums_model(), manifest=manifest(inputs=inputs))
    tensors = [
        (tensor.name, tensor.datatype, tensor.shape)
        for tensor in model_metadata(described, [1]).inputs
    ]
    assert tensors == [
        ("age", "FP32", [-1, 1]),
        ("recent", "BYTES", [-1, 3]),
        ("item", "BYTES", [-1, 1]),
        ("quality", "FP32", [-1, 2]),
    ]
    limits = Limits(max_candidates=7, max_body_bytes=1000, default_timeout_s=1.0)
    config = model_config(described, ServingSettings(limits, 512, 0.0, 2))
    assert [tensor["data_type"] for tensor in config["input"]] == [
        *("TYPE_FP32", "TYPE_STRING", "TYPE_STRING", "TYPE_FP32")
    ]
    assert [tensor["optional"] for tensor in config["input"]] == [False, True, False, False]


async def test_model_config_shows_limits_and_lanes(client):
    config = (await client.get("/v2/models/tiny/config")).json()
    assert config["max_batch_size"] == 1000
    assert config["dynamic_batching"]["preferred_batch_size"] == [512]
    assert config["dynamic_batching"]["default_queue_policy"] == {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": 30_000_000,
        "allow_timeout_override": True,
    }
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["instance_group"][0]["count"] == 2
    assert config["version_policy"] == {"specific": {"versions": [1]}}


async def test_index_lists_refused_versions_unless_ready_only(tmp_path):
    published(tmp_path / "store")
    second = published(tmp_path / "store")
    corrupt(second.folder / "model.ts")
    async with gatehouse(Settings(store=tmp_path / "store", lanes=1)) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            everything = (await client.post("/v2/repository/index")).json()
            ready = (await client.post("/v2/repository/index", json={"ready": True})).json()
    assert [(entry["version"], entry["state"]) for entry in everything] == [
        ("1", "READY"),
        ("2", "UNAVAILABLE"),
    ]
    assert everything[1]["reason"]
    assert ready == everything[:1]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": 1}', bytes(100_001)])
async def test_wrong_body_of_the_index_is_refused(client, body):
    response = await client.post("/v2/repository/index", content=body)
    assert response.status_code in (400, 413)
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/region/r/register",
        "/v2/trace/setting",
        "/v2/models/tiny/trace/setting",
        "/v2/logging",
        "/v2/repository/models/tiny/load",
        "/v2/models/tiny/generate",
    ],
)
async def test_unsupported_extensions_are_refused_by_name(client, path):
    for method in ("GET", "POST"):
        response = await client.request(method, path)
        assert response.status_code == 404
        assert response.json()["error"].startswith("not supported: ")
    echoed = await client.get(path, params={"what": "text-of-the-caller"})
    assert "text-of-the-caller" not in echoed.text


async def test_unknown_v2_path_or_method_is_an_error_of_the_protocol(client):
    missing = await client.get("/v2/nothing")
    expected = {"error": "path not found; /docs lists all paths"}
    assert (missing.status_code, missing.json()) == (404, expected)
    wrong = await client.post("/v2/health/live")
    expected = {"error": "method not allowed; use GET, HEAD"}
    assert (wrong.status_code, wrong.json()) == (405, expected)
    assert wrong.headers["allow"] == "GET, HEAD"


async def test_statistics_count_requests_rows_and_batches(client, example):
    async def statistics():
        (one,) = (await client.get("/v2/models/tiny/stats")).json()["model_stats"]
        return one

    before = await statistics()
    for path in ("/v1/score", "/v1/models/tiny/score"):
        assert (await client.post(path, json=example)).status_code == 200
    assert (await client.post("/v1/models/tiny/score", json={})).status_code == 422
    after = await statistics()
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] - before["execution_count"] == 2
    grown = {
        name: after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"]
        for name in after["inference_stats"]
    }
    assert grown == dict.fromkeys(("success", "queue", "compute_input"), 2) | {
        "compute_infer": 2,
        "compute_output": 2,
        "fail": 1,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    assert after["last_inference"] >= before["last_inference"]
    assert (await client.get("/v2/models/stats")).json()["model_stats"] == [after]


async def test_example_infer_request_works_and_matches_its_schema(service, client):
    request = example_infer_request(service.service.registry.active("tiny"))
    assert (await client.post("/v2/models/tiny/infer", json=request)).status_code == 200
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v2/models/{model}/infer"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert content["examples"]["tiny"]["value"] == request
    schema = {**content["schema"], "components": document["components"]}
    jsonschema_rs.validator_for(schema).validate(request)


def test_names_with_another_meaning_in_v2_are_refused():
    with pytest.raises(ValidationError, match='"stats" is reserved'):
        manifest(name="stats")
    tasks = (task("rank_score"), task("click"))
    with pytest.raises(ValidationError, match='"rank_score" is reserved'):
        manifest(tasks=tasks, ranking=Policy(weights={"click": 1.0}))
    assert output_names(manifest(name="stat")) == ("click", "dwell", "rank_score")
