"""Deployment: good versions are activated, others are refused with the reason."""

import asyncio
import os
import shutil
import sys
import threading
import weakref

import pytest

from app.artifacts.loader import load
from app.artifacts.store import Store
from app.errors import ArtifactInvalid
from app.lifecycle.poll_timer import PollTimer
from app.main import gatehouse
from app.settings import Settings
from tests.lifecycle.serving import active, gauge, roles, settings
from tests.support.artifacts import add_version, corrupt
from tests.support.builders import published
from tests.support.in_process import client_of
from tests.support.waiting import PATIENCE_S, until


async def test_the_newest_version_is_served(folder):
    add_version(folder, "tiny", 2)
    add_version(folder, "tiny", 10)
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/10"]


async def test_a_bad_newest_version_leaves_the_next_best(folder):
    add_version(folder, "tiny", 2)
    corrupt(folder / "tiny" / "2" / "model.ts")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/1"]
        refused = parts.service.registry.refused
        assert [str(artifact) for artifact in refused] == ["tiny/2"]
        assert "SHA-256" in next(iter(refused.values()))


async def test_a_version_with_an_unreadable_file_leaves_the_next_best(folder):
    add_version(folder, "tiny", 2)
    (folder / "tiny" / "2" / "loop").symlink_to("loop")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/1"]
        assert "cannot be read now" in next(iter(parts.service.registry.refused.values()))


async def test_a_bad_version_that_appears_later_leaves_the_active_one(folder):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        add_version(folder, "tiny", 2)
        corrupt(folder / "tiny" / "2" / "golden.safetensors")
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/1"]


async def test_a_version_is_swapped_without_losing_a_request(folder):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            stop = asyncio.Event()

            async def caller(versions):
                while not stop.is_set():
                    answer = await client.post("/v1/score", json=example)
                    assert answer.status_code == 200, answer.text
                    versions.append(answer.json()["version"])

            async def all_have(version):
                await until(lambda: all(version in versions for versions in versions_of))

            versions_of: list[list[int]] = [[] for _ in range(4)]
            callers = [asyncio.ensure_future(caller(versions)) for versions in versions_of]
            await all_have(1)
            add_version(folder, "tiny", 2)
            await parts.deployment.refresh()
            await all_have(2)
            stop.set()
            await asyncio.gather(*callers)
            for versions in versions_of:
                assert versions == sorted(versions)
                assert set(versions) == {1, 2}
            metrics = (await client.get("/metrics")).text
            assert 'gatehouse_model_info{model="tiny"' in metrics
            assert metrics.count("gatehouse_model_info{") == 1


async def test_an_empty_store_waits_for_its_first_artifact(tmp_path, tiny):
    async with gatehouse(settings(tmp_path, store_poll_s=0.01)) as parts:
        await parts.deployment.refresh()
        assert not parts.service.is_ready
        assert parts.service.is_alive(hang_s=30)
        following = asyncio.ensure_future(parts.deployment.follow(PollTimer(0.01)))
        shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
        await until(lambda: parts.service.is_ready, "the service is ready")
        following.cancel()


async def test_a_store_of_bad_artifacts_is_an_error_with_every_reason(folder):
    add_version(folder, "tiny", 2)
    corrupt(folder / "tiny" / "1" / "model.ts")
    (folder / "tiny" / "2" / "golden.safetensors").unlink()
    async with gatehouse(settings(folder)) as parts:
        with pytest.raises(ArtifactInvalid, match=r"(?s)tiny/1.*model\.ts|tiny/2.*golden"):
            await parts.deployment.refresh()


async def test_a_refused_version_is_not_tried_again(folder):
    corrupt(folder / "tiny" / "1" / "model.ts")
    async with gatehouse(settings(folder)) as parts:
        for _ in range(3):
            with pytest.raises(ArtifactInvalid):
                await parts.deployment.refresh()
        metrics = parts.metrics.render().decode()
        assert 'gatehouse_model_swaps_total{model="tiny",result="refused"} 1.0' in metrics


async def test_a_half_copied_version_is_tried_again_when_its_files_change(folder):
    program = folder / "tiny" / "1" / "model.ts"
    whole = program.read_bytes()
    program.write_bytes(whole[:1000])
    async with gatehouse(settings(folder)) as parts:
        with pytest.raises(ArtifactInvalid, match=r"model\.ts: has 1000 bytes"):
            await parts.deployment.refresh()
        program.write_bytes(whole)
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/1"]
        assert parts.service.registry.refused == {}


