"""Several processes: start, restart, reload and stop; small stand-ins, then the service."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import REPOSITORY
from tests.support.server import Server, clean_environment, running_server

# Stand-ins that do little


@contextmanager
def brood(folder: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.brood", folder, kind],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream
            stream.close()


def starts(process: subprocess.Popen[str], count: int) -> dict[int, int]:
    """Read so many starts; return the PID of each number's latest one."""
    assert process.stdout
    lines = [process.stdout.readline().split() for _ in range(count)]
    return {int(number): int(pid) for number, pid in lines}


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # The process that adopts orphans here may be slow to collect them.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_processes_with_exit_code_0(tmp_path, stop):
    with brood(tmp_path, "patient") as process:
        pids = starts(process, 2)
        assert set(pids) == {0, 1}
        process.send_signal(stop)
        assert process.wait(30) == 0
        assert all(map(is_gone, pids.values()))


def test_sighup_is_passed_on_to_every_process_and_stops_none(tmp_path):
    with brood(tmp_path, "patient") as process:
        pids = starts(process, 2)
        assert process.stdout
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            lines = {process.stdout.readline() for _ in pids}
            assert lines == {"0 reload\n", "1 reload\n"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_killed_process_is_restarted_and_the_other_continues(tmp_path):
    with brood(tmp_path, "patient") as process:
        first = starts(process, 2)
        os.kill(first[0], signal.SIGKILL)
        second = starts(process, 1)
        assert set(second) == {0}
        assert second[0] != first[0]
        assert not is_gone(first[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize(("kind", "count"), [("frail", 4), ("raises", 2)])
def test_a_failing_process_is_restarted_until_it_runs(tmp_path, kind, count):
    with brood(tmp_path, kind) as process:
        starts(process, 1 + count)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr
        log = process.stderr.read()
    assert log.count("process 0 exited with code 1") == count - 1
    assert ("ValueError: a fault" in log) == (kind == "raises")


def test_a_process_with_nothing_to_serve_stops_all_with_exit_code_2(tmp_path):
    with brood(tmp_path, "unusable") as process:
        assert process.wait(30) == 2
        assert process.stdout
        pids = [int(line.split()[1]) for line in process.stdout]
        assert pids
        assert all(map(is_gone, pids))


def test_a_restarted_process_with_nothing_to_serve_does_not_stop_the_other(tmp_path):
    with brood(tmp_path, "later unusable") as process:
        first = starts(process, 2)
        os.kill(first[0], signal.SIGKILL)
        starts(process, 3)  # twice it finds nothing, then it serves
        assert not is_gone(first[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_process_that_does_not_stop_is_killed_and_the_exit_code_is_1(tmp_path):
    with brood(tmp_path, "stubborn") as process:
        pids = starts(process, 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
        assert all(map(is_gone, pids.values()))


def test_processes_end_with_their_supervisor(tmp_path):
    with brood(tmp_path, "patient") as process:
        pids = starts(process, 2)
        process.kill()
        process.wait(30)
        while not all(map(is_gone, pids.values())):
            time.sleep(0.01)


# The service


def ports(server: Server) -> list[int]:
    """The ports that processes listen on, in the order in which they started to."""
    found = re.findall(r"listening on http://127\.0\.0\.1:(\d+)", server.log.read_text())
    return [int(port) for port in found]


def metrics_ports(server: Server) -> list[int]:
    shared = httpx.URL(server.url).port
    return [port for port in ports(server) if port != shared]


def wait_until_shared(server: Server, times: int) -> None:
    while ports(server).count(httpx.URL(server.url).port or 0) < times:
        assert server.process.poll() is None
        time.sleep(0.02)


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=30)


def scored(port: int) -> float:
    """How many requests a process has scored."""
    text = get(f"http://127.0.0.1:{port}/metrics").text
    found = re.findall(r'gatehouse_requests_total\{.*route="/v1/score",status="200"\} (\S+)', text)
    return sum(map(float, found))


def children(server: Server) -> list[int]:
    task = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [int(pid) for pid in task.read_text().split()]


@pytest.mark.slow
async def test_two_processes_share_a_port_and_one_can_be_killed(store, tmp_path):
    flags = ("--processes", "2", "--metrics-port", "0", "--request-timeout-ms", "30000")
    with running_server(store.folder, tmp_path / "log", *flags) as server:
        await asyncio.to_thread(wait_until_shared, server, 2)
        example = get(f"{server.url}/v1/models/tiny").json()["example_request"]

        async def call() -> bool:
            """Score over a connection of its own, so that the kernel chooses who answers."""
            async with httpx.AsyncClient(timeout=60) as client:
                try:
                    answer = await client.post(f"{server.url}/v1/score", json=example)
                except httpx.TransportError:
                    return False
            return answer.status_code == 200

        assert all([await call() for _ in range(40)])
        shares = [scored(port) for port in metrics_ports(server)]
        assert sum(shares) == 40
        assert all(shares), "one process had every connection"
        assert get(f"{server.url}/metrics").status_code == 404

        os.kill(children(server)[0], signal.SIGKILL)
        answers = [await call() for _ in range(40)]
        assert answers.count(False) <= 1  # it may have been accepted by the one that was killed
        await asyncio.to_thread(wait_until_shared, server, 3)
        assert all([await call() for _ in range(40)])
        *_, restarted = metrics_ports(server)
        assert get(f"http://127.0.0.1:{restarted}/readyz").status_code == 200
        assert scored(restarted) > 0

        calls = [asyncio.create_task(call()) for _ in range(20)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        pids = children(server)
        assert await asyncio.to_thread(server.terminate) == 0
        await asyncio.gather(*calls)
        assert all(map(is_gone, pids))
    messages = [json.loads(line)["message"] for line in server.log.read_text().splitlines()]
    assert sum(each.startswith("process 0 exited with code -9") for each in messages) == 1
    assert sum(each.startswith("shutting down: finishing requests") for each in messages) == 2


def served(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", "serve", "--processes", "2", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
        check=False,
    )


@pytest.mark.slow
def test_a_store_without_a_good_artifact_stops_all_with_2_and_the_reason(tmp_path):
    (tmp_path / "tiny" / "1").mkdir(parents=True)
    (tmp_path / "tiny" / "1" / "model.json").write_text("{}")
    finished = served("--store", str(tmp_path), "--port", "0", "--metrics-port", "0")
    assert finished.returncode == 2
    assert "nothing in the store can be served" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = served("--store", str(tmp_path), "--port", str(port), "--metrics-port", "0")
    assert finished.returncode == 2
    assert finished.stderr.startswith(
        f"gatehouse: cannot listen on 127.0.0.1 port {port}: Address already in use"
    )
    assert finished.stderr.count("\n") == 1
