"""A process whose device is lost answers what it has and ends; a supervisor restarts it."""

import json
import subprocess
import sys

import httpx
import pytest

from app.errors import ExitCode
from tests.support.server import Server, free_port, patient_environment, wait_for

pytestmark = pytest.mark.slow


def test_a_lost_device_ends_the_process_with_exit_code_1_after_answering(store, tmp_path):
    port, lost, log = free_port(), tmp_path / "lost", tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.lossy", store.folder, str(port), lost],
            stderr=stderr,
            env=patient_environment(),
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_for(server, "/readyz")
        example = httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]
        assert httpx.post(f"{server.url}/v1/score", json=example).status_code == 200
        lost.touch()
        failed = httpx.post(f"{server.url}/v1/score", json=example)
        assert failed.status_code == 500
        assert failed.json()["type"] == "/problems/inference-failed"
        assert process.wait(30) == ExitCode.FAILED
    finally:
        process.kill()
        process.wait()
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["level"] for record in records].count("critical") == 1