async def test_a_refused_version_that_was_removed_is_forgotten(folder):
    bad = add_version(folder, "tiny", 2)
    corrupt(bad / "model.ts")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert len(parts.service.registry.refused) == 1
        shutil.rmtree(bad)
        await parts.deployment.refresh()
        assert parts.service.registry.refused == {}


async def test_a_second_model_does_not_change_the_default(folder):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        add_version(folder, "other", 1, name="other")
        await parts.deployment.refresh()
        assert active(parts) == ["other/1", "tiny/1"]
        assert str(parts.service.registry.active(None)) == "tiny/1"


async def test_several_models_are_served_by_name(folder):
    add_version(folder, "other", 1, name="other")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert active(parts) == ["other/1", "tiny/1"]
        assert [str(a) for a in Store(folder).artifacts()] == ["other/1", "tiny/1"]
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/other")).json()["example_request"]
            answer = await client.post("/v1/models/other/score", json=example)
            assert answer.json()["model"] == "other"
            unnamed = await client.post("/v1/score", json=example)
            assert unnamed.status_code == 404
            assert "there is no default model; active models: other, tiny" in unnamed.text


async def test_the_default_model_answers_requests_that_name_none(folder):
    add_version(folder, "other", 1, name="other")
    async with gatehouse(settings(folder, default_model="tiny")) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/other")).json()["example_request"]
            answer = await client.post("/v1/score", json=example)
            assert answer.json()["model"] == "tiny"


def traffic(folder, text, model="tiny"):
    (folder / model / "traffic.toml").write_text(text)


async def test_a_previous_version_is_kept_and_a_rollback_loads_nothing(folder, monkeypatch):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        for version in (2, 3):
            add_version(folder, "tiny", version)
            await parts.deployment.refresh()
        assert roles(parts) == {3: "active", 2: "previous"}
        monkeypatch.setattr("app.lifecycle.version_loader.load", None)  # a call would be refused
        traffic(folder, "active = 2")
        await parts.deployment.refresh()
        assert roles(parts) == {3: "previous", 2: "active"}
        assert parts.service.registry.refused == {}
        traffic(folder, 'active = "latest"')
        await parts.deployment.refresh()
        assert roles(parts) == {3: "active", 2: "previous"}


async def test_a_named_version_stays_active_when_a_newer_one_is_published(folder):
    traffic(folder, "active = 1")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        add_version(folder, "tiny", 2)
        await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        traffic(folder, "active = 2\nkeep = 0")
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active"}


async def test_every_loaded_version_answers_by_its_number_with_its_role(folder):
    add_version(folder, "tiny", 2)
    traffic(folder, "active = 1")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        traffic(folder, 'active = "latest"')
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            card = (await client.get("/v1/models/tiny")).json()
            assert [(entry["version"], entry["role"]) for entry in card["versions"]] == [
                (2, "active"),
                (1, "previous"),
            ]
            found = {}
            for url in ("/v1/score", *(entry["score_url"] for entry in card["versions"])):
                answer = (await client.post(url, json=card["example_request"])).json()
                found[url] = (answer["version"], answer["role"])
            assert found == {
                "/v1/score": (2, "active"),
                "/v1/models/tiny/versions/2/score": (2, "active"),
                "/v1/models/tiny/versions/1/score": (1, "previous"),
            }
            missing = await client.post(
                "/v1/models/tiny/versions/7/score", json=card["example_request"]
            )
            assert missing.status_code == 404
            assert "loaded versions: 2 (active), 1 (previous)" in missing.json()["detail"]
            index = (await client.post("/v2/repository/index")).json()
            assert [(entry["version"], entry["parameters"]) for entry in index] == [
                ("2", {"role": "active"}),
                ("1", {"role": "previous"}),
            ]
            metadata = (await client.get("/v2/models/tiny/versions/1")).json()
            assert metadata["versions"] == ["2", "1"]


@pytest.mark.parametrize(
    "text",
    ["active = 0", "active = true", "activ = 1", "active = 1\nkeep = 17", "active = [", "\xff"],
)
async def test_a_wrong_traffic_file_changes_nothing_and_is_reported_once(folder, text, caplog):
    add_version(folder, "tiny", 2)
    traffic(folder, "active = 1")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        (folder / "tiny" / "traffic.toml").write_bytes(text.encode("latin-1"))
        for _ in range(3):
            await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        assert caplog.text.count("tiny/traffic.toml cannot be used") == 1
        assert "traffic.toml: " in parts.service.registry.traffic_problems["tiny"]
        assert gauge(parts, "reload_successful", file="traffic") == 0
        (folder / "tiny" / "traffic.toml").unlink()
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 1: "previous"}
        assert parts.service.registry.traffic_problems == {}
        assert gauge(parts, "reload_successful", file="traffic") == 1


