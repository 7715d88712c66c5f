"""Tables in the store: good ones serve, others are refused, and nothing goes back."""

from datetime import UTC, datetime, timedelta

import pytest

from app.artifacts.artifact_files import read_manifest
from app.artifacts.store import Artifact
from app.errors import ArtifactInvalid
from app.main import gatehouse
from tests.lifecycle.item_tables import KEYS, change, items_of, publish, with_input
from tests.lifecycle.serving import settings
from tests.support.artifacts import add_version, corrupt
from tests.support.in_process import client_of
from tests.support.model_tables import random_rows
from tests.support.waiting import until


async def score(client, candidates=(1, 2, 3), user=1):
    sent = {"user": user, "candidates": list(candidates)}
    return await client.post("/v1/models/tiny/score", json=sent)


async def full(client, manifest, seed, candidates=(1, 2, 3), user=1, user_seed=0):
    rows = random_rows(manifest, "items", list(KEYS), seed)
    names = [feature.name for feature in manifest.candidate_inputs]
    sent = {
        "user": random_rows(manifest, "users", list(KEYS), user_seed)[user],
        "candidates": {name: [rows[key][name] for key in candidates] for name in names},
        "candidate_keys": list(candidates),
    }
    return (await client.post("/v1/models/tiny/score", json=sent)).json()


async def test_tables_of_the_store_serve(folder, manifest):
    publish(folder, manifest)
    publish(folder, manifest, kind="users")
    async with gatehouse(settings(folder)) as parts, client_of(parts) as client:
        await parts.start()
        got = (await score(client)).json()
        assert got["tables"] == {"items": "1", "users": "1"}
        wanted = await full(client, manifest, 0)
        for member in ("scores", "rank_score", "ranking"):
            assert got[member] == wanted[member]


async def test_a_newer_table_replaces_the_one_before_without_the_model(folder, manifest):
    publish(folder, manifest)
    publish(folder, manifest, kind="users")
    async with gatehouse(settings(folder)) as parts, client_of(parts) as client:
        await parts.start()
        model = parts.service.registry.active("tiny")
        publish(folder, manifest, seed=1)
        await parts.deployment.refresh()
        assert parts.service.registry.active("tiny") is model
        got = (await score(client)).json()
        assert got["tables"]["items"] == "2"
        assert got["scores"] == (await full(client, manifest, 1))["scores"]


async def test_a_delta_is_applied_at_the_next_refresh(folder, manifest):
    publish(folder, manifest)
    publish(folder, manifest, kind="users")
    async with gatehouse(settings(folder)) as parts, client_of(parts) as client:
        await parts.start()
        change(folder, manifest, 100)
        assert (await score(client, [1, 100])).status_code == 422
        await parts.deployment.refresh()
        got = (await score(client, [1, 100])).json()
        assert got["tables"]["items"] == "1.1"
        for key in (101, 102, 103):
            change(folder, manifest, key)
        await parts.deployment.refresh()
        got = (await score(client, [1, 100, 101, 102, 103])).json()
        assert got["tables"]["items"] == "1.4"


async def test_a_request_keeps_the_table_that_it_began_with(folder, manifest):
    publish(folder, manifest)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        before = registry.tables[registry.active("tiny")]
        publish(folder, manifest, seed=1)
        await parts.deployment.refresh()
        after = registry.tables[registry.active("tiny")]
        assert before.items is not None
        assert before.items.table.version == 1
        assert after.items is not None
        assert after.items.table.version == 2


async def test_version_without_its_table_is_refused_until_the_table_is_there(folder, manifest):
    """The new version has another feature, which the table of the active version lacks."""
    publish(folder, manifest)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        other = version_with_default(folder, 2)
        await parts.deployment.refresh()
        assert registry.active_version("tiny") == 1
        (reason,) = registry.refused.values()
        assert reason.startswith("needs a table of items: items/1: ")
        await parts.deployment.refresh()
        publish(folder, other, seed=1)
        await parts.deployment.refresh()
        assert registry.active_version("tiny") == 2
        assert registry.refused == {}
        assert items_of(registry, registry.active("tiny")).version == 2
        previous = registry.version("tiny", 1)
        assert items_of(registry, previous).version == 1
        assert registry.refused_tables == {}


