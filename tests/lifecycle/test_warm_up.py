"""A version runs batches of every size before it serves, beside the lanes if others serve."""

import asyncio
import os
import threading
from collections.abc import Sequence
from contextlib import asynccontextmanager

import pytest
from torch import get_num_threads

from app.artifacts import loader
from app.artifacts.columns import ModelInputs
from app.artifacts.loader import Model
from app.artifacts.onednn_products import FEWEST_ROWS
from app.artifacts.program import Program
from app.artifacts.store import Store
from app.engine.batch import Chunk
from app.engine.lanes import BatchResult, Lane, run
from app.errors import ArtifactInvalid
from app.lifecycle.background import BackgroundThread
from app.lifecycle.deployment import Deployment
from app.lifecycle.registry import Registry
from app.lifecycle.warm_up import BatchTimings
from app.telemetry.metrics import Metrics
from tests.support.artifacts import add_version
from tests.support.builders import CPU


class Recorder:
    """An executor that records the rows of the chunks of each batch."""

    def __init__(self, error: Exception | None = None) -> None:
        self.batches: list[tuple[int, ...]] = []
        self._error = error

    def __call__(self, model: Model, chunks: Sequence[Chunk]) -> BatchResult:
        self.batches.append(tuple(chunk.rows for chunk in chunks))
        return run(model, chunks) if self._error is None else BatchResult(self._error)


@asynccontextmanager
async def deployment_on(
    store: Store, recorders: Sequence[Recorder], sizes: Sequence[Sequence[int]] = ((1,), (1, 3))
):
    """A deployment on lanes of its own; yields it, its registry, and what it says of warm-up."""
    loop = asyncio.get_running_loop()
    lanes = [Lane(f"lane-{i}", loop, executor=recorder) for i, recorder in enumerate(recorders)]
    registry = Registry(Metrics())
    told: list[tuple[str, list[int], bool]] = []

    def on_warm(model: Model, timings: BatchTimings) -> None:
        assert all(seconds > 0 for _, seconds in timings)
        told.append((str(model), [rows for rows, _ in timings], bool(registry.active_models())))

    deployment = Deployment(
        store,
        registry,
        lanes,
        device=CPU,
        warm_up_sizes=sizes,
        on_warm=on_warm,
        metrics=Metrics(),
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
        assert [recorder.batches for recorder in recorders] == [[(1,), (1, 3)] * 3] * 2
        assert told == [("tiny/1", [1, 4], False)]
        assert [str(model) for model in registry.active_models()] == ["tiny/1"]


async def test_kernels_of_every_padded_size_are_compiled_before_a_version_serves(
    folder, monkeypatch
):
    monkeypatch.setattr(loader, "_use_onednn", lambda *_: (FEWEST_ROWS, 0))
    ran: list[tuple[int, int]] = []  # rows and users
    run = Program.run

    def recording(program: Program, inputs: ModelInputs):
        if threading.current_thread().name.startswith("background"):
            ran.append((inputs.rows, inputs.request_count))
        return run(program, inputs)

    recorders = [Recorder(), Recorder()]
    sizes = [(1,), (20,)]
    async with deployment_on(Store(folder), recorders, sizes) as (deployment, _, told):
        monkeypatch.setattr(Program, "run", recording)
        await deployment.refresh()
        assert ran[-4:] == [(16, 1), (16, 16), (20, 1), (20, 20)]
        assert [recorder.batches for recorder in recorders] == [sizes * 3] * 2
        assert told == [("tiny/1", [1, 20], False)]


async def test_version_that_fails_at_warm_up_is_refused(store):
    recorders = [Recorder(), Recorder(RuntimeError("no such operator"))]
    async with deployment_on(store, recorders) as (deployment, registry, told):
        with pytest.raises(ArtifactInvalid, match="warm-up failed: no such operator"):
            await deployment.refresh()
        assert (registry.active_models(), told) == ([], [])


async def test_version_is_not_warmed_up_on_lanes_that_serve(folder):
    recorders = [Recorder(), Recorder()]
    async with deployment_on(Store(folder), recorders) as (deployment, registry, told):
        await deployment.refresh()
        before = [len(recorder.batches) for recorder in recorders]
        add_version(folder, "tiny", 2)
        await deployment.refresh()
        assert [len(recorder.batches) for recorder in recorders] == before
        assert told[1:] == [("tiny/2", [1, 4], True)]
        assert [str(model) for model in registry.active_models()] == ["tiny/2"]


async def test_new_version_is_loaded_on_one_core_by_a_thread_of_the_same_weight():
    niceness, threads = await BackgroundThread().run(
        lambda: (os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), get_num_threads())
    )
    assert niceness == os.getpriority(os.PRIO_PROCESS, 0)  # less would be a priority inversion
    assert threads == 1
