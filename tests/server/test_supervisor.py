"""Several processes: start, restart, reload and stop; small stand-ins, then the service."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.errors import ExitCode
from app.server.in_process import post_json
from app.server.process import _Process
from app.settings import Settings
from app.telemetry.siblings import TIMEOUT_S, Member
from tests import REPOSITORY
from tests.support.doors import GATE, native, service_of_sums
from tests.support.server import Server, failed_start, running_server
from tests.support.waiting import wait_until

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
        wait_until(lambda: all(map(is_gone, pids.values())), "processes end")


# The service


def ports(server: Server) -> list[int]:
    """The ports that processes listen on, in the order in which they started to."""
    found = re.findall(r"listening on http://127\.0\.0\.1:(\d+)", server.log.read_text())
    return [int(port) for port in found]


def metrics_port(server: Server) -> int:
    [found] = set(ports(server)) - {httpx.URL(server.url).port}
    return found


def wait_until_shared(server: Server, times: int) -> None:
    def is_shared() -> bool:
        assert server.process.poll() is None
        return ports(server).count(httpx.URL(server.url).port or 0) >= times

    wait_until(is_shared, f"{times} processes listen", patience_s=60)


def get(url: str) -> httpx.Response:
    return httpx.get(url)


def samples(url: str, name: str, **labels: str) -> dict[str, float]:
    """The sum of a metric's samples with these labels, by process."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(get(f"{url}/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                process = sample.labels["process"]
                found[process] = found.get(process, 0) + sample.value
    return found


def scored(url: str) -> dict[str, float]:
    """How many requests each process has scored."""
    return samples(url, "gatehouse_requests_total", route="/v1/score", status="200")


