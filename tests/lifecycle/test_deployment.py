"""From the store to an active model: what is good is served, the rest refused with its reason."""

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import asynccontextmanager

import httpx
import pytest

from app.artifacts.loader import Model
from app.artifacts.store import Store
from app.engine.batch import Chunk
from app.engine.lanes import BatchResult, Lane, run
from app.errors import ArtifactInvalid
from app.lifecycle.deployment import BatchTimings, Deployment
from app.lifecycle.registry import Registry
from app.main import gatehouse
from app.settings import Settings
from app.telemetry.metrics import Metrics
from tests.support.artifacts import add_version, corrupt
from tests.support.builders import CPU


@pytest.fixture
def folder(tmp_path, tiny):
    """A store of the test's own that holds version 1 of `tiny`."""
    shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
    return tmp_path


def settings(folder, **changes):
    return Settings(store=folder, lanes=1, request_timeout_ms=30_000, **changes)


def active(parts):
    return [str(model) for model in parts.service.registry.models()]


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


async def test_a_version_whose_files_cannot_be_looked_at_leaves_the_next_best(folder):
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
        transport = httpx.ASGITransport(parts.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gatehouse") as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            stop = asyncio.Event()

            async def caller():
                versions = []
                while not stop.is_set():
                    answer = await client.post("/v1/score", json=example)
                    assert answer.status_code == 200, answer.text
                    versions.append(answer.json()["version"])
                return versions

            callers = [asyncio.ensure_future(caller()) for _ in range(4)]
            await asyncio.sleep(0.05)
            add_version(folder, "tiny", 2)
            await parts.deployment.refresh()
            await asyncio.sleep(0.05)
            stop.set()
            for versions in await asyncio.gather(*callers):
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
        following = asyncio.ensure_future(parts.deployment.follow(0.01))
        shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
        async with asyncio.timeout(30):
            while not parts.service.is_ready:  # noqa: ASYNC110  (as a load balancer does)
                await asyncio.sleep(0.01)
        following.cancel()


async def test_a_store_of_bad_artifacts_is_an_error_with_every_reason(folder):
    add_version(folder, "tiny", 2)
    corrupt(folder / "tiny" / "1" / "model.ts")
    (folder / "tiny" / "2" / "golden.safetensors").unlink()
    async with gatehouse(settings(folder)) as parts:
        with pytest.raises(ArtifactInvalid, match=r"(?s)tiny/1.*model\.ts|tiny/2.*golden"):
            await parts.deployment.refresh()


async def test_what_was_refused_is_not_tried_again(folder):
    corrupt(folder / "tiny" / "1" / "model.ts")
    async with gatehouse(settings(folder)) as parts:
        for _ in range(3):
            with pytest.raises(ArtifactInvalid):
                await parts.deployment.refresh()
        metrics = parts.metrics.render().decode()
        assert 'gatehouse_model_swaps_total{model="tiny",result="refused"} 1.0' in metrics


async def test_a_version_that_was_seen_half_copied_is_tried_again(folder):
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


async def test_a_version_that_goes_and_comes_back_goes_on_serving(folder):
    newer = add_version(folder, "tiny", 2)
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        newer.rename(folder / "elsewhere")
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/2"]
        (folder / "elsewhere").rename(newer)
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/2"]


async def test_a_refused_version_that_was_removed_is_forgotten(folder):
    bad = add_version(folder, "tiny", 2)
    corrupt(bad / "model.ts")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert len(parts.service.registry.refused) == 1
        shutil.rmtree(bad)
        await parts.deployment.refresh()
        assert parts.service.registry.refused == {}


class Volume(Store):
    """A store on a network volume that cannot be read at first."""

    def artifacts(self):
        marker = self.folder / "away"
        if marker.exists():
            marker.unlink()
            raise PermissionError(13, "Permission denied")
        return super().artifacts()


async def test_a_store_that_cannot_be_read_for_a_while_is_followed_again(folder):
    async with gatehouse(settings(folder)) as parts:
        parts.deployment._store = Volume(folder)
        (folder / "away").touch()
        following = asyncio.ensure_future(parts.deployment.follow(0.01))
        async with asyncio.timeout(30):
            while not parts.service.is_ready:  # noqa: ASYNC110  (as a load balancer does)
                await asyncio.sleep(0.01)
        assert not (folder / "away").exists()
        following.cancel()


class Recorder:
    """An executor that records the rows of the chunks of each batch."""

    def __init__(self, error: Exception | None = None) -> None:
        self.batches: list[tuple[int, ...]] = []
        self._error = error

    def __call__(self, model: Model, chunks: Sequence[Chunk]) -> BatchResult:
        self.batches.append(tuple(chunk.rows for chunk in chunks))
        return run(model, chunks) if self._error is None else BatchResult(self._error)


@asynccontextmanager
async def deployment_on(store: Store, recorders: Sequence[Recorder]):
    """A deployment on lanes of its own; yields it, its registry, and what it says of warm-up."""
    loop = asyncio.get_running_loop()
    lanes = [Lane(f"lane-{i}", loop, executor=each) for i, each in enumerate(recorders)]
    registry = Registry(Metrics())
    told: list[tuple[str, list[int], bool]] = []

    def on_warm(model: Model, timings: BatchTimings) -> None:
        assert all(seconds > 0 for _, seconds in timings)
        told.append((str(model), [rows for rows, _ in timings], bool(registry.models())))

    deployment = Deployment(
        store, registry, lanes, device=CPU, warm_up=[(1,), (1, 3)], on_warm=on_warm
    )
    try:
        yield deployment, registry, told
    finally:
        for lane in lanes:
            lane.stop()


async def test_version_is_warmed_up_on_every_lane_before_it_is_active(store):
    recorders = [Recorder(), Recorder()]
    async with deployment_on(store, recorders) as (deployment, registry, told):
        await deployment.refresh()
        assert [each.batches for each in recorders] == [[(1,), (1, 3)] * 3] * 2
        assert told == [("tiny/1", [1, 4], False)]
        assert [str(model) for model in registry.models()] == ["tiny/1"]


async def test_version_that_fails_at_warm_up_is_refused(store):
    recorders = [Recorder(), Recorder(RuntimeError("no such operator"))]
    async with deployment_on(store, recorders) as (deployment, registry, told):
        with pytest.raises(ArtifactInvalid, match="warm-up failed: no such operator"):
            await deployment.refresh()
        assert (registry.models(), told) == ([], [])


async def test_several_models_are_served_by_name(folder):
    add_version(folder, "other", 1, name="other")
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert active(parts) == ["other/1", "tiny/1"]
        assert [str(a) for a in Store(folder).artifacts()] == ["other/1", "tiny/1"]
        transport = httpx.ASGITransport(parts.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gatehouse") as client:
            example = (await client.get("/v1/models/other")).json()["example_request"]
            answer = await client.post("/v1/models/other/score", json=example)
            assert answer.json()["model"] == "other"
            unnamed = await client.post("/v1/score", json=example)
            assert unnamed.status_code == 404
            assert "name one" in unnamed.json()["detail"]


async def test_a_default_model_answers_where_none_is_named(folder):
    add_version(folder, "other", 1, name="other")
    async with gatehouse(settings(folder, default_model="tiny")) as parts:
        await parts.deployment.refresh()
        transport = httpx.ASGITransport(parts.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gatehouse") as client:
            example = (await client.get("/v1/models/other")).json()["example_request"]
            answer = await client.post("/v1/score", json=example)
            assert answer.json()["model"] == "tiny"
