"""Where a table is active, every example is short, and one row can be looked at."""

import shutil

import jsonschema
import numpy as np
import pytest

from app.artifacts.artifact_files import read_manifest
from app.main import gatehouse
from app.settings import Settings
from tests.support.artifacts import corrupt
from tests.support.in_process import client_of
from tests.support.model_tables import change_rows, publish_rows, random_rows

KEYS = [7, 3, 11, 5]
SECRET = "s" * 20
KEY = {"authorization": f"Bearer {SECRET}"}


@pytest.fixture
def manifest(tiny):
    return read_manifest(tiny)


@pytest.fixture
def folder(tmp_path, tiny):
    shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
    return tmp_path


@pytest.fixture
async def served(folder, manifest):
    """A service of `tiny` with both tables; and a client."""
    publish_rows(
        folder, manifest, "items", "item_id", random_rows(manifest, "items", KEYS), unknown="drop"
    )
    publish_rows(folder, manifest, "users", "user_id", random_rows(manifest, "users", [42, 43]))
    async with gatehouse(Settings(store=folder, lanes=1, request_timeout_ms=30_000)) as parts:
        await parts.start()
        async with client_of(parts) as client:
            yield parts, client


async def test_example_request_is_the_short_one_and_is_answered(served):
    _, client = served
    card = (await client.get("/v1/models/tiny")).json()
    assert card["example_request"] == {
        "user": 42,
        "candidates": [7, 3, 11],
        "ranking": {"top_k": 3},
    }
    got = await client.post(card["score_url"], json=card["example_request"])
    assert got.status_code == 200
    assert sorted(got.json()["ranking"]) == [3, 7, 11]
    more = (await client.get("/v1/models/tiny/example?candidates=9")).json()
    assert more["candidates"] == KEYS


async def test_examples_have_keys_of_a_table_whose_first_rows_deltas_change(
    served, folder, manifest
):
    """A delta that touches the first rows must not change what callers copy, or `bench` sends."""
    parts, client = served
    change_rows(folder, manifest, "users", "user_id", random_rows(manifest, "users", [42]))
    for removed in ([], [3]):
        changed = random_rows(manifest, "items", [7, 11, 20])
        change_rows(folder, manifest, "items", "item_id", changed, removed)
        await parts.deployment.refresh()
        shown = (await client.get("/v1/models/tiny/example?candidates=9")).json()
        left = [key for key in KEYS if key not in removed]
        assert (shown["user"], shown["candidates"]) == (42, [*left, 20])
        assert (await client.post("/v1/models/tiny/score", json=shown)).status_code == 200
        document = (await client.get("/openapi.json")).json()
        body = document["paths"]["/v1/models/{model}/score"]["post"]["requestBody"]["content"]
        example = body["application/json"]["examples"]["tiny"]["value"]
        assert (example["user"], example["candidates"]) == (42, left[:3])
    assert '{"user": 42, "candidates": [7, 11, 5]' in (await client.get("/")).text


async def test_example_follows_a_delta_that_another_one_replaced(served, folder, manifest):
    parts, client = served
    for added in (20, 21):
        shutil.rmtree(folder / "tiny" / "items" / "1.delta", ignore_errors=True)
        (folder / "tiny" / "items" / ".1.delta.last").unlink(missing_ok=True)
        rows = random_rows(manifest, "items", [added])
        change_rows(folder, manifest, "items", "item_id", rows, removed=KEYS)
        await parts.deployment.refresh()
        shown = (await client.get("/v1/models/tiny/example")).json()
        assert shown["candidates"] == [added]


async def test_home_page_shows_the_short_request(served):
    _, client = served
    assert '{"user": 42, "candidates": [7, 3, 11]' in (await client.get("/")).text


async def test_openapi_has_the_short_request_and_accepts_every_form(served):
    _, client = served
    document = (await client.get("/openapi.json")).json()
    body = document["paths"]["/v1/models/{model}/score"]["post"]["requestBody"]["content"]
    example = body["application/json"]["examples"]["tiny"]["value"]
    assert example["candidates"] == [7, 3, 11]
    name = next(name for name in document["components"]["schemas"] if name.endswith("tiny"))
    schema = document["components"]["schemas"][name] | {"components": document["components"]}
    forms = [
        example,
        {"user": {"user_id": 42, "age_bucket": 1}, "candidates": {"item_id": [7], "category": [1]}},
        {"user": 42, "candidates": [{"item_id": 7, "category": 1}, 3]},
    ]
    for form in forms:
        jsonschema.validate(form, schema)
        assert (await client.post("/v1/models/tiny/score", json=form)).status_code == 200
    for wrong in ({"candidates": ["7"]}, {"candidates": {"category": [1]}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"user": 42} | wrong, schema)
        got = await client.post("/v1/models/tiny/score", json={"user": 42} | wrong)
        assert got.status_code == 422


