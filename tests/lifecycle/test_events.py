"""Events: what happened to versions, tables, traffic and files, with the time, at `/v1/events`."""

import time
from contextlib import asynccontextmanager
from datetime import datetime

from app.artifacts.artifact_files import read_manifest
from app.main import gatehouse
from app.server.file_watcher import FileWatcher
from app.settings import Settings
from app.telemetry.events import MOST, Events
from tests.support.artifacts import add_version, corrupt
from tests.support.in_process import client_of
from tests.support.model_tables import change_rows, publish_rows, random_rows


@asynccontextmanager
async def started(folder, **changes):
    async with gatehouse(Settings(store=folder, lanes=1, **changes)) as parts:
        await parts.start()
        async with client_of(parts) as client:
            yield parts, client


async def events(client):
    return (await client.get("/v1/events")).json()["events"]


async def texts(client):
    return [event["text"] for event in await events(client)]


async def test_versions_and_roles_are_events_with_their_times_latest_first(folder):
    before = time.time()
    async with started(folder) as (parts, client):
        add_version(folder, "tiny", 2)
        await parts.deployment.refresh()
        corrupt(add_version(folder, "tiny", 3) / "model.ts")
        for _ in range(3):
            await parts.deployment.refresh()
        (folder / "tiny" / "traffic.toml").write_text("active = 1\nkeep = 0\n")
        await parts.deployment.refresh()
        found = await events(client)
    assert [event["text"] for event in reversed(found)][:2] == [
        "tiny/1 is active",
        "tiny/2 is active, after tiny/1",
    ]
    refused = [event for event in found if event["text"].startswith("tiny/3 is refused: model.ts:")]
    assert [event["is_problem"] for event in refused] == [True]
    assert "tiny/1 is active, after tiny/2" in [event["text"] for event in found]
    assert "tiny/2 is freed" in [event["text"] for event in found]
    assert "tiny/traffic.toml: active = 1, keep = 0" in [event["text"] for event in found]
    times = [datetime.fromisoformat(event["at"]).timestamp() for event in found]
    assert times == sorted(times, reverse=True)
    assert before - 1e-3 <= times[-1] <= times[0] <= time.time()


async def test_tables_are_events(folder, tiny):
    manifest = read_manifest(tiny)
    rows = random_rows(manifest, "items", [1, 2, 3])

    def publish():
        return publish_rows(folder, manifest, "items", "item_id", rows)

    first = publish()
    async with started(folder) as (parts, client):
        second = publish()
        await parts.deployment.refresh()
        change_rows(folder, manifest, "items", "item_id", rows)
        await parts.deployment.refresh()
        corrupt(change_rows(folder, manifest, "items", "item_id", rows).delta_folder(2) / "rows")
        moved = folder / "moved"
        for _ in range(2):
            await parts.deployment.refresh()
        second.folder.rename(moved)
        await parts.deployment.refresh()
        moved.rename(second.folder)
        await parts.deployment.refresh()
        found = [event for event in reversed(await events(client)) if event["kind"] == "table"]
    assert first.version == 1
    digest = "rows: its SHA-256 differs from that in table.json"
    assert [(event["text"], event["is_problem"]) for event in found] == [
        ("tiny/1 serves from items/1, 3 rows", False),
        ("tiny/1 serves from items/2, 3 rows, after 1", False),
        (f"tiny: items/2.2 is refused: delta 2: {digest}", True),
        (
            "tiny: items/2 was removed from the store; items/1, the newest there, does not replace "
            "it: its number is lower; it goes on serving",
            True,
        ),
        ("tiny: items/2: its files in the store are intact again", False),
    ]


async def test_canary_and_shadow_are_events(folder):
    add_version(folder, "tiny", 2)
    traffic = folder / "tiny" / "traffic.toml"
    traffic.write_text("active = 1\n[canary]\nversion = 2\nshare = 0.1\nfor = '1h'\n")
    async with started(folder) as (parts, client):
        await parts.deployment.refresh()
        assert "canary tiny/2 gets 0.1 of the traffic of tiny/1" in await texts(client)
        traffic.write_text("active = 1\n[shadow]\nversion = 2\nshare = 0.5\n")
        await parts.deployment.refresh()
        assert "shadow tiny/2 scores 0.5 of the traffic of tiny/1" in await texts(client)
        traffic.write_text("active = 7\n")
        await parts.deployment.refresh()
        [freed, latest, *_] = await events(client)
    assert freed["text"] == "tiny/2 is freed"
    assert latest["kind"] == "traffic"
    assert latest["is_problem"]
    assert "version 7 is not in the store" in latest["text"]


async def test_files_are_events_that_name_no_path_and_no_content(folder):
    keys = folder.parent / "keys"
    keys.write_text("a:0123456789abcdef0123456789abcdef\n")
    async with started(folder, keys_file=keys) as (parts, client):
        watcher = FileWatcher(parts.keys, parts.metrics)
        await watcher.look()
        assert await texts(client) == ["tiny/1 is active"]
        keys.write_text("b:0123456789abcdef0123456789abcdef\n")
        await watcher.look()
        keys.write_text("secret without a name\n")
        await watcher.look()
        latest = await texts(client)
    assert latest[:2] == [
        "keys: the changed file cannot be used, the previous one stays; see the log",
        "keys: the changed file is in use",
    ]


def test_old_events_are_forgotten():
    events = Events()
    for number in range(MOST + 5):
        events.add("file", str(number))
    found = [event.text for event in events.latest()]
    assert found == [str(number) for number in reversed(range(5, MOST + 5))]