@pytest.mark.parametrize("end", ["mended", "removed"])
async def test_wrong_traffic_file_of_one_model_shows_while_another_one_is_good(folder, end):
    published(folder, name="other")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        (folder / "other" / "traffic.toml").write_text("aktive = 1")
        await parts.deployment.refresh()
        assert gauge(parts, "reload_successful", file="traffic") == 0
        for keep in (0, 2):
            traffic(folder, f"keep = {keep}")
            await parts.deployment.refresh()
            assert parts.service.registry.traffic["tiny"].keep == keep
            assert gauge(parts, "reload_successful", file="traffic") == 0
        if end == "mended":
            (folder / "other" / "traffic.toml").write_text("active = 1")
        else:
            shutil.rmtree(folder / "other")
        await parts.deployment.refresh()
        assert parts.service.registry.traffic_problems == {}
        assert gauge(parts, "reload_successful", file="traffic") == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("active = 7", r"version 7 is not in the store \(versions: 1, 2\)"),
        ("active = 2", r"active = 2: model\.ts: its SHA-256"),
        ("aktive = 1", r"unknown key \"aktive\"; did you mean \"active\"\?"),
    ],
)
async def test_a_start_serves_what_the_traffic_file_says_or_nothing(folder, text, reason):
    corrupt(add_version(folder, "tiny", 2) / "model.ts")
    traffic(folder, text)
    async with gatehouse(settings(folder)) as parts:
        with pytest.raises(ArtifactInvalid, match=reason):
            await parts.deployment.refresh()
        assert active(parts) == []


async def test_a_named_version_that_cannot_serve_leaves_the_active_one(folder, caplog):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        traffic(folder, "active = 7")
        for _ in range(2):
            await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        assert caplog.text.count("active = 7: version 7 is not in the store") == 1
        assert "version 7" in parts.service.registry.unassigned["tiny"]
        add_version(folder, "tiny", 7)
        await parts.deployment.refresh()
        assert roles(parts) == {7: "active", 1: "previous"}
        assert parts.service.registry.unassigned == {}


SHADOW = "[shadow]\nversion = {}\nshare = {}\n"
CANARY_OF_2 = "[canary]\nversion = 2\nshare = 0.5\nfor = '1h'\n"


@pytest.mark.parametrize("wanted", ["missing", "damaged"])
async def test_what_else_a_file_says_applies_while_its_active_version_cannot(folder, wanted):
    for version in (2, 3):
        add_version(folder, "tiny", version)
    if wanted == "damaged":
        corrupt(add_version(folder, "tiny", 7) / "model.ts")
    async with gatehouse(settings(folder)) as parts:
        registry = parts.service.registry

        async def after(text):
            traffic(folder, text)
            await parts.deployment.refresh()
            assert active(parts) == ["tiny/1"]
            return {version: role for version, role in roles(parts).items() if version > 1}

        assert await after(f"active = 1\n{SHADOW.format(3, 0.5)}{CANARY_OF_2}") == {
            2: "canary",
            3: "shadow",
        }
        assert await after(f"active = 7\n{SHADOW.format(3, 0.1)}{CANARY_OF_2}") == {3: "shadow"}
        assert registry.shadows["tiny"].share == 0.1
        assert (registry.canaries, len(registry.comparisons)) == ({}, 1)
        assert await after(f"active = 7\n{SHADOW.format(2, 0.1)}") == {2: "shadow"}
        assert await after("active = 7\nkeep = 0\n") == {}
        assert (registry.shadows, registry.comparisons) == ({}, {})
        assert registry.unassigned["tiny"].startswith("traffic.toml: active = 7: ")
        assert await after(f"active = 1\n{CANARY_OF_2}") == {2: "canary"}
        assert registry.unassigned == {}


async def test_a_version_that_fails_to_be_active_is_not_the_shadow_instead(folder):
    corrupt(add_version(folder, "tiny", 7) / "model.ts")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        traffic(folder, f"active = 7\n{SHADOW.format(7, 0.5)}")
        await parts.deployment.refresh()
        assert "does not get its role" not in parts.service.registry.unassigned["tiny"]


async def test_a_shadow_that_is_removed_stops_before_the_active_version_is_loaded(
    folder, monkeypatch
):
    for version in (2, 3):
        add_version(folder, "tiny", version)
    traffic(folder, f"active = 1\n{SHADOW.format(3, 0.5)}")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        registry, during = parts.service.registry, []
        assert len(registry.comparisons) == 1

        def looking(artifact, device):
            during.append((artifact.version, dict(registry.shadows), dict(registry.comparisons)))
            return load(artifact, device)

        monkeypatch.setattr("app.lifecycle.version_loader.load", looking)
        traffic(folder, "active = 2")
        await parts.deployment.refresh()
        assert during == [(2, {}, {})]


