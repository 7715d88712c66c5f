"""A real Prometheus, with the configuration in docker/, scrapes a real server under load."""

import json
import math
import shutil
import subprocess
import threading
import time

import httpx
import pytest
import yaml

from tests import REPOSITORY
from tests.support.server import free_port, running_server

FOLDER = REPOSITORY / "docker"
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/gatehouse.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
PATIENCE_S = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


@pytest.fixture(scope="module")
def prometheus(store, tmp_path_factory):
    """Return the URL of a Prometheus that scrapes a server; the server scores all the time."""
    folder = tmp_path_factory.mktemp("prometheus")
    policies = folder / "policies.toml"
    policies.touch()
    with running_server(store.folder, folder / "log", "--policies", str(policies)) as server:
        example = httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]
        for _ in range(3):
            httpx.post(f"{server.url}/v1/score", json=example)
        config = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        job, _ = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config | {"scrape_configs": [job]}))
        for name in ("rules.yml", "scaling.yml"):
            shutil.copy(FOLDER / "prometheus" / name, folder)
        port = free_port()
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        stopped = threading.Event()

        def load() -> None:
            with httpx.Client() as client:
                while not stopped.wait(0.05):
                    client.post(f"{server.url}/v1/models/tiny/score", json=example)

        thread = threading.Thread(target=load)
        try:
            query = 'gatehouse_requests_total{route="/v1/score",status="200"}'
            assert eventual_value(url, query) == "3"
            thread.start()
            yield url
        finally:
            stopped.set()
            if thread.ident:
                thread.join()
            process.kill()
            process.wait()


def test_prometheus_finds_the_server_up(prometheus):
    assert eventual_value(prometheus, 'up{job="gatehouse"}') == "1"


@pytest.mark.parametrize("query", QUERIES)
def test_query_of_the_dashboard_returns_data(prometheus, query):
    query = query.replace("$instance", ".*").replace("$__rate_interval", "20s")
    assert "$" not in query
    assert float(eventual_value(prometheus, query)) >= 0


def test_dashboard_has_no_query_that_is_left_out_of_the_test():
    assert len(QUERIES) >= 30
    assert json.dumps(DASHBOARD["panels"]).count('"expr"') == len(QUERIES)


def test_scaling_signal_has_one_value_for_a_server_under_load(prometheus):
    assert 0 < float(eventual_value(prometheus, "gatehouse:replicas_demanded:rate1m > 0")) < 1
    assert eventual_value(prometheus, "count(gatehouse:replicas_demanded:rate1m)") == "1"


def test_no_alert_fires_at_a_healthy_server(prometheus):
    eventual_value(prometheus, "gatehouse:lane_busy:ratio_rate5m")  # the rules were evaluated
    alerts = httpx.get(f"{prometheus}/api/v1/alerts").json()["data"]["alerts"]
    assert [each["labels"]["alertname"] for each in alerts if each["state"] == "firing"] == []
    groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]


def eventual_value(url: str, query: str) -> str:
    """Wait until a query has a result that is a number, and return its first one."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/api/v1/query", params={"query": query}).json()
        except (httpx.TransportError, json.JSONDecodeError):  # it is still starting
            answer = {"data": {"result": []}}
        for series in answer["data"]["result"]:
            value: str = series["value"][1]
            if not math.isnan(float(value)):
                return value
        time.sleep(0.2)
    raise AssertionError(f"{query} has no value")