def version_with_default(folder, number):
    """Add a version whose `category` has a default: its tables are other ones."""
    target = add_version(folder, "tiny", number)
    changed = with_input(read_manifest(Artifact("tiny", number, target)), "category", default=1)
    (target / "model.json").write_text(changed.model_dump_json())
    return changed


async def test_rollback_to_a_version_without_a_table_is_refused(folder):
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        other = version_with_default(folder, 2)
        await parts.deployment.refresh()
        assert registry.active_version("tiny") == 2
        publish(folder, other)
        await parts.deployment.refresh()
        assert registry.tables[registry.active("tiny")].items is not None
        (folder / "tiny" / "traffic.toml").write_text("active = 1\n")
        await parts.deployment.refresh()
        assert registry.active_version("tiny") == 2
        assert "needs a table of items" in registry.unassigned["tiny"]


async def test_canary_stops_while_the_named_version_is_loaded_and_has_no_table(folder):
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        other = version_with_default(folder, 2)
        version_with_default(folder, 3)
        canary = CANARY.partition("\n")[2].replace("version = 2", "version = 3")
        (folder / "tiny" / "traffic.toml").write_text(f"active = 2\n{canary}")
        await parts.deployment.refresh()
        publish(folder, other)
        await parts.deployment.refresh()
        assert list(registry.canaries) == ["tiny"]
        (folder / "tiny" / "traffic.toml").write_text(f"active = 1\n{canary}")
        await parts.deployment._apply_changes("tiny")
        assert registry.active_version("tiny") == 2
        assert "needs a table of items" in registry.unassigned["tiny"]
        assert registry.canaries == {}


async def test_at_the_start_an_older_version_with_a_table_is_preferred(folder, manifest):
    publish(folder, manifest)
    version_with_default(folder, 2)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        assert parts.service.registry.active_version("tiny") == 1


async def test_at_the_start_nothing_serves_without_a_table_that_can_be_used(folder, manifest):
    corrupt(publish(folder, manifest).folder / "rows")
    async with gatehouse(settings(folder)) as parts:
        with pytest.raises(ArtifactInvalid, match="needs a table of items: items/1: rows"):
            await parts.start()


async def test_first_table_of_an_active_version_serves_without_a_restart(folder, manifest):
    async with gatehouse(settings(folder)) as parts, client_of(parts) as client:
        await parts.start()
        assert (await score(client)).status_code == 422
        publish(folder, manifest)
        publish(folder, manifest, kind="users")
        await parts.deployment.refresh()
        assert (await score(client)).status_code == 200


async def test_stale_table_makes_a_server_of_one_model_not_ready(folder, manifest):
    old = datetime.now(UTC) - timedelta(hours=2)
    publish(folder, manifest, max_age_s=3600, created=old)
    async with gatehouse(settings(folder)) as parts, client_of(parts) as client:
        await parts.start()
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "table items/1 of model tiny is 72" in answer.json()["detail"]
        assert "limit 3600 s" in answer.json()["detail"]
        change(folder, manifest, 100)  # new data
        await parts.deployment.refresh()
        assert (await client.get("/readyz")).status_code == 200