async def test_each_version_without_its_role_is_reported_once(folder, caplog):
    traffic(folder, f"active = 1\n{CANARY_OF_2}{SHADOW.format(3, 0.5)}")
    async with gatehouse(settings(folder)) as parts:
        for _ in range(3):
            await parts.deployment.refresh()
        reasons = [
            f"traffic.toml: version {version} does not get its role: "
            f"version {version} is not in the store"
            for version in (2, 3)
        ]
        assert parts.service.registry.unassigned == {"tiny": "; ".join(reasons)}
        problems = [event.text for event in parts.metrics.events.latest() if event.is_problem]
        assert problems == [f"tiny: {reason}" for reason in reversed(reasons)]
        for reason in reasons:
            assert caplog.text.count(reason) == 1
        add_version(folder, "tiny", 2)
        await parts.deployment.refresh()
        assert parts.service.registry.unassigned == {"tiny": reasons[1]}


async def test_a_rollback_does_not_wait_for_a_version_that_is_being_loaded(folder, monkeypatch):
    entered, release, loaded = threading.Event(), threading.Event(), []

    def slow(artifact, device):
        if artifact.version == 3:
            entered.set()
            assert release.wait(PATIENCE_S)
        loaded.append(artifact.version)
        return load(artifact, device)

    monkeypatch.setattr("app.lifecycle.version_loader.load", slow)
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        add_version(folder, "tiny", 2)
        await parts.deployment.refresh()
        add_version(folder, "tiny", 3)
        following = asyncio.ensure_future(parts.deployment.follow(PollTimer(0.01)))
        await until(entered.is_set, "version 3 is being loaded")
        traffic(folder, "active = 1")
        await until(lambda: active(parts) == ["tiny/1"], "version 1 is active")
        assert loaded == [1, 2]
        release.set()
        await until(lambda: loaded == [1, 2, 3], "version 3 is loaded")
        await asyncio.sleep(0.1)
        assert roles(parts) == {2: "previous", 1: "active"}  # version 3 is not wanted any more
        following.cancel()


async def test_a_version_that_was_looked_at_during_a_load_is_freed(folder, monkeypatch):
    release = threading.Event()

    def slow(artifact, device):
        assert release.wait(PATIENCE_S)
        return load(artifact, device)

    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        first = weakref.ref(parts.service.registry.version("tiny", 1))
        looks: list[str] = []
        monkeypatch.setattr("app.lifecycle.version_loader.load", slow)
        monkeypatch.setattr(parts.deployment, "_switch", looks.append)
        traffic(folder, 'active = "latest"\nkeep = 0')
        add_version(folder, "tiny", 2)
        following = asyncio.ensure_future(parts.deployment.follow(PollTimer(0.01)))
        await until(lambda: len(looks) > 2, "changes are applied beside the load")
        release.set()
        await until(lambda: active(parts) == ["tiny/2"], "version 2 is active")
        await until(lambda: first() is None, "version 1 is out of memory")
        following.cancel()


async def test_a_traffic_file_behind_links_is_followed_as_kubernetes_mounts_it(folder):
    add_version(folder, "tiny", 2)
    for number in (1, 2):
        (folder / "tiny" / f"..{number}").mkdir()
        (folder / "tiny" / f"..{number}" / "traffic.toml").write_text(f"active = {number}")
    (folder / "tiny" / "..data").symlink_to("..1")
    (folder / "tiny" / "traffic.toml").symlink_to("..data/traffic.toml")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/1"]
        (folder / "tiny" / "..next").symlink_to("..2")
        (folder / "tiny" / "..next").rename(folder / "tiny" / "..data")
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/2"]
        assert parts.service.registry.ignored == {}


def swaps(parts, result: str, model: str = "tiny") -> float:
    sample = parts.metrics.registry.get_sample_value
    return sample("gatehouse_model_swaps_total", {"model": model, "result": result}) or 0


async def test_a_slow_copy_is_not_counted_as_a_refusal_at_each_look(folder, caplog):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        newer = add_version(folder, "tiny", 2)
        whole = (newer / "model.ts").read_bytes()
        for copied in (100, 1000, 5000):
            (newer / "model.ts").write_bytes(whole[:copied])
            await parts.deployment.refresh()
            (reason,) = parts.service.registry.refused.values()
            assert reason.startswith(f"model.ts: has {copied} bytes, the manifest says ")
        assert swaps(parts, "refused") == 0
        assert "is refused" not in caplog.text
        (newer / "model.ts").write_bytes(whole)
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/2"]
        assert (swaps(parts, "refused"), swaps(parts, "activated")) == (0, 2)


