"""Recorded traffic: complete, without keys, bounded, and harmless when the disk is not."""

import errno
import re
import resource
import shutil
import signal
import sys
import threading
import time
import weakref
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from app.artifacts.artifact_files import read_manifest
from app.artifacts.encoding import Hashed, Listed, write_vocabulary
from app.artifacts.inputs import IdInput, IdListInput
from app.artifacts.publish import publish
from app.artifacts.store import Store
from app.artifacts.traffic_log import TrafficLog, log_files
from app.errors import ConfigurationInvalid
from app.main import gatehouse
from app.scoring import traffic_recorder
from app.scoring.traffic_recorder import TrafficRecorder
from app.settings import Settings
from tests.support.builders import INPUTS, Request, batch, description, scripted
from tests.support.in_process import client_of
from tests.support.model_tables import publish_rows, random_rows
from tests.support.server import running_server
from tests.support.traffic import record_of
from tests.support.waiting import wait_until

FILE = "vocabulary.item.jsonl"
BRANDS = [f"brand-{i}" for i in range(9)]
INPUTS_OF_IDS = (
    INPUTS[0],
    IdListInput(
        name="recent", side="user", vocabulary_size=10, max_length=3, encoding=Hashed(buckets=9)
    ),
    IdInput(name="item", side="candidate", vocabulary_size=10, encoding=Listed(file=FILE)),
    INPUTS[3],
)
COLUMNS: dict[str, Any] = {
    "user": {"age": 31.5, "recent": ["x", ""]},
    "candidates": {
        "item": ["brand-3", "unheard-of", "brand-0"],
        "quality": [[0.1, 0.2], [0.3, 0.4], [16777217, 1e-7]],
    },
    "candidate_keys": ["secret-key-1", "secret-key-2", "secret-key-3"],
    "ranking": {"top_k": 2, "weights": {"click": 0.25}},
}
OBJECTS = COLUMNS | {
    "candidates": [
        {"item": item, "quality": quality}
        for item, quality in zip(*COLUMNS["candidates"].values(), strict=True)
    ]
}
V2 = {
    "id": "secret-id",
    "parameters": {"weights.click": 0.25},
    "inputs": [
        {"name": "age", "shape": [1], "datatype": "FP32", "data": [31.5]},
        {"name": "recent", "shape": [1, 3], "datatype": "BYTES", "data": ["x", "", ""]},
        {"name": "item", "shape": [3], "datatype": "BYTES", "data": COLUMNS["candidates"]["item"]},
        {
            "name": "quality",
            "shape": [3, 2],
            "datatype": "FP32",
            "data": COLUMNS["candidates"]["quality"],
        },
    ],
}


@pytest.fixture
def ids_store(tmp_path):
    described = description(inputs=INPUTS_OF_IDS)
    files = {FILE: write_vocabulary(BRANDS)}
    publish(
        Store(tmp_path / "store"),
        described,
        scripted(Request()),
        batch(INPUTS_OF_IDS),
        files,
    )
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("path", "body", "is_v2"),
    [
        ("/v1/score", COLUMNS, False),
        ("/v1/score", OBJECTS, False),
        ("/v2/models/feed/infer", V2, True),
    ],
)
async def test_a_recorded_request_scores_as_the_original_did(
    ids_store, tmp_path, path, body, is_v2
):
    folder = tmp_path / "log"
    settings = Settings(
        store=ids_store, lanes=1, record=folder, record_share=1, request_timeout_ms=30_000
    )
    headers = {"x-request-id": "secret-request", "authorization": "Bearer secret-token"}
    async with gatehouse(settings) as parts:
        await parts.start()
        async with client_of(parts) as client:
            first = await client.post(path, json=body, headers=headers)
            assert first.status_code == 200, first.text
            wrong = await client.post("/v1/score", json={"user": {"secret": 1}}, headers=headers)
            assert wrong.status_code == 422
            transport_of_record = parts.scorer._recorder
            assert transport_of_record is not None
            transport_of_record.close()
            log = TrafficLog(folder, "feed")
            (recorded,) = log.requests()
            assert ("x-record-id" in first.headers, recorded.id) == (False, "")
            assert log.skipped.count == 0
            document = recorded.document
            assert document["user"] == {"age": 31.5, "recent": ["x"] if is_v2 else ["x", ""]}
            assert document["candidates"]["item"] == COLUMNS["candidates"]["item"]
            expected = {"weights": {"click": 0.25, "dwell": 0.5}, "policy": "default"}
            assert document["ranking"] == expected | ({} if is_v2 else {"top_k": 2})
            again = await client.post(
                "/v1/score",
                content=orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY),
                headers={"content-type": "application/json"},
            )
            for task, scores in again.json()["scores"].items():
                assert scores == [float(str(score)) for score in recorded.scores[task]]
            assert (
                parts.metrics.registry.get_sample_value(
                    "gatehouse_recorded_requests_total", {"result": "written"}
                )
                == 2
            )
    (file,) = log_files(folder, "feed")
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    assert b"secret" not in file.read_bytes()
    assert "secret" not in str(table.to_pylist())
    assert table.column("status").to_pylist() == [200, 422]
    assert table.column("role").to_pylist() == ["active", "active"]
    assert table.column("score.click").to_pylist()[1] is None
    stages = dict(table.column("stages_s").to_pylist()[0])
    assert {"decode", "queue", "compute", "respond"} <= stages.keys()