async def test_v2_example_has_keys_only_and_is_answered(served):
    _, client = served
    document = (await client.get("/openapi.json")).json()
    body = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]
    example = body["application/json"]["examples"]["tiny"]["value"]
    assert [tensor["name"] for tensor in example["inputs"]] == ["user_id", "item_id"]
    got = (await client.post("/v2/models/tiny/infer", json=example)).json()
    assert got["parameters"]["items_table"] == "1"
    config = (await client.get("/v2/models/tiny/config")).json()
    assert all(tensor["optional"] for tensor in config["input"])


@pytest.mark.parametrize("name", ["sku", "_id of ключ"])
async def test_v2_metadata_lists_a_key_that_is_no_feature(folder, manifest, name):
    rows = random_rows(manifest, "items", KEYS)
    named = {f"sku-{key}": row for key, row in rows.items()}
    named |= {"a/b": rows[7], "/a//": rows[11], "%2F": rows[5]}
    publish_rows(folder, manifest, "items", name, named)
    async with gatehouse(Settings(store=folder, lanes=1, request_timeout_ms=30_000)) as parts:
        await parts.start()
        async with client_of(parts) as client:
            inputs = (await client.get("/v2/models/tiny")).json()["inputs"]
            assert inputs[-1] == {"name": name, "datatype": "BYTES", "shape": [-1, 1]}
            scored = (await client.get("/v1/models/tiny/example")).json()
            scored["candidates"] = {name: ["sku-7", "a/b"]}
            got = await client.post("/v1/models/tiny/score", json=scored | {"ranking": None})
            assert sorted(got.json()["ranking"]) == [0, 1]
            shown = (await client.get("/openapi.json")).json()
            body = shown["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]
            example = body["application/json"]["examples"]["tiny"]["value"]
            assert example["inputs"][-1]["name"] == name
            got = await client.post("/v2/models/tiny/infer", json=example)
            assert got.json()["parameters"]["items_table"] == "1"
            row = (await client.get("/v1/models/tiny/items/sku-7")).json()
            assert row["key"] == "sku-7"
            assert row["features"]["item_id"] == 7
            for path, key in (("a%2Fb", "a/b"), ("%2Fa%2F%2F", "/a//"), ("%252F", "%2F")):
                row = (await client.get(f"/v1/models/tiny/items/{path}")).json()
                assert row["key"] == key
                assert row["features"]["item_id"] == named[key]["item_id"]
            missing = await client.get("/v1/models/tiny/items/a%2Fc")
            assert missing.json()["type"] == "/problems/key-not-found"
            document = (await client.get("/openapi.json")).json()
            assert "/v1/models/{model}/items/{key}" in document["paths"]
            assert 'route="/v1/models/{model}/items/{key}"' in (await client.get("/metrics")).text


async def test_one_row_is_shown_as_a_request_would_send_it(served, folder, manifest):
    parts, client = served
    row = (await client.get("/v1/models/tiny/items/7")).json()
    assert (row["table"], row["version"], row["key"]) == ("items", "1", 7)
    expected = random_rows(manifest, "items", KEYS)[7]
    assert row["features"]["category"] == expected["category"]
    assert row["features"]["quality"] == [float(str(np.float32(x))) for x in expected["quality"]]
    user = (await client.get("/v1/models/tiny/users/42")).json()["features"]
    recent = random_rows(manifest, "users", [42, 43])[42]["recent_items"]
    assert user["recent_items"] == recent
    newer = random_rows(manifest, "items", [7], seed=5)
    change_rows(folder, manifest, "items", "item_id", newer)
    await parts.deployment.refresh()
    row = (await client.get("/v1/models/tiny/items/7")).json()
    assert row["version"] == "1.1"
    assert row["features"]["quality"] == pytest.approx(newer[7]["quality"])


@pytest.mark.parametrize("path", ["items/99", "items/seven", "items/-7", f"items/{2**63}"])
async def test_key_that_is_not_there_is_a_404(served, path):
    _, client = served
    got = await client.get(f"/v1/models/tiny/{path}")
    assert got.status_code == 404
    assert got.json()["type"] == "/problems/key-not-found"
    assert got.json()["detail"] == "the table items/1 has no such item_id"


async def test_model_without_a_table_says_so(client):
    got = await client.get("/v1/models/tiny/items/7")
    assert got.status_code == 404
    assert got.json()["detail"] == 'model "tiny" has no table of items'


@pytest.fixture
async def guarded(folder, manifest):
    """As `served`, with an API key, and users whose keys look like nothing else."""
    publish_rows(folder, manifest, "items", "item_id", random_rows(manifest, "items", KEYS))
    publish_rows(
        folder, manifest, "users", "user_id", random_rows(manifest, "users", [271828182, 314159265])
    )
    settings = {"store": folder, "lanes": 1, "request_timeout_ms": 30_000, "keys": f"a:{SECRET}"}
    async with gatehouse(Settings.model_validate(settings)) as parts:
        await parts.start()
        async with client_of(parts) as client:
            yield client


@pytest.mark.parametrize("path", ["items/7", "users/271828182", "users/1", "items/none"])
async def test_row_needs_a_key_where_score_calls_need_one(guarded, path):
    url = f"/v1/models/tiny/{path}"
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {SECRET}"}):
        got = await guarded.get(url, headers=headers)
        assert (got.status_code, got.json()["type"]) == (401, "/problems/unauthorized")
        assert got.headers["www-authenticate"].startswith("Bearer")
        assert (await guarded.head(url, headers=headers)).status_code == 401
    got = await guarded.get(url, headers=KEY)
    assert got.status_code == (200 if path in ("items/7", "users/271828182") else 404)


async def test_no_answer_without_a_key_has_the_key_of_a_user(guarded):
    for path in (
        "/",
        "/openapi.json",
        "/console",
        "/metrics",
        *("/v1/models", "/v1/models/tiny", "/v1/models/tiny/example", "/v1/engine", "/v1/events"),
        *("/v2/models/tiny", "/v2/models/tiny/config", "/v2/models/tiny/stats"),
    ):
        got = await guarded.get(path)
        assert got.status_code == 200, path
        assert "271828182" not in got.text, path
        assert "314159265" not in got.text, path


async def test_example_without_the_key_of_a_user_is_answered(guarded):
    shown = (await guarded.get("/v1/models/tiny/example")).json()
    card = (await guarded.get("/v1/models/tiny")).json()
    assert card["example_request"] == shown
    assert shown["candidates"] == [7, 3, 11]
    assert shown["user"]["user_id"] == 0
    got = await guarded.post("/v1/models/tiny/score", json=shown, headers=KEY)
    assert got.status_code == 200
    document = (await guarded.get("/openapi.json")).json()
    for path in ("/v1/models/{model}/score", "/v2/models/{model}/infer"):
        body = document["paths"][path]["post"]["requestBody"]["content"]
        example = body["application/json"]["examples"]["tiny"]["value"]
        got = await guarded.post(path.format(model="tiny"), json=example, headers=KEY)
        assert got.status_code == 200


async def test_caller_with_a_key_gets_the_short_example(guarded):
    path = "/v1/models/tiny/example"
    assert (await guarded.get(path, headers=KEY)).json()["user"] == 271828182
    wrong = {"authorization": "Bearer wrong"}
    assert (await guarded.get(path, headers=wrong)).status_code == 401


async def test_models_show_tables_and_refusals(served, folder, manifest):
    parts, client = served
    listed = publish_rows(folder, manifest, "items", "item_id", random_rows(manifest, "items", [1]))
    corrupt(listed.folder / "rows")
    for _ in range(2):
        await parts.deployment.refresh()
    document = (await client.get("/v1/models")).json()
    (model,) = document["models"]
    items, users = model["tables"]
    assert (items["table"], items["version"], items["rows"]) == ("items", "1", len(KEYS))
    assert (items["key"], items["key_type"], items["unknown"]) == ("item_id", "int64", "drop")
    assert items["problem"] is None
    assert users["table"] == "users"
    (refused,) = document["refused_tables"]
    assert (refused["model"], refused["table"]) == ("tiny", "items/2")
    assert "rows" in refused["reason"]