async def test_a_bad_version_is_counted_once_when_its_files_no_longer_change(folder, caplog):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        corrupt(add_version(folder, "tiny", 2) / "model.ts")
        for _ in range(4):
            await parts.deployment.refresh()
        assert swaps(parts, "refused") == 1
        assert caplog.text.count("artifact tiny/2 is refused: model.ts: its SHA-256") == 1


async def test_a_version_that_cannot_be_read_is_counted_once_and_tried_again(folder):
    newer = add_version(folder, "tiny", 2)
    (newer / "loop").symlink_to("loop")
    async with gatehouse(settings(folder)) as parts:
        for _ in range(3):
            await parts.deployment.refresh()
        (reason,) = parts.service.registry.refused.values()
        assert reason == "cannot be read now: loop: Too many levels of symbolic links"
        assert str(folder) not in reason
        assert swaps(parts, "refused") == 1
        (newer / "loop").unlink()
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/2"]


@pytest.mark.parametrize("error", [MemoryError("all of it"), RecursionError(), KeyError("x")])
async def test_whatever_one_version_raises_the_others_are_activated(folder, monkeypatch, error):
    add_version(folder, "another", 1, name="another")
    add_version(folder, "tiny", 2)

    def raising(artifact, device):
        if artifact.version == 2:
            raise error
        return load(artifact, device)

    monkeypatch.setattr("app.lifecycle.version_loader.load", raising)
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert active(parts) == ["another/1", "tiny/1"]
        (reason,) = parts.service.registry.refused.values()
        assert reason.startswith(f"{type(error).__name__}: ")
        await parts.deployment.refresh()
        assert swaps(parts, "refused") == 1


async def test_a_file_far_larger_than_its_manifest_says_costs_the_others_nothing(folder):
    add_version(folder, "another", 1, name="another")
    os.truncate(add_version(folder, "tiny", 2) / "golden.safetensors", 500 << 30)  # sparse
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert active(parts) == ["another/1", "tiny/1"]
        (reason,) = parts.service.registry.refused.values()
        assert reason.startswith(f"golden.safetensors: has {500 << 30} bytes, the manifest says ")


async def test_a_version_that_is_a_time_is_served_and_asked_for(folder):
    add_version(folder, "tiny", 20261125120000)
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            card = (await client.get("/v1/models/tiny")).json()
            assert card["version"] == 20261125120000
            for path in (
                "/v1/models/tiny/versions/20261125120000/score",
                "/v1/models/tiny/score",
            ):
                answer = await client.post(path, json=card["example_request"])
                assert answer.json()["version"] == 20261125120000
            ready = await client.get("/v2/models/tiny/versions/20261125120000/ready")
            assert ready.status_code == 200


async def test_the_service_is_ready_when_every_model_of_the_store_is_active_or_refused(
    folder, monkeypatch
):
    for name in ("another", "zebra"):
        add_version(folder, name, 1, name=name)
    corrupt(folder / "another" / "1" / "model.ts")
    seen: list[tuple[str, list[str], bool]] = []

    def loading(artifact, device):
        registry = parts.service.registry
        seen.append((artifact.model, [str(model) for model in registry.active_models()], ready()))
        return load(artifact, device)

    def ready() -> bool:
        return parts.service.is_ready

    monkeypatch.setattr("app.lifecycle.version_loader.load", loading)
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert seen == [
            ("another", [], False),
            ("tiny", [], False),
            ("zebra", ["tiny/1"], False),
        ]
        assert parts.service.is_ready
        add_version(folder, "tiny", 2)
        await parts.deployment.refresh()
        assert seen[-1] == ("tiny", ["tiny/1", "zebra/1"], True)


async def test_readiness_and_missing_models_are_503_while_the_store_is_loading(folder):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        parts.service.registry.has_started = False
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            statuses = [
                (await client.get("/readyz")).status_code,
                (await client.get("/v2/health/ready")).status_code,
                (await client.post("/v1/score", json=example)).status_code,
                (await client.post("/v1/models/other/score", json=example)).status_code,
                (await client.post("/v1/models/tiny/score", json=example)).status_code,
            ]
        assert statuses == [503, 503, 503, 503, 200]


async def test_threads_of_a_server_hand_over_the_lock_soon(folder):
    before = sys.getswitchinterval()
    async with gatehouse(Settings(store=folder, lanes=1)):
        assert sys.getswitchinterval() < before / 5
    assert sys.getswitchinterval() == before
