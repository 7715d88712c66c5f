"""A real Prometheus scrapes a real server, with the configuration in docker/."""

import shutil
import subprocess
import time

import httpx
import pytest

from tests import REPOSITORY
from tests.support.server import free_port, running_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


def test_prometheus_scrapes_the_request_count_of_the_server(store, tmp_path):
    with running_server(store.folder, tmp_path / "log") as server:
        example = httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]
        for _ in range(3):
            httpx.post(f"{server.url}/v1/score", json=example)
        config = (REPOSITORY / "docker" / "prometheus" / "prometheus.yml").read_text()
        assert "gatehouse:8000" in config
        config = config.replace("gatehouse:8000", server.url.removeprefix("http://"))
        (tmp_path / "prometheus.yml").write_text(config)
        shutil.copy(REPOSITORY / "docker" / "prometheus" / "rules.yml", tmp_path)
        port = free_port()
        prometheus = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            query = 'gatehouse_requests_total{route="/v1/score",status="200"}'
            prometheus_url = f"http://127.0.0.1:{port}"
            assert eventual_value(prometheus_url, query) == "3"
            assert eventual_value(prometheus_url, 'up{job="gatehouse"}') == "1"
        finally:
            prometheus.kill()
            prometheus.wait()


def eventual_value(url: str, query: str) -> str:
    """Wait until a query has a result, and return the value of its first series."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/api/v1/query", params={"query": query}).json()
        except httpx.TransportError:
            answer = {"data": {"result": []}}
        if result := answer["data"]["result"]:
            value: str = result[0]["value"][1]
            return value
        time.sleep(0.2)
    raise AssertionError(f"{query} has no value")
