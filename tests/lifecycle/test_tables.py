"""Tables in the store: good ones serve, others are refused, and nothing goes back."""

import asyncio
import logging
import shutil
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest

from app.artifacts.artifact_files import read_manifest
from app.artifacts.manifest import Manifest
from app.artifacts.store import Artifact
from app.artifacts.tables.listing import find_table
from app.artifacts.tables.table import open_table
from app.errors import ArtifactInvalid
from app.lifecycle import open_tables
from app.main import gatehouse
from app.settings import Settings
from tests.support.artifacts import add_version, corrupt
from tests.support.model_tables import change_rows, publish_rows, random_rows

KEYS = range(1, 41)


@pytest.fixture
def folder(tmp_path, tiny):
    """A store of the test's own that holds version 1 of `tiny`."""
    shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
    return tmp_path


@pytest.fixture
def manifest(tiny):
    return read_manifest(tiny)


def publish(folder, manifest, seed=0, kind="items", **changes):
    key = "item_id" if kind == "items" else "user_id"
    rows = random_rows(manifest, kind, list(KEYS), seed)
    return publish_rows(folder, manifest, kind, key, rows, **changes)


def change(folder, manifest, key, seed=9, **changes):
    rows = random_rows(manifest, "items", [key], seed)
    return change_rows(folder, manifest, "items", "item_id", rows, **changes)


def settings(folder, **changes):
    return Settings(store=folder, lanes=1, request_timeout_ms=30_000, **changes)


def client_of(parts):
    return httpx.AsyncClient(transport=httpx.ASGITransport(parts.app), base_url="http://gatehouse")


def items_of(registry, model):
    """Return the items table that a version serves from."""
    assert model is not None
    bound = registry.tables[model].items
    assert bound is not None
    return bound.table


async def score(client, candidates=(1, 2, 3), user=1):
    sent = {"user": user, "candidates": list(candidates)}
    return await client.post("/v1/models/tiny/score", json=sent)


async def full(client, manifest, seed, candidates=(1, 2, 3), user=1, user_seed=0):
    rows = random_rows(manifest, "items", list(KEYS), seed)
    names = [each.name for each in manifest.candidate_inputs]
    sent = {
        "user": random_rows(manifest, "users", list(KEYS), user_seed)[user],
        "candidates": {name: [rows[key][name] for key in candidates] for name in names},
        "candidate_keys": list(candidates),
    }
    return (await client.post("/v1/models/tiny/score", json=sent)).json()


def with_input(manifest, name, **changes):
    """Return a manifest with another entry for one feature."""
    document = manifest.model_dump(mode="json")
    for each in document["inputs"]:
        if each["name"] == name:
            each.update(changes)
    return Manifest.model_validate(document)


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


async def test_a_damaged_table_is_refused_once_and_the_one_before_serves(folder, manifest, caplog):
    publish(folder, manifest)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        corrupt(publish(folder, manifest, seed=1).folder / "rows")
        caplog.set_level(logging.ERROR)
        for _ in range(3):
            await parts.deployment.refresh()
        registry = parts.service.registry
        assert items_of(registry, registry.active("tiny")).version == 1
        (reason,) = registry.refused_tables.values()
        assert "rows" in reason
        assert list(registry.refused_tables) == [("tiny", "items/2")]
        messages = [each.getMessage() for each in caplog.records if "refused" in each.getMessage()]
        assert messages == [f"table items/2 of model tiny is refused: {reason}"]
        labels = {"model": "tiny", "table": "items", "result": "refused"}
        value = parts.metrics.registry.get_sample_value
        assert value("gatehouse_table_swaps_total", labels) == 1
        assert value("gatehouse_refused_tables") == 1
        publish(folder, manifest, seed=2)
        shutil.rmtree(folder / "tiny" / "items" / "2")
        await parts.deployment.refresh()
        assert registry.refused_tables == {}
        assert items_of(registry, registry.active("tiny")).version == 3


async def test_a_damaged_delta_leaves_those_before_it(folder, manifest):
    publish(folder, manifest)
    change(folder, manifest, 100)
    listed = change(folder, manifest, 101)
    corrupt(listed.delta_folder(2) / "rows")
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        assert items_of(registry, registry.active("tiny")).label == "1.1"
        assert list(registry.refused_tables) == [("tiny", "items/1.2")]


async def test_deltas_after_a_missing_one_are_refused_until_it_is_there(folder, manifest, caplog):
    publish(folder, manifest)
    for key in (100, 101, 102):
        listed = change(folder, manifest, key)
    moved = folder / "moved"
    listed.delta_folder(2).rename(moved)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        for _ in range(2):
            await parts.deployment.refresh()
        assert items_of(registry, registry.active("tiny")).label == "1.1"
        (reason,) = registry.refused_tables.values()
        assert reason.startswith("delta 2 is missing, so delta 3 will not be applied: restore ")
        assert list(registry.refused_tables) == [("tiny", "items/1.3")]
        assert sum("delta 2 is missing" in each.getMessage() for each in caplog.records) == 1
        moved.rename(listed.delta_folder(2))
        await parts.deployment.refresh()
        assert items_of(registry, registry.active("tiny")).label == "1.3"
        assert registry.refused_tables == {}