@pytest.mark.parametrize(
    "candidates",
    [
        [11, 12, 13],
        [11, 99, 12, 13],  # 99 is dropped
        [{"item_id": 11, "quality": [0.5, 0.25]}, 12, 13],
        [{"item_id": 11, "item": 9}, 99, 12, {"item_id": 13, "item": 8}],
        [{"item": 9, "quality": [0.5, 0.25]}, 12],
        {"item_id": [99, 13], "quality": [[0, 1], [2, 3]]},
    ],
)
async def test_a_request_of_keys_is_recorded_with_the_features_of_the_tables(tmp_path, candidates):
    store, folder = tmp_path / "store", tmp_path / "log"
    artifact = publish(Store(store), description(), scripted(Request()), batch())
    manifest = read_manifest(artifact)
    items = random_rows(manifest, "items", [11, 12, 13])
    publish_rows(store, manifest, "items", "item_id", items, unknown="drop")
    publish_rows(store, manifest, "users", "user_id", random_rows(manifest, "users", [42]))
    settings = Settings(store=store, lanes=1, record=folder, record_share=1, record_ids="random")
    async with gatehouse(settings) as parts:
        await parts.start()
        async with client_of(parts) as client:
            request = {"user": 42, "candidates": candidates}
            first = await client.post("/v1/score", json=request)
            assert first.status_code == 200, first.text
            assert parts.scorer._recorder is not None
            parts.scorer._recorder.close()
            (recorded,) = TrafficLog(folder, "feed").requests()
            document = orjson.dumps(recorded.document, option=orjson.OPT_SERIALIZE_NUMPY)
            again = await client.post(
                "/v1/score", content=document, headers={"content-type": "application/json"}
            )
    for task, scores in again.json()["scores"].items():
        sent = first.json()["scores"][task]
        assert scores == [score for score in sent if score is not None]
        assert scores == [sent[position] for position in recorded.positions]
    assert re.fullmatch("[0-9a-f]{32}", recorded.id)
    assert first.headers["x-record-id"] == recorded.id
    assert again.headers["x-record-id"] != recorded.id


class Counts(dict[str, int]):
    """Counts results."""

    def __call__(self, result, number):
        self[result] = self.get(result, 0) + number


def recorder(folder, counts, **changes):
    settings = {"share": 1.0, "max_bytes": 1 << 20, "file_age_s": 0.02}
    return TrafficRecorder(folder, on_counted=counts, **(settings | changes))


def test_the_oldest_files_are_removed_beyond_the_limit(tmp_path):
    counts = Counts()
    record = record_of(rows=2000)
    recording = recorder(tmp_path, counts, max_bytes=100_000)
    for written in range(1, 13):
        recording.add(record)
        wait_until(lambda written=written: counts.get("written") == written)  # type: ignore[misc]
        files = log_files(tmp_path, "feed")
        assert sum(file.stat().st_size for file in files) <= 100_000
    recording.close()
    assert 1 <= len(files) < 12
    assert len(list(TrafficLog(tmp_path, "feed").requests())) == len(files)
    assert files[-1].name.endswith("000012.parquet")
    assert [path for path in (tmp_path / "feed").iterdir() if path.name.startswith(".")] == []


def test_a_record_that_is_written_is_out_of_memory(tmp_path):
    record = record_of()
    assert record.scored is not None
    scores = weakref.ref(record.scored.scores)
    recording = recorder(tmp_path, Counts())
    recording.add(record)
    del record
    wait_until(lambda: scores() is None, "the thread has let go of the record")
    assert len(log_files(tmp_path, "feed")) == 1
    recording.close()


def test_a_folder_has_at_most_so_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(traffic_recorder, "MAX_FILES", 3)
    counts = Counts()
    recording = recorder(tmp_path, counts)
    for written in range(1, 6):
        recording.add(record_of(model="feed" if written % 2 else "other"))
        wait_until(lambda written=written: counts.get("written") == written)  # type: ignore[misc]
    recording.close()
    assert [len(log_files(tmp_path, model)) for model in ("feed", "other")] == [2, 1]


def test_two_processes_share_a_folder(tmp_path):
    counts = Counts()
    recordings = [recorder(tmp_path, counts) for _ in range(2)]
    for recording in recordings:
        recording.add(record_of())
    for recording in recordings:
        recording.close()
    assert len(log_files(tmp_path, "feed")) == 2
    assert len(list(TrafficLog(tmp_path, "feed").requests())) == 2


