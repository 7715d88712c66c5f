"""Graphs: a padded and replayed batch gets the scores that it gets without a graph."""

import asyncio
import gc
import logging
import re
import weakref
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from app import main
from app.artifacts.columns import column_dtype, column_shape
from app.artifacts.loader import Model, load
from app.artifacts.manifest import Argument, RowsCall
from app.engine.batch import Chunk
from app.engine.gpu.buckets import Buckets
from app.engine.gpu.graphs import Fallbacks, GraphExecutor
from app.engine.hardware import warm_up_batches
from app.engine.lanes import BatchResult, Lane, run
from app.engine.request import QueuedRequest, RequestFeatures, TableRows, TableUse
from app.lifecycle.deployment import Deployment
from app.lifecycle.registry import Registry
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.telemetry.requests import GPU_STAGES
from tests.engine.gpu.test_arena import chunks_of
from tests.engine.test_lanes import batch_of, chunk
from tests.support.builders import CPU, model, own_policies, published
from tests.support.direct import direct_scores
from tests.support.fakes import POISON, sums_model
from tests.support.in_process import client_of
from tests.support.model_tables import MemoryTable
from tests.support.streams import CpuStream

LIMIT = 64
ROWS = RowsCall(
    style="dict",
    arguments=(
        Argument(name="dense", pack=("age", "quality"), dtype="float32"),
        Argument(name="ids", pack=("item", "recent"), dtype="int64"),
    ),
)