async def test_a_replaced_delta_that_cannot_be_read_is_compared_again(
    folder, manifest, monkeypatch, tmp_path_factory
):
    publish(folder, manifest)
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder / "tiny", other / "tiny")
    applied, another = change(folder, manifest, 1, seed=8), change(other, manifest, 1, seed=9)

    def row(parts):
        registry = parts.service.registry
        table = items_of(registry, registry.active("tiny"))
        return table.take(table.find(np.array([1]))).tobytes()

    def unreadable(_):
        raise OSError("stale file handle")

    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        before = row(parts)
        shutil.rmtree(applied.delta_folder(1))
        shutil.copytree(another.delta_folder(1), applied.delta_folder(1))
        with monkeypatch.context() as patched:
            patched.setattr(open_tables, "read_description", unreadable)
            await parts.deployment.refresh()
        assert row(parts) == before
        await parts.deployment.refresh()
        assert row(parts) != before


@pytest.mark.parametrize("kind", ["items", "users"])
async def test_a_delta_that_is_removed_or_replaced_is_undone(folder, manifest, kind, caplog):
    """Another delta may have its number, for instance from a copy of the store."""
    publish(folder, manifest, kind=kind)
    keys = (1, 2, 3)
    name = "item_id" if kind == "items" else "user_id"
    for key in keys:
        rows = random_rows(manifest, kind, [key], seed=9)
        listed = change_rows(folder, manifest, kind, name, rows)

    def serving():
        registry = parts.service.registry
        bound = getattr(registry.tables[registry.active("tiny")], kind)
        rows = bound.table.take(bound.table.find(np.array(keys)))
        return bound.table.label, rows.tobytes()

    def expected(*sources):
        """The rows of these keys, each from a seed of random rows."""
        table = open_table(find_table(folder / "tiny", kind), "tiny", upto=0)
        of = {0: table, 9: table.extended(listed, 3)}
        found = [
            of[each].take(of[each].find(np.array([key])))
            for key, each in zip(keys, sources, strict=True)
        ]
        return np.concatenate(found).tobytes()

    all_applied = expected(9, 9, 9)
    two_applied = expected(9, 9, 0)
    none_applied = expected(0, 0, 0)
    deltas = listed.delta_folder(1).parent
    aside = folder / "aside"
    shutil.copytree(deltas, aside)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        assert serving() == ("1.3", all_applied)
        shutil.rmtree(deltas / "3")
        for _ in range(2):
            await parts.deployment.refresh()
        assert serving() == ("1.2", two_applied)
        (warning,) = caplog.records
        place = f"{kind}/1.3"
        assert warning.getMessage() == (
            f"model tiny: its table {place} is made again without deltas: "
            "delta 3 was removed from the store"
        )
        # Restored by a copy: the same delta, but not the same file.
        shutil.copytree(aside / "3", deltas / ".3")
        (deltas / ".3").rename(deltas / "3")
        await parts.deployment.refresh()
        before = serving()
        assert before == ("1.3", all_applied)
        shutil.copytree(aside / "2", deltas / ".2")
        shutil.rmtree(deltas / "2")
        (deltas / ".2").rename(deltas / "2")
        caplog.clear()
        await parts.deployment.refresh()
        assert (serving(), caplog.records) == (before, [])
        # Another delta with the number of one that is applied.
        shutil.rmtree(deltas / "3")
        (deltas.parent / ".1.delta.last").unlink()
        row = random_rows(manifest, kind, [3], seed=8)
        change_rows(folder, manifest, kind, name, row)
        await parts.deployment.refresh()
        label, rows = serving()
        assert label == "1.3"
        assert rows not in (all_applied, two_applied)
        assert "delta 3 was replaced in the store" in caplog.text
        shutil.rmtree(deltas)
        await parts.deployment.refresh()
        assert serving() == ("1", none_applied)


async def test_a_table_that_does_not_fit_is_refused_with_the_reasons(folder, manifest):
    publish(folder, manifest)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        publish(folder, with_input(manifest, "quality", dim=3))
        await parts.deployment.refresh()
        registry = parts.service.registry
        assert items_of(registry, registry.active("tiny")).version == 1
        reason = registry.refused_tables["tiny", "items/2"]
        assert reason.startswith("does not fit tiny/1: ")
        assert "quality" in reason


async def test_a_removed_table_goes_on_serving_and_is_reported(folder, manifest, caplog):
    publish(folder, manifest)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        publish(folder, manifest, seed=1)
        await parts.deployment.refresh()
        moved = folder / "moved"
        (folder / "tiny" / "items" / "2").rename(moved)
        for _ in range(2):
            await parts.deployment.refresh()
        assert items_of(registry, registry.active("tiny")).version == 2
        assert registry.table_problems == {
            ("tiny", "items/2"): "was removed from the store; items/1, the newest there, does not "
            "replace it: its number is lower"
        }
        assert sum("was removed" in each.getMessage() for each in caplog.records) == 1
        moved.rename(folder / "tiny" / "items" / "2")
        await parts.deployment.refresh()
        assert registry.table_problems == {}


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
        return {each["name"]: each["state"] for each in sent.json()}

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
        reasons = {each["name"]: each["not_ready"] for each in cards}
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
        assert sorted(str(each) for each in registry.tables) == ["tiny/2", "tiny/3"]


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
        async with asyncio.timeout(10):
            while not shadow.compared:  # noqa: ASYNC110  (nothing signals it)
                await asyncio.sleep(0.01)
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
