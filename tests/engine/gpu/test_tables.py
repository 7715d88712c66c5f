"""Candidates that are gathered on the device get the scores that they get on the host."""

import asyncio
import gc
import logging
import random
import shutil

import numpy as np
import pytest
import torch

from app import main
from app.artifacts.artifact_files import read_manifest
from app.artifacts.loader import load
from app.artifacts.manifest import Manifest
from app.artifacts.tables.table import Table, open_table
from app.engine.batch import Chunk
from app.engine.gpu.graphs import Fallbacks, GraphExecutor
from app.engine.gpu.tables import DeviceTables
from app.engine.lanes import Lane, run
from app.engine.request import QueuedRequest, RequestFeatures, TableRows, TableUse
from app.settings import Settings
from app.telemetry.metrics import Metrics
from tests.engine.gpu.test_graphs import golden_chunks, scores_of
from tests.support.builders import CPU, own_policies
from tests.support.in_process import client_of
from tests.support.model_tables import change_rows, publish_rows, random_rows
from tests.support.streams import CpuStream

LIMIT = 64
KEYS = list(range(1, 101))
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def served(tiny):
    return load(tiny, CPU)


@pytest.fixture
def manifest(tiny):
    return read_manifest(tiny)


@pytest.fixture
def stream():
    return CpuStream()


@pytest.fixture
def memory():
    return CpuStream()


@pytest.fixture
def tables(memory):
    return DeviceTables(memory, MEGABYTE)


@pytest.fixture
def executor(stream, tables):
    return executor_of(stream, tables)


@pytest.fixture
def twin():
    """It gathers everything on the host."""
    return executor_of(CpuStream(), None)


def executor_of(stream, tables) -> GraphExecutor:
    return GraphExecutor(
        stream, max_batch_rows=LIMIT, fallbacks=Fallbacks(Metrics()), tables=tables
    )


def opened(folder, manifest, kind="items", keys=KEYS, seed=0, **changes) -> Table:
    """Publish a table in a folder and open it."""
    key = "item_id" if kind == "items" else "user_id"
    rows = random_rows(manifest, kind, keys, seed)
    return open_table(publish_rows(folder, manifest, kind, key, rows, **changes), manifest.name)


def changed(table: Table, folder, manifest, keys, seed=9) -> Table:
    """Publish a delta of the newest items table and return the view with it."""
    rows = random_rows(manifest, "items", keys, seed)
    return table.extended(change_rows(folder, manifest, "items", "item_id", rows))


def request_of(served, items, keys, sent=(), users=None, user=1) -> Chunk:
    """A request of keys; `sent` features come with it, as the golden rows have them."""
    (golden,) = golden_chunks(served, [len(keys)])
    names = frozenset(feature.name for feature in served.manifest.candidate_inputs) - set(sent)
    candidate = {name: golden.features.candidate[name] for name in sent}
    rows = TableRows(items, items.find(np.array(keys, np.int64)), names)
    user_rows, user_columns = None, golden.features.user
    if users is not None:
        names = frozenset(feature.name for feature in served.manifest.user_inputs)
        user_rows, user_columns = TableRows(users, users.find(np.array([user])), names), {}
    used = TableUse(user_rows, rows, {}, {}, None, len(keys))
    features = RequestFeatures(user_columns, candidate, len(keys), {}, used)
    ranking = own_policies(served.manifest).default_options
    return Chunk(QueuedRequest(served, features, ranking), features, 0, len(keys))


def both(executor, twin, served, chunks, times=1) -> bool:
    """Check that a batch has the same scores, bit for bit, with and without tables on a device.

    Returns:
        Whether it was gathered on the device the last time.
    """
    for _ in range(times):
        before = executor._stream.replays
        got, want = executor(served, chunks), twin(served, chunks)
        np.testing.assert_array_equal(scores_of(got), scores_of(want))
        assert got.is_finite == want.is_finite
    replays: int = executor._stream.replays - before
    return replays == 2  # of the graph that unpacks records, and of the model's


