"""The service on a GPU gives what it gives on the CPU."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from app.artifacts.loader import load
from app.artifacts.program import Program
from app.engine.gpu.cuda import CudaStream, memory_bytes
from app.engine.gpu.graphs import Fallbacks, GraphExecutor
from app.engine.gpu.tables import DeviceTables
from app.engine.lanes import run
from app.main import gatehouse
from app.settings import Settings
from app.telemetry.metrics import Metrics
from tests import REPOSITORY
from tests.engine.gpu.test_graphs import ROWS, RowsModule, fallbacks, golden_chunks, scores_of
from tests.engine.gpu.test_tables import changed, opened, request_of
from tests.engine.test_lanes import chunk
from tests.support.builders import published
from tests.support.direct import direct_scores
from tests.support.fakes import Sums, sums_model
from tests.support.in_process import client_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

GPU = torch.device("cuda")
LIMIT = 64


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def executor(metrics):
    return GraphExecutor(CudaStream(GPU), max_batch_rows=LIMIT, fallbacks=Fallbacks(metrics))


def test_an_artifact_passes_its_golden_check_on_the_gpu(tiny):
    model = load(tiny, GPU)
    assert model.program.device.type == "cuda"


async def test_scores_of_the_gpu_are_those_of_the_torchscript_file(store, tiny):
    settings = Settings(store=store.folder, device="cuda", request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            response = await client.post("/v1/score", json=example)
            metrics = (await client.get("/metrics")).text
    for task, expected in direct_scores(tiny, example).items():
        assert response.json()["scores"][task] == pytest.approx(expected, rel=1e-4)
    assert "copy_in;dur=" in response.headers["server-timing"]
    assert 'gatehouse_device_memory_bytes{kind="allocated"}' in metrics
    assert "gatehouse_graph_fallback_total{" not in metrics


@pytest.mark.parametrize("layout", ["network", "rows"])
@pytest.mark.parametrize("sizes", [[1], [33], [3, 1, 2], [1] * 40], ids=str)
def test_a_captured_graph_gives_what_the_model_gives(
    layout, sizes, tiny, tmp_path, executor, metrics
):
    module = RowsModule() if layout == "rows" else None
    artifact = tiny if module is None else published(tmp_path, module, call=ROWS)
    model = load(artifact, GPU)
    chunks = golden_chunks(model, sizes)
    expected = scores_of(run(model, chunks))
    for _ in range(4):
        result = executor(model, chunks)
        np.testing.assert_allclose(scores_of(result), expected, rtol=1e-4, atol=1e-5)
    assert result.timing.copy_in_s > 0
    assert fallbacks(metrics, model.manifest.name) is None


def test_a_model_that_looks_at_values_on_the_host_falls_back(executor, metrics):
    cpu = sums_model()
    module = torch.jit.freeze(torch.jit.script(Sums().eval().to(GPU)))
    model = type(cpu)(cpu.manifest, Program(module, cpu.manifest, GPU), cpu.golden)
    for _ in range(3):
        assert scores_of(executor(model, [chunk(1, [2])])).tolist() == [[3, 2]]
    assert fallbacks(metrics, "sums") == 1


def test_lanes_capture_and_replay_beside_each_other(tiny, metrics):
    model = load(tiny, GPU)
    shared = Fallbacks(metrics)
    wrong: list[str] = []

    def work(seed: int) -> None:
        mine = GraphExecutor(CudaStream(GPU), max_batch_rows=LIMIT, fallbacks=shared)
        random = np.random.default_rng(seed)
        for _ in range(200):
            chunks = golden_chunks(model, random.integers(1, 9, int(random.integers(1, 8))))
            got, want = scores_of(mine(model, chunks)), scores_of(run(model, chunks))
            if not np.allclose(got, want, rtol=1e-4, atol=1e-5):
                wrong.append(f"{seed}: {np.abs(got - want).max()}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert fallbacks(metrics, "tiny") is None


def test_memory_of_graphs_is_freed_with_their_model(tiny, executor):
    allocated = memory_bytes(GPU)["allocated"]
    gc.collect()
    before = allocated()
    model = load(tiny, GPU)
    executor(model, golden_chunks(model, [40]))
    assert allocated() > before
    del model
    gc.collect()
    torch.cuda.synchronize()
    assert allocated() <= before + (64 << 20)  # what libraries keep for a stream


@pytest.mark.parametrize("sent", [(), ("item_id",)], ids=["keys", "with a feature"])
def test_rows_of_a_table_on_the_gpu_give_the_scores_of_the_host(tmp_path, tiny, metrics, sent):
    model = load(tiny, GPU)
    tables = DeviceTables(CudaStream(GPU), 10**8)
    ours, twin = (
        GraphExecutor(
            CudaStream(GPU),
            max_batch_rows=LIMIT,
            fallbacks=Fallbacks(metrics),
            tables=device_tables,
        )
        for device_tables in (tables, None)
    )
    base = opened(tmp_path, model.manifest)
    items = changed(base, tmp_path, model.manifest, [3, 4, 200])
    tables.place(base)
    tables.place(items)
    random = np.random.default_rng(0)
    for sizes in ([1], [33], [3, 1, 2], [1] * 40):
        for table in (base, items):
            chunks = [
                request_of(model, table, random.integers(1, 210, n).tolist(), sent) for n in sizes
            ]
            assert tables.shared(model, chunks) is not None
            for _ in range(4):
                got, want = scores_of(ours(model, chunks)), scores_of(twin(model, chunks))
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert not tables._excluded
    assert tables.bytes() == 105 * base.base.records.dtype.itemsize
    del base, items, table, chunks
    gc.collect()
    assert tables.bytes() == 0


LOSES_THE_DEVICE = """
import torch
from app.engine.gpu.cuda import CudaStream
stream = CudaStream(torch.device("cuda"))
assert stream.is_usable()
try:
    torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")].cpu()
except RuntimeError:
    print("usable" if stream.is_usable() else "lost")
"""


def test_lost_device_is_detected():
    finished = subprocess.run(
        [sys.executable, "-c", LOSES_THE_DEVICE],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout == "lost\n"