class RowsModule(torch.nn.Module):
    """[B, 2]: sums of what the user and the candidate have."""

    def forward(self, packed: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = packed["ids"].clamp(min=0).sum(1).to(torch.float32)  # [B]
        return torch.stack([packed["dense"].sum(1), 0.1 * ids], dim=1)  # [B, 2]


@pytest.fixture
def stream():
    return CpuStream()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def executor(stream, metrics):
    return GraphExecutor(stream, max_batch_rows=LIMIT, fallbacks=Fallbacks(metrics))


def fallbacks(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value("gatehouse_graph_fallback_total", {"model": name})


def scores_of(result: BatchResult) -> npt.NDArray[np.float32]:
    assert not isinstance(result.scores, Exception)
    return result.scores


def golden_chunks(served: Model, sizes) -> list[Chunk]:
    """Requests of so many candidates, made of the model's golden rows."""
    ranking = own_policies(served.manifest).default_options
    golden = served.golden.batch
    requests = int(golden.row_to_request.max()) + 1
    chunks: list[Chunk] = []
    row = 0
    for request, size in enumerate(sizes):
        of = request % requests
        taken = np.arange(row, row + size) % golden.rows
        features = RequestFeatures(
            {name: column[of : of + 1] for name, column in golden.user.items()},
            {name: column[taken] for name, column in golden.candidate.items()},
            size,
            {},
        )
        chunks.append(Chunk(QueuedRequest(served, features, ranking), features, 0, size))
        row += size
    return chunks


def by_position(chunk: Chunk, rng: np.random.Generator) -> Chunk:
    """The same request with its candidates in a table, among others and in another order."""
    features = chunk.features
    inputs = chunk.request.model.manifest.candidate_inputs
    places = rng.permutation(2 * features.rows)[: features.rows]  # [n]
    fields = [(f.name, column_dtype(f), column_shape(f, 1)[1:]) for f in inputs]
    records = np.zeros(2 * features.rows, fields)
    for name, column in features.candidate.items():
        records[name][places] = column
    table = MemoryTable("key", list(range(len(records))), records)
    rows = TableRows(table, places, frozenset(features.candidate))
    used = TableUse(None, rows, {"items": "1"}, {}, None, features.rows)
    return replace(chunk, features=replace(features, candidate={}, tables=used))


@pytest.fixture(scope="module", params=["network", "request", "rows"])
def served(request, tiny, tmp_path_factory) -> Model:
    """A trained network, and small modules of both layouts."""
    if request.param == "network":
        return load(tiny, CPU)
    folder = tmp_path_factory.mktemp("store")
    if request.param == "request":
        return model(folder)
    return load(published(folder, RowsModule(), call=ROWS), CPU)


@pytest.mark.parametrize("sizes", [[1], [33], [3, 1, 2], [1] * 40], ids=str)
def test_graph_gives_the_same_scores_for_rows_of_a_table(served, sizes, executor, metrics):
    chunks = golden_chunks(served, sizes)
    rng = np.random.default_rng(0)
    some = [by_position(part, rng) if rng.random() < 0.7 else part for part in chunks]
    every = [by_position(part, rng) for part in chunks]
    executor(served, chunks)  # captures
    for _ in range(2):
        expected = scores_of(executor(served, chunks))
        np.testing.assert_array_equal(scores_of(executor(served, some)), expected)
        np.testing.assert_array_equal(scores_of(executor(served, every)), expected)
    assert fallbacks(metrics, served.manifest.name) is None


@pytest.mark.parametrize(
    "sizes", [[1], [7], [32], [33], [64], [1, 1], [3, 1, 2], [1] * 32, [1] * 33, [30, 34]], ids=str
)
def test_padded_replay_gives_the_scores_of_the_batch_itself(served, stream, executor, sizes):
    chunks = golden_chunks(served, sizes)
    expected = scores_of(run(served, chunks))
    for _ in range(3):
        result = executor(served, chunks)
        np.testing.assert_allclose(scores_of(result), expected, rtol=1e-5, atol=1e-6)
        assert result.is_finite
    assert stream.captures == 1
    assert stream.replays == 3  # the first is compared with the model itself


def test_replay_does_not_affect_the_next_replay(served, executor):
    larger, smaller = golden_chunks(served, [32]), golden_chunks(served, [5])
    executor(served, larger)
    first = scores_of(executor(served, larger))
    again = scores_of(executor(served, smaller))
    for got, chunks in ((again, smaller), (first, larger)):
        np.testing.assert_allclose(got, scores_of(run(served, chunks)), rtol=1e-5, atol=1e-6)


def test_batches_of_one_bucket_share_a_graph(executor, stream):
    for candidates in range(1, 33):
        executor(sums_model(), [chunk(1, [float(candidates)] * candidates)])
    assert stream.captures == 1
    executor(sums_model(), [chunk(1, [1]), chunk(2, [2])])
    assert stream.captures == 2


def test_batch_over_the_limit_runs_without_a_graph(executor, stream):
    result = executor(sums_model(), [chunk(1, [2.0] * (LIMIT + 1))])
    assert result.scores.tolist() == [[3, 2]] * (LIMIT + 1)
    assert stream.captures == 0


def test_copies_are_timed_separately(executor):
    executor(sums_model(), [chunk(1, [2])])
    result = executor(sums_model(), [chunk(1, [2])])
    assert (result.timing.copy_in_s, result.timing.copy_out_s) == (0.001, 0.002)


def test_model_that_cannot_be_captured_runs_without_graphs_and_is_logged_once(metrics, caplog):
    shared = Fallbacks(metrics)
    streams = [CpuStream(), CpuStream()]
    for stand_in in streams:
        stand_in.refusal = RuntimeError("operation not permitted when stream is capturing")
        executor = GraphExecutor(stand_in, max_batch_rows=LIMIT, fallbacks=shared)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert scores_of(executor(sums_model(), [chunk(1, [2])])).tolist() == [[3, 2]]
    (record,) = caplog.records
    assert record.getMessage() == (
        "model sums/1 runs without CUDA graphs: operation not permitted when stream is capturing"
    )
    assert fallbacks(metrics, "sums") == 1
    assert [stand_in.asked for stand_in in streams] == [1, 1]


def test_graph_that_gives_other_scores_is_not_used(executor, stream, metrics):
    stream.offset = 0.01
    for _ in range(2):
        assert scores_of(executor(sums_model(), [chunk(1, [2])])).tolist() == [[3, 2]]
    assert (stream.captures, stream.replays) == (1, 1)
    assert fallbacks(metrics, "sums") == 1


def test_scores_that_are_both_nan_are_equal(executor, stream, metrics):
    for _ in range(2):
        result = executor(sums_model(), [chunk(1, [2, -2.0])])
        assert np.isnan(result.scores).tolist() == [[False, False], [True, True]]
        assert not result.is_finite
    assert fallbacks(metrics, "sums") is None
    assert stream.replays == 2


def test_error_of_a_model_is_a_result_and_the_executor_runs_on(executor, stream):
    failed = executor(sums_model(), [chunk(1, [POISON])])
    assert "poison" in str(failed.scores)
    assert not failed.is_fatal
    assert stream.asked == 1
    assert scores_of(executor(sums_model(), [chunk(1, [2])])).tolist() == [[3, 2]]


def test_error_of_a_replay_is_a_result(executor):
    executor(sums_model(), [chunk(1, [2])])
    failed = executor(sums_model(), [chunk(1, [POISON])])  # the fake's replay runs the model
    assert isinstance(failed.scores, Exception)
    assert not failed.is_fatal


def test_out_of_memory_is_a_result(executor, stream):
    def full(_size: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stream.device_bytes = full
    failed = executor(sums_model(), [chunk(1, [2])])
    assert isinstance(failed.scores, torch.OutOfMemoryError)
    assert not failed.is_fatal


def test_nothing_runs_on_a_lost_device(executor, stream):
    stream.usable = False
    failed = executor(sums_model(), [chunk(1, [POISON])])
    assert failed.is_fatal
    assert "poison" in str(failed.scores)
    again = executor(sums_model(), [chunk(1, [2])])
    assert again.is_fatal
    assert isinstance(again.scores, RuntimeError)
    assert (stream.asked, stream.captures) == (1, 0)


def test_capture_that_loses_the_device_is_fatal(executor, stream):
    stream.refusal, stream.usable = RuntimeError("an illegal memory access"), False
    assert executor(sums_model(), [chunk(1, [2])]).is_fatal


def test_memory_that_a_lane_keeps_for_a_model_is_freed_with_the_model(tmp_path, stream, executor):
    served = model(tmp_path)
    for sizes in ([1], [1, 2], [40]):
        executor(served, chunks_of(sizes))
    kept = weakref.ref(executor._graphs[served])
    gone = weakref.ref(served)
    assert stream.captures == 3
    del served
    gc.collect()
    assert gone() is None
    assert kept() is None


async def test_lost_lane_is_not_alive_and_reports_it_once(stream, executor):
    lost: list[str] = []
    lane = Lane(
        "lane-0",
        asyncio.get_running_loop(),
        executor=executor,
        on_lost=lambda: lost.append("lane-0"),
    )
    assert scores_of(await lane.run(batch_of(chunk(1, [2])))).tolist() == [[3, 2]]
    assert lane.is_alive(hang_s=1000)
    stream.usable = False
    for _ in range(2):
        assert (await lane.run(batch_of(chunk(1, [POISON])))).is_fatal
    assert not lane.is_alive(hang_s=1000)
    assert lost == ["lane-0"]
    lane.stop()


async def test_every_bucket_has_its_graph_after_warm_up(store, executor):
    lane = Lane("lane-0", asyncio.get_running_loop(), executor=executor)
    batches = warm_up_batches(torch.device("cuda"), min_chunk_rows=1, max_batch_rows=LIMIT)
    registry = Registry(Metrics())
    deployment = Deployment(
        store,
        registry,
        [lane],
        Metrics(),
        device=CPU,
        warm_up_sizes=batches,
        on_warm=lambda *_: None,
    )
    await deployment.refresh()
    (served,) = registry.active_models()
    graphs = executor._graphs[served]
    captured = list(graphs.captured)
    assert set(captured) == set(Buckets(LIMIT))
    assert captured == sorted(captured, key=lambda bucket: -bucket.rows)
    lane.stop()


async def test_service_with_graphs_gives_equal_scores_and_times_its_copies(
    store, tiny, monkeypatch
):
    def lanes(*_, max_batch_rows, metrics, on_lost, **__):
        loop, shared = asyncio.get_running_loop(), Fallbacks(metrics)
        return [
            Lane(
                f"lane-{i}",
                loop,
                executor=GraphExecutor(
                    CpuStream(), max_batch_rows=max_batch_rows, fallbacks=shared
                ),
                on_lost=on_lost,
            )
            for i in range(2)
        ]

    monkeypatch.setattr(main, "start_lanes", lanes)
    settings = Settings(store=store.folder, request_timeout_ms=30_000)
    async with main.gatehouse(settings) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            answer = await client.post("/v1/score", json=example)
            metrics = (await client.get("/metrics")).text
        assert not parts.lost.is_set()
    for task, expected in direct_scores(tiny, example).items():
        assert answer.json()["scores"][task] == pytest.approx(expected, rel=1e-5)
    timing = re.findall(r"(\w+);dur=", answer.headers["server-timing"])
    assert timing == list(GPU_STAGES)
    assert "copy_in;dur=1.000" in answer.headers["server-timing"]
    assert 'gatehouse_stage_duration_seconds_count{stage="copy_out"} 1.0' in metrics