@pytest.mark.parametrize("deltas", [0, 2])
@pytest.mark.parametrize("sent", [(), ("item_id",)], ids=["keys", "with a feature"])
@pytest.mark.parametrize("has_users", [False, True], ids=["", "users"])
def test_rows_of_a_table_on_the_device_give_the_scores_of_the_host(
    tmp_path, served, manifest, executor, twin, tables, deltas, sent, has_users
):
    rng = random.Random(0)
    items = opened(tmp_path, manifest)
    for number in range(deltas):
        items = changed(items, tmp_path, manifest, rng.sample(range(1, 140), 30), seed=number)
    users = opened(tmp_path, manifest, "users") if has_users else None
    tables.place(items)
    for _ in range(40):
        sizes = [rng.randint(1, 9) for _ in range(rng.randint(1, 7))]
        chunks = [
            request_of(
                served, items, rng.choices(range(1, 150), k=n), sent, users, rng.randint(1, 110)
            )
            for n in sizes
        ]
        assert both(executor, twin, served, chunks, times=3)


def test_part_of_a_request_is_gathered_on_the_device(
    tmp_path, served, manifest, executor, twin, tables
):
    items = opened(tmp_path, manifest)
    tables.place(items)
    whole = request_of(served, items, [*range(1, 60), 999], ["item_id"])
    for spans in ([(0, 20)], [(13, 31), (0, 4)], [(40, 60)]):
        chunks = [Chunk(whole.request, whole.features, *span) for span in spans]
        assert both(executor, twin, served, chunks, times=3)


def test_every_input_is_the_same_as_on_the_host_with_its_padding(
    tmp_path, served, manifest, executor, twin, tables
):
    document = manifest.model_dump(mode="json")
    for feature in document["inputs"]:
        if feature["name"] == "quality":
            feature["default"] = [0.25] * feature["dim"]
    with_default = Manifest.model_validate(document)
    items = opened(tmp_path, with_default)
    items = changed(items, tmp_path, with_default, [3, 200])
    assert items.base.records[-1]["quality"].all()
    tables.place(items)
    full = [request_of(served, items, [200] * 16) for _ in range(2)]
    some = [request_of(served, items, [1, 200, 3, 999]), request_of(served, items, [7])]
    for chunks in (full, full, some, some):  # the larger batch leaves its rows behind
        both(executor, twin, served, chunks)
    ours, theirs = executor._graphs[served].captured, twin._graphs[served].captured
    for bucket, captured in ours.items():
        for name, column in captured.received.candidate.items():
            assert torch.equal(column, theirs[bucket].received.candidate[name])
        for name, column in captured.received.user.items():
            assert torch.equal(column, theirs[bucket].received.user[name])
        assert torch.equal(captured.received.row_to_request, theirs[bucket].received.row_to_request)


def test_batches_of_several_tables_or_forms_are_gathered_on_the_host(
    tmp_path, served, manifest, executor, twin, tables
):
    old = opened(tmp_path, manifest)
    new = changed(old, tmp_path, manifest, [3])
    other = opened(tmp_path, manifest, seed=1)
    for table in (old, new):
        tables.place(table)
    (plain,) = golden_chunks(served, [5])
    one = request_of(served, old, [1, 2, 3])
    for another in (
        request_of(served, new, [1, 2, 3]),
        request_of(served, other, [1, 2, 3]),
        request_of(served, old, [4], ["item_id"]),
        plain,
    ):
        for chunks in ([one, another], [another, one]):
            assert not both(executor, twin, served, chunks, times=3)
    chunks = [request_of(served, other, [1])]  # it has no copy
    assert not both(executor, twin, served, chunks, times=3)
    assert not tables._excluded


def test_tables_with_other_columns_take_turns(tmp_path, served, manifest, executor, twin, tables):
    names = [feature.name for feature in manifest.candidate_inputs]
    rows = random_rows(manifest, "items", KEYS)
    fewer = {key: {name: row[name] for name in names[1:]} for key, row in rows.items()}
    all_columns = opened(tmp_path, manifest)
    listed = publish_rows(tmp_path, manifest, "items", "item_id", fewer)
    without = open_table(listed, manifest.name)
    for table in (all_columns, without):
        tables.place(table)
    for _ in range(2):
        for items, sent in ((all_columns, ()), (without, names[:1])):
            chunks = [request_of(served, items, [1, 2, 99], sent)]
            assert both(executor, twin, served, chunks, times=3)


def test_string_keys_are_gathered_on_the_device(tmp_path, served, manifest, executor, twin, tables):
    rows = {f"item {key}": row for key, row in random_rows(manifest, "items", KEYS).items()}
    listed = publish_rows(tmp_path, manifest, "items", "name", rows)
    items = open_table(listed, manifest.name)
    tables.place(items)
    chunk = request_of(served, opened(tmp_path, manifest), [1])
    positions = items.find(["item 7", "none", "item 99"])
    names = frozenset(items.columns)
    used = TableUse(None, TableRows(items, positions, names), {}, {}, None, 3)
    features = RequestFeatures(chunk.features.user, {}, 3, {}, used)
    assert both(executor, twin, served, [Chunk(chunk.request, features, 0, 3)], times=3)