def test_a_disk_without_room_costs_records_and_recovers(tmp_path, caplog):
    caplog.set_level("INFO")
    counts = Counts()
    recording = recorder(tmp_path, counts)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        for failed in (1, 2, 3):
            recording.add(record_of(rows=20_000))
            wait_until(lambda failed=failed: counts.get("failed") == failed)  # type: ignore[misc]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "feed").iterdir()) == []  # no half of a file
    recording.add(record_of(rows=20_000))
    wait_until(lambda: counts.get("written") == 1)
    recording.close()
    assert caplog.text.count("cannot write recorded traffic: File too large") == 1  # a minute
    assert "traffic is recorded again" in caplog.text


def test_a_folder_that_is_removed_or_replaced_is_made_again(tmp_path):
    counts = Counts()
    folder = tmp_path / "log"
    recording = recorder(folder, counts)
    recording.add(record_of())
    wait_until(lambda: counts.get("written") == 1)
    shutil.rmtree(folder)
    folder.touch()
    recording.add(record_of())
    wait_until(lambda: counts.get("failed") == 1)
    folder.unlink()
    recording.add(record_of())
    wait_until(lambda: counts.get("written") == 2)
    recording.close()
    assert len(log_files(folder, "feed")) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_each_error_of_a_disk_is_counted(tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, "sick disk")

    monkeypatch.setattr(TrafficRecorder, "_write_file", fail)
    counts = Counts()
    recording = recorder(tmp_path, counts)
    recording.add(record_of())
    wait_until(lambda: counts.get("failed") == 1)
    recording.close()


def test_a_slow_disk_drops_records_and_never_blocks_the_caller(tmp_path, monkeypatch):
    release, entered = threading.Event(), threading.Event()

    def block(*_):
        entered.set()
        assert release.wait(30)

    monkeypatch.setattr(TrafficRecorder, "_write_file", block)
    monkeypatch.setattr(traffic_recorder, "MAX_QUEUED_BYTES", 100_000)
    counts = Counts()
    recording = recorder(tmp_path, counts)
    recording.add(record_of())
    assert entered.wait(20)
    record = record_of()
    began = time.thread_time()
    for _ in range(1000):
        recording.add(record)
    assert time.thread_time() - began < 1.0
    assert counts["dropped"] == 1000 + 1 - 100_000 // record.size
    release.set()
    recording.close()
    assert sum(counts.values()) == 1001


def test_a_record_that_cannot_be_written_as_parquet_costs_only_its_file(tmp_path, caplog):
    counts = Counts()
    recording = recorder(tmp_path, counts)
    bad = record_of()
    bad.scored.user.clear()  # type: ignore[union-attr]
    recording.add(bad)
    wait_until(lambda: counts.get("failed") == 1)
    recording.add(record_of())
    wait_until(lambda: counts.get("written") == 1)
    recording.close()
    assert "cannot record traffic" in caplog.text


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_can_never_be_written_is_refused_at_start(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationInvalid, match=r'record: folder ".*" cannot be written: '):
        recorder(tmp_path / name, Counts())


def test_without_pyarrow_the_setting_is_refused_at_start(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ConfigurationInvalid, match=r"needs pyarrow: pip install.*'; an image .* EXTRAS"
    ):
        recorder(tmp_path, Counts())


def test_damaged_files_are_skipped_and_counted(tmp_path):
    recording = recorder(tmp_path, Counts())
    recording.add(record_of())
    recording.close()
    (good,) = log_files(tmp_path, "feed")
    content = good.read_bytes()
    for number, damaged in enumerate((b"", content[:-9], b"PAR1" + bytes(100) + b"PAR1")):
        (tmp_path / "feed" / f"2000-{number}.parquet").write_bytes(damaged)
    (tmp_path / "feed" / "notes.txt").touch()
    log = TrafficLog(tmp_path, "feed")
    assert len(list(log.requests())) == 1
    assert log.skipped.count == 3
    assert log.skipped.reason.startswith("2000-")


def test_a_share_of_the_requests_is_recorded(tmp_path):
    recording = recorder(tmp_path, Counts(), share=0.1)
    taken = sum(recording.takes_next() for _ in range(20_000))
    recording.close()
    assert 1800 < taken < 2200  # 5 standard deviations


@pytest.mark.slow
def test_files_of_a_server_that_was_killed_can_be_read(tmp_path, ids_store):
    folder = tmp_path / "log"
    flags = ("--record", str(folder), "--record-share", "1", "--lanes", "1")
    with running_server(ids_store, tmp_path / "log.txt", *flags) as server:
        for _ in range(20):
            assert httpx.post(f"{server.url}/v1/score", json=COLUMNS).status_code == 200
        assert server.terminate() == 0  # writes what it has
    with running_server(ids_store, tmp_path / "log.txt", *flags) as server:
        for _ in range(20):
            httpx.post(f"{server.url}/v1/score", json=COLUMNS)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    log = TrafficLog(folder, "feed")
    assert len(list(log.requests())) >= 20
    assert log.skipped.count == 0
    assert np.isfinite(next(log.requests()).scores["click"]).all()
