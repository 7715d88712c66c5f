"""A real server: a process, a socket, requests and signals."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.artifacts.publish import publish
from app.artifacts.store import Store
from tests.end_to_end.test_docker import run_health_check
from tests.support.artifacts import add_version, corrupt
from tests.support.direct import direct_scores
from tests.support.server import (
    Server,
    failed_start,
    free_port,
    patient_environment,
    running_server,
    wait_for,
)
from tests.support.slow import HANGS, slow_module
from tests.support.waiting import until, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with running_server(store.folder, log, "--request-timeout-ms", "30000") as server:
        yield server


def random_request(rng, example):
    size = int(rng.integers(1, 400))
    return {
        "user": example["user"] | {"user_id": int(rng.integers(1, 60))},
        "candidates": {
            "item_id": rng.integers(1, 50, size).tolist(),
            "category": rng.integers(1, 5, size).tolist(),
            "quality": rng.normal(size=(size, 2)).round(4).tolist(),
        },
    }


def test_scores_over_http_equal_those_of_the_torchscript_file(server, tiny):
    example = httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]
    answer = httpx.post(f"{server.url}/v1/models/tiny/score", json=example).json()
    for task, expected in direct_scores(tiny, example).items():
        assert answer["scores"][task] == pytest.approx(expected, rel=1e-5)


async def test_two_hundred_concurrent_requests_each_get_their_own_scores(server, tiny):
    rng = np.random.default_rng(1)
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
        example = (await client.get("/v1/models/tiny")).json()["example_request"]
        requests = [random_request(rng, example) for _ in range(200)]
        answers = await asyncio.gather(
            *(client.post("/v1/score", json=request) for request in requests)
        )
    for request, answer in zip(requests, answers, strict=True):
        assert answer.status_code == 200
        scores = answer.json()["scores"]
        for task, expected in direct_scores(tiny, request).items():
            assert scores[task] == pytest.approx(expected, rel=1e-4)


def test_health_check_of_the_image_passes(server, tmp_path):
    assert run_health_check(tmp_path, int(server.url.rpartition(":")[2])) == 0


def test_malformed_bodies_do_not_stop_the_server(server):
    score = f"{server.url}/v1/models/tiny/score"
    headers = {"content-type": "application/json"}
    rng = np.random.default_rng(2)
    example = json.dumps(httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"])
    for _ in range(100):
        damaged = bytearray(example.encode())
        for position in rng.integers(0, len(damaged), 3):
            damaged[position] = int(rng.integers(0, 256))
        assert httpx.post(score, content=bytes(damaged), headers=headers).status_code in (
            200,  # some damage leaves a valid request
            400,
            422,
        )
    assert httpx.post(score, content=example, headers=headers).status_code == 200


def test_a_body_over_the_limit_is_refused_while_it_is_sent(server):
    def endless():
        for _ in range(40):
            yield b" " * (1 << 20)

    response = httpx.post(
        f"{server.url}/v1/score", content=endless(), headers={"content-type": "application/json"}
    )
    assert response.status_code == 413


async def test_a_disconnected_client_does_not_affect_others(server):
    address = server.url.removeprefix("http://").split(":")
    head = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    for sent in (head, head + b"content-length: 1000\r\n\r\n{", b"\x00\x01garbage\r\n\r\n"):
        _, writer = await asyncio.open_connection(address[0], int(address[1]))
        writer.write(sent)
        await writer.drain()
        writer.close()
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/livez")).status_code == 200


def http_request(body: bytes) -> bytes:
    return (
        b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )


def is_whole_answer(received: bytes) -> bool:
    head, _, body = received.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"content-length: (\d+)", head)
    return head.startswith(b"HTTP/1.1 200 OK\r\n") and len(body) == int(length)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_loses_no_request_and_exits_with_0(store, tmp_path, stop):
    log = tmp_path / "log"
    flags = ("--body-timeout-ms", "60000", "--log-sample", "1")
    with running_server(store.folder, log, *flags) as server:
        host, port = server.url.removeprefix("http://").split(":")
        async with httpx.AsyncClient(base_url=server.url) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
        rng = np.random.default_rng(3)
        received: list[bytes] = []

        async def caller() -> None:
            """Call on a new connection each time, until one is refused or reset."""
            while True:
                body = json.dumps(random_request(rng, example)).encode()
                try:
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(http_request(body).replace(b"host", b"connection: close\r\nhost"))
                    answer = await reader.read()
                    writer.close()
                except ConnectionError:
                    return
                if not answer:
                    return
                received.append(answer)

        # Half of one request arrives before the signal, the rest after it.
        slow = http_request(json.dumps(example).encode())
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(slow[:-20])
        callers = [asyncio.create_task(caller()) for _ in range(8)]
        await until(lambda: len(received) > 40)
        server.process.send_signal(stop)
        await asyncio.sleep(0.1)
        server.process.send_signal(stop)  # a second signal changes nothing
        await asyncio.gather(*callers)
        await asyncio.sleep(0.3)
        writer.write(slow[-20:])
        received.append(await reader.read())
        writer.close()
        assert await asyncio.to_thread(server.process.wait, 30) == 0
    assert all(map(is_whole_answer, received))
    assert b"connection: close" in received[-1]
    # Every request whose headers the server has seen was answered, and the client got the answer.
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    statuses = [line["status"] for line in logged if line.get("route") == "/v1/score"]
    assert statuses == [200] * len(received)


def test_a_draining_server_answers_and_is_not_ready(store, tmp_path):
    with running_server(store.folder, tmp_path / "log", "--drain-delay-s", "3") as server:
        example = httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code != 200, "not ready")
        answer = httpx.post(f"{server.url}/v1/score", json=example)
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        assert server.process.wait(30) == 0


async def test_a_hanging_model_does_not_keep_the_server_from_exiting(tmp_path):
    publish(Store(tmp_path / "store"), *slow_module())
    flags = ("--drain-timeout-s", "1", "--lanes", "1", "--request-timeout-ms", "600000")
    with running_server(tmp_path / "store", tmp_path / "log", *flags) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            request = {"candidates": {"x": [HANGS]}}
            hanging = asyncio.create_task(client.post("/v1/score", json=request))
            while (await client.get("/v1/engine")).json()["idle_lanes"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for _ in range(5):  # further signals change nothing, late ones neither
                server.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
            assert await asyncio.to_thread(server.process.wait, 30) == 0
            assert (await hanging).status_code == 500


def test_with_an_empty_store_it_is_alive_and_serves_the_first_artifact(store, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    with running_server(folder, tmp_path / "log", "--store-poll-s", "0.05", ready=False) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert httpx.post(f"{server.url}/v1/score", json={}).status_code == 503
        shutil.copytree(store.folder / "tiny", folder / "copy")
        (folder / "copy").rename(folder / "tiny")
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, "ready")
        assert server.terminate() == 0


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "golden", "manifest"])
def test_a_store_whose_only_artifact_is_bad_exits_with_2_and_the_reason(store, tmp_path, damage):
    shutil.copytree(store.folder / "tiny", tmp_path / "tiny")
    version = tmp_path / "tiny" / "1"
    match damage:
        case "flipped bit":
            corrupt(version / "model.ts")
            reason = "tiny/1: model.ts: its SHA-256 differs from the manifest"
        case "truncated":
            content = (version / "model.ts").read_bytes()
            (version / "model.ts").write_bytes(content[:-100])
            reason = f"tiny/1: model.ts: has {len(content) - 100} bytes, the manifest says"
        case "golden":
            corrupt(version / "golden.safetensors")
            reason = "tiny/1: golden.safetensors: its SHA-256"
        case _:
            (version / "model.json").write_text("{}")
            reason = "tiny/1: model.json: "
    finished = failed_start("--store", str(tmp_path), "--port", "0")
    assert finished.returncode == 2
    assert reason in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_newer_version_is_activated_while_serving(store, tmp_path):
    folder = tmp_path / "store"
    shutil.copytree(store.folder, folder)
    with running_server(folder, tmp_path / "log", "--store-poll-s", "0.05") as server:
        assert httpx.get(f"{server.url}/v1/models/tiny").json()["version"] == 1
        add_version(folder, "tiny", 2)
        url = f"{server.url}/v1/models/tiny"
        wait_until(lambda: httpx.get(url).json()["version"] == 2, "version 2 is active")
        assert server.terminate() == 0


def test_sighup_reads_store_keys_and_policies_at_once(store, tmp_path):
    folder, keys, policies = tmp_path / "store", tmp_path / "keys", tmp_path / "policies.toml"
    shutil.copytree(store.folder, folder)
    keys.write_text(f"anna:{'old-' * 5}")
    policies.write_text("")
    flags = ("--keys-file", str(keys), "--policies", str(policies), "--store-poll-s", "3600")
    with running_server(folder, tmp_path / "log", *flags) as server:
        add_version(folder, "tiny", 2)
        keys.write_text(f"anna:{'new-' * 5}")
        policies.write_text("[policy.extra]\nformula = 'power_product'\nweights = {click = 1}")
        server.process.send_signal(signal.SIGHUP)
        url = f"{server.url}/v1/models/tiny"
        wait_until(lambda: httpx.get(url).json()["version"] == 2, "version 2 is active")
        card = httpx.get(url).json()

        def status(secret: str) -> int:
            return httpx.post(
                f"{server.url}/v1/score",
                json=card["example_request"] | {"ranking": {"policy": "extra"}},
                headers={"authorization": f"Bearer {secret}"},
            ).status_code

        wait_until(lambda: status("new-" * 5) == 200, "the new key is accepted")
        assert status("old-" * 5) == 401
        assert server.terminate() == 0


def test_a_signal_while_models_load_and_warm_up_exits_with_0_and_no_traceback(store, tmp_path):
    folder = tmp_path / "store"
    shutil.copytree(store.folder, folder)
    for name in ("a", "b", "c", "d"):
        add_version(folder, name, 1, name=name)
    for number, delay_s in enumerate((0.0, 0.1, 0.2)):
        log = tmp_path / f"log-{number}"
        flags = ("--max-batch-rows", "4096")
        with running_server(folder, log, *flags, ready=False) as server:
            time.sleep(delay_s)
            assert server.terminate() == 0
        assert "Traceback" not in log.read_text()
        assert "has no artifacts" not in log.read_text()


def test_log_that_is_not_read_does_not_block_the_server(store):
    port = free_port()
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "app", "serve", "--store", str(store.folder)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--log-sample", "1"],
        stderr=writer,
        env=patient_environment(),
    )
    os.close(writer)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(Server(process, url, Path(os.devnull)), "/readyz")
        with httpx.Client(base_url=url, timeout=30) as client:
            for _ in range(600):  # 200 bytes of log each, into a pipe of 64 kB
                assert client.get("/v1/engine").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert len(os.read(reader, 1 << 20)) > 60_000
    finally:
        process.kill()
        process.wait()
        os.close(reader)


def test_the_log_is_json(server):
    httpx.get(f"{server.url}/nowhere")
    lines = server.log.read_text().splitlines()
    assert all(json.loads(line)["level"] for line in lines)
    assert any("model tiny/1 is active" in line for line in lines)