def test_a_large_table_is_copied_in_parts(tmp_path, manifest, memory, monkeypatch):
    monkeypatch.setattr("app.engine.gpu.tables._STAGING", 1000)
    items = opened(tmp_path, manifest)
    tables = DeviceTables(memory, MEGABYTE)
    tables.place(items)
    base = tables._copies[items].base
    content = base.records.numpy().view(items.base.records.dtype).reshape(-1)
    np.testing.assert_array_equal(content[1:-1], items.base.records[:-1])
    np.testing.assert_array_equal(content[0], items.base.records[-1])
    for name, column in base.fields(base.records).items():
        np.testing.assert_array_equal(column.numpy(), content[name])


def test_copies_are_freed_when_nothing_holds_their_view(tmp_path, served, manifest, tables):
    items = opened(tmp_path, manifest)
    newer = changed(items, tmp_path, manifest, [1, 2, 3])
    record = items.base.records.dtype.itemsize
    tables.place(items)
    assert tables.bytes() == 102 * record
    tables.place(newer)
    assert tables.bytes() == 105 * record  # the rows of the table are shared
    running = request_of(served, items, [1])
    del items
    gc.collect()
    assert len(tables._copies) == 2
    del running
    gc.collect()
    assert len(tables._copies) == 1
    assert tables.bytes() == 105 * record
    del newer
    gc.collect()
    assert tables.bytes() == 0


def test_table_that_is_too_large_stays_on_the_host_until_there_is_room(
    tmp_path, served, manifest, executor, twin, stream, memory, caplog
):
    record = opened(tmp_path, manifest).base.records.dtype.itemsize
    tables = DeviceTables(memory, 150 * record)
    executor = executor_of(stream, tables)
    old, new = opened(tmp_path, manifest), opened(tmp_path, manifest, seed=1)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            tables.place(old)
            tables.place(new)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "INFO",
            f"table items/2 of model tiny is in the GPU's memory, {102 * record / 1e6:.1f} MB",
        ),
        (
            "WARNING",
            "table items/3 of model tiny stays in the host's memory: the GPU has no room for its "
            f"{102 * record / 1e6:.1f} MB: {102 * record / 1e6:.1f} MB of {150 * record / 1e6:.1f} "
            "MB are in use",
        ),
    ]
    assert not both(executor, twin, served, [request_of(served, new, [1, 2])], times=3)
    del old
    gc.collect()
    tables.place(new)
    assert both(executor, twin, served, [request_of(served, new, [1, 2])], times=2)


def test_table_for_which_memory_runs_out_stays_on_the_host(
    tmp_path, served, manifest, executor, twin, memory, tables, caplog
):
    items = opened(tmp_path, manifest)
    size = 102 * items.base.records.dtype.itemsize
    memory.room = size + 10
    tables.place(items)
    newer = changed(items, tmp_path, manifest, [1, 2, 3])
    for _ in range(3):
        tables.place(newer)
    (record,) = caplog.records
    assert "items/1.1 of model tiny stays in the host's memory" in record.getMessage()
    assert record.getMessage().endswith(" MB: CUDA out of memory")
    assert tables.bytes() == size
    assert not both(executor, twin, served, [request_of(served, newer, [1, 2])], times=3)
    assert both(executor, twin, served, [request_of(served, items, [1, 2])], times=3)


@pytest.mark.parametrize("fault", ["capture", "scores", "memory"])
def test_model_that_cannot_be_gathered_on_the_device_is_gathered_on_the_host(
    fault, tmp_path, served, manifest, executor, twin, stream, memory, tables, caplog
):
    items = opened(tmp_path, manifest)
    tables.place(items)
    chunks = [request_of(served, items, [1, 2, 3])]
    both(executor, twin, served, chunks)
    if fault == "capture":
        stream.refusal = RuntimeError("operation not permitted")
    elif fault == "memory":
        stream.room = 0
    else:
        with memory.scope():
            tables._copies[items].base.records[1:-1] = 0
    assert not both(executor, twin, served, chunks, times=3)
    other_lane = executor_of(CpuStream(), tables)
    other_lane(served, chunks)
    assert not both(other_lane, twin, served, chunks, times=2)
    (record,) = caplog.records
    assert record.getMessage().startswith("model tiny/1 gathers its candidates on the host: ")


