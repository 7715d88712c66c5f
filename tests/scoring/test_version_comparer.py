"""Shadows: a second version scores requests after they are answered, while lanes are idle."""

import asyncio
import shutil
import weakref

import pytest

from app.errors import FieldError, InvalidRequest
from app.main import gatehouse
from app.protocol.native import Native
from app.settings import Settings
from tests.support.artifacts import add_version
from tests.support.in_process import client_of
from tests.support.waiting import PATIENCE_S

SHADOW = "active = 1\n[shadow]\nversion = 2\nshare = 1.0\n"


@pytest.fixture
def folder(tmp_path, tiny):
    shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
    add_version(tmp_path, "tiny", 2)
    (tmp_path / "tiny" / "traffic.toml").write_text(SHADOW)
    return tmp_path


def settings(folder):
    return Settings(store=folder, lanes=1, request_timeout_ms=30_000)


async def shown(client):
    return (await client.get("/v1/models/tiny")).json()["traffic"]["shadow"]


async def until(client, name, at_least=1):
    async with asyncio.timeout(PATIENCE_S):
        while (state := await shown(client))[name] < at_least:  # noqa: ASYNC110  (over HTTP)
            await asyncio.sleep(0.01)
    return state


async def test_a_shadow_scores_after_the_answer_and_its_difference_is_shown(folder):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            card = (await client.get("/v1/models/tiny")).json()
            assert [(entry["version"], entry["role"]) for entry in card["versions"]] == [
                (2, "shadow"),
                (1, "active"),
            ]
            answer = await client.post("/v1/score", json=card["example_request"])
            assert (answer.json()["version"], answer.json()["role"]) == (1, "active")
            state = await until(client, "compared")
            # Version 2 is a copy of version 1.
            assert (state["kendall_tau"], state["top_10_overlap"]) == (1.0, 1.0)
            assert state["score_difference"] == {task["name"]: 0.0 for task in card["tasks"]}
            text = (await client.get("/metrics")).text
            labels = 'model="tiny",result="compared",role="shadow"'
            assert f"gatehouse_version_comparisons_total{{{labels}}} 1.0" in text
            assert 'gatehouse_version_kendall_tau_count{model="tiny",role="shadow"} 1.0' in text
            named = await client.post(
                "/v1/models/tiny/versions/2/score", json=card["example_request"]
            )
            assert named.json()["role"] == "shadow"


async def test_a_shadow_is_dropped_while_requests_wait_or_lanes_are_busy(folder, monkeypatch):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            monkeypatch.setattr(parts.scorer._comparer, "_is_idle", lambda: False)
            await client.post("/v1/score", json=example)
            state = await until(client, "dropped")
            assert state["compared"] == 0


async def test_comparisons_take_a_limited_share_of_the_time(folder):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            parts.scorer._comparer._pause_after(10.0)
            for _ in range(5):
                await client.post("/v1/score", json=example)
            state = await until(client, "dropped", 5)
            assert state["compared"] == 0


async def test_a_shadow_that_refuses_the_request_fails_alone(folder, monkeypatch):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        shadow = parts.service.registry.shadows["tiny"].other
        parse = Native.parse

        def refusing(self, body, context):
            if context.model is shadow:
                raise InvalidRequest([FieldError("/user/new", "required feature is missing")])
            return parse(self, body, context)

        monkeypatch.setattr(Native, "parse", refusing)
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            answer = await client.post("/v1/score", json=example)
            assert (answer.status_code, answer.json()["version"]) == (200, 1)
            state = await until(client, "failed")
            assert state["compared"] == 0


async def test_a_shadow_that_is_ended_is_freed(folder):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        registry = parts.service.registry
        shadow = weakref.ref(registry.shadows["tiny"].other)
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            await client.post("/v1/score", json=example)
            await until(client, "compared")
            (folder / "tiny" / "traffic.toml").write_text("active = 1")
            await parts.deployment.refresh()
            assert await shown(client) is None
            await client.post("/v1/score", json=example)
        assert registry.comparisons == {}
        assert [str(model) for model in registry.loaded()] == ["tiny/1"]
        assert shadow() is None


async def test_the_order_of_a_canary_is_compared_with_the_active_version(folder):
    (folder / "tiny" / "traffic.toml").write_text(
        'active = 1\n[canary]\nversion = 2\nshare = 1.0\nfor = "1h"\n'
        "[canary.gates]\nkendall_tau = 0.9\n"
    )
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            assert (await client.post("/v1/score", json=example)).json()["role"] == "canary"
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    card = (await client.get("/v1/models/tiny")).json()
                    if card["traffic"]["canary"]["compared"]:
                        break
                    await asyncio.sleep(0.01)
            assert card["traffic"]["canary"]["kendall_tau"] == 1.0