def private_mib(pid: int) -> float:
    """The memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def has_pending(pid: int, sent: signal.Signals) -> bool:
    """Whether a signal waits for a process that is stopped."""
    [pending] = re.findall(r"ShdPnd:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(pending, 16) >> (sent - 1) & 1)


@pytest.mark.slow
async def test_two_processes_share_a_port_and_one_can_be_killed(store, tmp_path):
    flags = ("--processes", "2", "--metrics-port", "0", "--request-timeout-ms", "30000")
    with running_server(store.folder, tmp_path / "log", *flags) as server:
        await asyncio.to_thread(wait_until_shared, server, 2)
        example = get(f"{server.url}/v1/models/tiny").json()["example_request"]

        ids: list[str] = []

        async def call() -> bool:
            """Score over a connection of its own, so that the kernel chooses who answers."""
            async with httpx.AsyncClient(timeout=60) as client:
                try:
                    answer = await client.post(f"{server.url}/v1/score", json=example)
                except httpx.TransportError:
                    return False
            ids.append(answer.headers["x-request-id"])
            return answer.status_code == 200

        assert all([await call() for _ in range(40)])
        metrics = f"http://127.0.0.1:{metrics_port(server)}"
        shares = scored(metrics)
        assert set(shares) == {"0", "1"}
        assert sum(shares.values()) == 40
        assert all(shares.values()), "one process had every connection"
        assert get(f"{server.url}/metrics").status_code == 404

        os.kill(server.children()[0], signal.SIGKILL)
        answers = [await call() for _ in range(40)]
        assert answers.count(False) <= 1  # it may have been accepted by the one that was killed
        await asyncio.to_thread(wait_until_shared, server, 3)
        assert all([await call() for _ in range(40)])
        after = scored(metrics)
        assert after["0"] > 0  # it was restarted
        assert after["1"] > shares["1"]

        calls = [asyncio.create_task(call()) for _ in range(20)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        pids = server.children()
        assert await asyncio.to_thread(server.terminate) == 0
        await asyncio.gather(*calls)
        assert all(map(is_gone, pids))
        assert len(set(ids)) == len(ids)  # forks of one process draw different random numbers
    messages = [json.loads(line)["message"] for line in server.log.read_text().splitlines()]
    assert sum(message.startswith("process 0 exited with code -9") for message in messages) == 1
    assert sum(message.startswith("shutting down: finishing requests") for message in messages) == 2


@pytest.mark.slow
def test_any_process_answers_a_scrape_for_all_even_if_one_does_not(store, tmp_path):
    with (
        tempfile.TemporaryDirectory() as temporary,
        running_server(
            store.folder,
            tmp_path / "log",
            *("--processes", "3"),
            environment={"TMPDIR": temporary},
        ) as server,
    ):
        wait_until_shared(server, 3)
        everyone = {"0": 1.0, "1": 1.0, "2": 1.0}
        # On a slow machine, a process may miss the time that a scrape waits for it.
        wait_until(lambda: samples(server.url, "gatehouse_ready") == everyone)
        starts = [samples(server.url, "process_start_time_seconds") for _ in range(10)]
        seen = {process for start in starts for process in start.items()}
        assert len(seen) == 3  # whichever process answered
        assert {number for number, _ in seen} == everyone.keys()

        one = server.children()[0]
        os.kill(one, signal.SIGSTOP)
        text, took_s = first_scrape(server.url)
        os.kill(one, signal.SIGCONT)
        assert 'gatehouse_process_up{process="0"} 0' in text
        assert 'gatehouse_ready{process="0"}' not in text
        assert "gatehouse_ready{" in text
        assert took_s > TIMEOUT_S  # it was waited for
        wait_until(lambda: samples(server.url, "gatehouse_process_up") == everyone)

        # The processes share what the supervisor has imported, and the supervisor has no threads.
        assert len(list(Path(f"/proc/{server.process.pid}/task").iterdir())) == 1
        assert all(private_mib(pid) < 80 for pid in server.children())  # a server has twice that
        [folder] = Path(temporary).iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in folder.iterdir()} == {"0.sock", "1.sock", "2.sock"}
        assert server.terminate() == 0
        assert list(Path(temporary).iterdir()) == []


def first_scrape(url: str) -> tuple[str, float]:
    """Scrape until a process that is not stopped answers; return the metrics and the time (s).

    The kernel also accepts connections for the process that is stopped.
    """
    for _ in range(60):
        began = time.monotonic()
        try:
            text = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S + 1).text
        except httpx.TimeoutException:
            continue
        return text, time.monotonic() - began
    raise AssertionError("no process answers /metrics")


async def test_a_stuck_lane_ends_the_process(tmp_path):
    ignored = signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a slow machine must not end pytest
    try:
        async with service_of_sums(tmp_path, lane_hang_s=0.1) as (parts, gate):
            settings = Settings(store=tmp_path, lane_hang_s=0.1)
            process = _Process(settings, parts, None, Member(tmp_path, 0, 2))
            calling = asyncio.create_task(post_json(parts.app, GATE, native()))
            await gate.is_entered()
            await process._end_when_stuck()
            assert process._exit_code == ExitCode.FAILED
            assert process._server.should_exit
            assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
            gate.open()
            await calling
    finally:
        signal.signal(signal.SIGALRM, ignored)


@pytest.mark.slow
def test_a_process_whose_event_loop_is_stuck_ends_and_is_restarted(store, tmp_path):
    flags = ("--processes", "2", "--lane-hang-s", "4")  # longer than a slow machine stops
    with running_server(store.folder, tmp_path / "log", *flags) as server:
        wait_until_shared(server, 2)
        stuck, other = server.children()
        os.kill(stuck, signal.SIGSTOP)
        wait_until(lambda: has_pending(stuck, signal.SIGALRM))
        os.kill(stuck, signal.SIGCONT)
        wait_until_shared(server, 3)
        assert f"exited with code {-signal.SIGALRM}" in server.log.read_text()
        assert is_gone(stuck)
        assert other in server.children()


def served(*flags: str) -> subprocess.CompletedProcess[str]:
    return failed_start("--processes", "2", *flags)


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