def test_lost_device_is_reported_by_the_first_gathered_batch(
    tmp_path, served, manifest, executor, stream, tables
):
    items = opened(tmp_path, manifest)
    tables.place(items)
    chunks = [request_of(served, items, [1, 2, 3])]
    scores_of(executor(served, chunks))
    stream.refusal, stream.usable = RuntimeError("an illegal memory access"), False
    assert executor(served, chunks).is_fatal


def test_model_without_graphs_is_gathered_on_the_host(tmp_path, served, manifest, tables):
    items = opened(tmp_path, manifest)
    tables.place(items)
    stream = CpuStream()
    stream.refusal = RuntimeError("it reads a value on the host")
    executor = executor_of(stream, tables)
    chunks = [request_of(served, items, [1, 2, 3])]
    for _ in range(2):
        expected = scores_of(run(served, chunks))
        np.testing.assert_array_equal(scores_of(executor(served, chunks)), expected)


@pytest.fixture
def on_stand_in(monkeypatch, memory):
    """Let the service run on stand-ins of a GPU; return their streams."""
    streams = [CpuStream(), CpuStream()]

    def lanes(*_, max_batch_rows, metrics, on_lost, tables, **__):
        loop, shared = asyncio.get_running_loop(), Fallbacks(metrics)
        metrics.watch_device_memory({"tables": tables.bytes})
        return [
            Lane(
                f"lane-{i}",
                loop,
                executor=GraphExecutor(
                    stand_in, max_batch_rows=max_batch_rows, fallbacks=shared, tables=tables
                ),
                on_lost=on_lost,
            )
            for i, stand_in in enumerate(streams)
        ]

    monkeypatch.setattr(main, "start_lanes", lanes)
    monkeypatch.setattr(main, "device_tables", lambda _, budget: DeviceTables(memory, budget))
    return streams


async def scores_of_keys(client, keys) -> tuple[str, dict[int, dict[str, float]]]:
    """Ask for the scores of keys; return the table's label, and the scores by key and task."""
    sent = {"user": 1, "candidates": keys, "candidate_keys": keys}
    response = await client.post("/v1/models/tiny/score", json=sent)
    assert response.status_code == 200, response.text
    answer = response.json()
    scores = {
        key: {task: of[i] for task, of in answer["scores"].items()} for i, key in enumerate(keys)
    }
    return answer["tables"]["items"], scores


async def test_each_request_has_one_table_while_tables_on_the_device_are_swapped(
    tmp_path, tiny, manifest, on_stand_in
):
    shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
    opened(tmp_path, manifest)
    opened(tmp_path, manifest, "users")
    rng = random.Random(0)
    wanted, answers = {}, []
    stop = asyncio.Event()

    async def ask_always(client) -> None:
        while not stop.is_set():
            keys = rng.sample(KEYS, rng.randint(1, 12))
            answers.append(await scores_of_keys(client, keys))

    settings = Settings(
        store=tmp_path, max_batch_rows=LIMIT, request_timeout_ms=30_000, gpu_table_bytes=MEGABYTE
    )
    async with main.gatehouse(settings) as parts, client_of(parts) as client:
        await parts.start()
        tasks = [asyncio.create_task(ask_always(client)) for _ in range(4)]
        for turn in range(6):
            if turn % 2:
                opened(tmp_path, manifest, seed=turn)
            else:
                rows = random_rows(manifest, "items", rng.sample(KEYS, 50), turn)
                change_rows(tmp_path, manifest, "items", "item_id", rows)
            await parts.deployment.refresh()
            label, scores = await scores_of_keys(client, KEYS)
            wanted[label] = scores
            await asyncio.sleep(0.03)
        stop.set()
        await asyncio.gather(*tasks)
        gc.collect()
        metrics = (await client.get("/metrics")).text
        (model,) = parts.service.registry.active_models()
        items = parts.service.registry.tables[model].items
    assert items is not None
    assert list(wanted) == ["1.1", "2", "2.1", "3", "3.1", "4"]
    seen = [label for label, _ in answers if label in wanted]
    assert set(seen) == set(wanted)
    for label, scores in answers:
        for key, got in scores.items():
            assert got == pytest.approx(wanted.get(label, {}).get(key, got), rel=1e-5), label
    # Some were gathered there:
    assert any(stand_in.replays > len(stand_in.copied) for stand_in in on_stand_in)
    held = 102 * items.table.base.records.dtype.itemsize
    assert f'gatehouse_device_memory_bytes{{kind="tables"}} {held:.1f}' in metrics