async def test_stale_table_makes_its_model_not_ready_and_no_other(folder, manifest):
    add_version(folder, "other", 1, name="other")
    old = datetime.now(UTC) - timedelta(hours=2)
    publish(folder, manifest, max_age_s=3600, created=old)
    publish(folder, manifest, kind="users")

    async def status(path):
        return (await client.get(path)).status_code

    async def index(*, ready):
        sent = await client.post("/v2/repository/index", json={"ready": ready})
        return {entry["name"]: entry["state"] for entry in sent.json()}

    async with gatehouse(settings(folder)) as parts, client_of(parts) as client:
        await parts.start()
        assert await status("/readyz") == 200
        assert await status("/v2/health/ready") == 200
        assert await status("/v2/models/other/ready") == 200
        for path in ("/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "table items/1 of model tiny is 72" in answer.json()["error"]
        cards = (await client.get("/v1/models")).json()["models"]
        reasons = {card["name"]: card["not_ready"] for card in cards}
        assert reasons["other"] is None
        assert "limit 3600 s" in reasons["tiny"]
        assert await index(ready=False) == {"tiny": "UNAVAILABLE", "other": "READY"}
        assert await index(ready=True) == {"other": "READY"}
        assert (await score(client)).status_code == 200  # whoever asks nevertheless
        change(folder, manifest, 100)  # new data
        await parts.deployment.refresh()
        assert await status("/v2/models/tiny/ready") == 200
        assert (await client.get("/v1/models/tiny")).json()["not_ready"] is None


async def test_metrics_show_the_table_of_the_active_version(folder, manifest):
    publish(folder, manifest, max_age_s=3600)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        value = parts.metrics.registry.get_sample_value
        labels = {"model": "tiny", "table": "items"}
        assert value("gatehouse_table_info", labels | {"version": "1"}) == 1
        assert value("gatehouse_table_rows", labels) == len(KEYS)
        assert (value("gatehouse_table_bytes", labels) or 0) > 0
        age_s = value("gatehouse_table_age_seconds", labels)
        assert age_s is not None
        assert 0 <= age_s < 60
        assert value("gatehouse_table_max_age_seconds", labels) == 3600


async def test_unknown_keys_are_counted_whatever_happens_to_them(folder, manifest):
    publish(folder, manifest)
    publish(folder, manifest, kind="users")
    async with gatehouse(settings(folder)) as parts, client_of(parts) as client:
        await parts.start()
        await score(client, [1, 98, 99])
        value = parts.metrics.registry.get_sample_value
        labels = {"model": "tiny", "table": "items"}
        assert value("gatehouse_unknown_key_total", labels) == 2
        publish(folder, manifest, unknown="drop")
        await parts.deployment.refresh()
        got = (await score(client, [1, 98, 99])).json()
        assert got["unknown_keys"]["items"]["positions"] == [1, 2]
        assert value("gatehouse_unknown_key_total", labels) == 4


async def test_freed_version_lets_go_of_its_tables(folder, manifest):
    publish(folder, manifest)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        for number in (2, 3):
            add_version(folder, "tiny", number)
            await parts.deployment.refresh()
        assert sorted(str(model) for model in registry.tables) == ["tiny/2", "tiny/3"]


CANARY = """active = 1
[canary]
version = 2
share = 0.5
for = "1h"
key = "user_id"
"""


async def test_canary_gets_the_same_users_whatever_the_form_of_the_request(folder, manifest):
    add_version(folder, "tiny", 2)
    (folder / "tiny" / "traffic.toml").write_text(CANARY)
    publish(folder, manifest)
    publish(folder, manifest, kind="users")
    async with gatehouse(settings(folder)) as parts, client_of(parts) as client:
        await parts.start()
        by_form: list[list[int]] = []
        for form in ("scalar", "object", "full"):
            versions = []
            for user in list(KEYS)[:20]:
                if form == "full":
                    got = await full(client, manifest, 0, user=user)
                else:
                    sent = user if form == "scalar" else {"user_id": user}
                    got = (await score(client, user=sent)).json()
                versions.append(got["version"])
            by_form.append(versions)
        assert by_form[0] == by_form[1] == by_form[2]
        assert set(by_form[0]) == {1, 2}


async def test_shadow_scores_requests_by_keys_with_its_own_table(folder, manifest):
    publish(folder, manifest, unknown="drop")
    publish(folder, manifest, kind="users")
    other = version_with_default(folder, 2)
    publish(folder, other, seed=1, unknown="drop")
    text = "active = 1\n[shadow]\nversion = 2\nshare = 1.0\n"
    (folder / "tiny" / "traffic.toml").write_text(text)
    async with gatehouse(settings(folder)) as parts, client_of(parts) as client:
        await parts.start()
        registry = parts.service.registry
        shadow = registry.shadows["tiny"]
        assert items_of(registry, shadow.other).version == 2
        assert (await score(client, [1, 99, 2])).json()["tables"]["items"] == "1"
        await until(lambda: shadow.compared, "the versions are compared")
        assert shadow.failed == 0


async def test_canary_without_its_table_does_not_begin(folder, manifest):
    publish(folder, manifest)
    version_with_default(folder, 2)
    (folder / "tiny" / "traffic.toml").write_text(CANARY)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        assert registry.canaries == {}
        assert "needs a table of items" in registry.unassigned["tiny"]
