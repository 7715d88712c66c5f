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


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_dashboard_marks_each_activation_and_no_canary_or_shadow(tmp_path):
    (annotation,) = DASHBOARD["annotations"]["list"]
    # Version 2 is loaded as a canary from minute 3 on and active from minute 5 to 9; then version 1
    # is, which stayed loaded. A second replica follows a minute later each time.
    series = {
        'gatehouse_model_info{job="gatehouse", instance="a", model="feed", version="1"}': (
            "1x4 stale _x4 1x10"
        ),
        'gatehouse_model_info{job="gatehouse", instance="b", model="feed", version="1"}': (
            "1x5 stale _x4 1x9"
        ),
        'gatehouse_model_info{job="gatehouse", instance="a", model="feed", version="2"}': (
            "_x5 1x4 stale"
        ),
        'gatehouse_model_info{job="gatehouse", instance="b", model="feed", version="2"}': (
            "_x6 1x4 stale"
        ),
        'gatehouse_model_swaps_total{job="gatehouse", instance="a", model="feed", '
        'result="activated"}': "1x2 2x20",
    }
    marked = {5: "2", 10: "1"}  # minute to version
    checks = [
        {
            "expr": annotation["expr"],
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{model="feed", version="{marked[minute]}"}}', "value": 1}]
            if minute in marked
            else [],
        }
        for minute in range(1, 16)
    ]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": checks,
    }
    file = tmp_path / "annotation_test.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    finished = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert annotation["titleFormat"] == "{{model}}/{{version}}"


def test_scaling_signal_has_one_value_for_a_server_under_load(prometheus):
    assert 0 < float(eventual_value(prometheus, "gatehouse:replicas_demanded:rate1m > 0")) < 1
    assert eventual_value(prometheus, "count(gatehouse:replicas_demanded:rate1m)") == "1"


def test_no_alert_fires_at_a_healthy_server(prometheus):
    eventual_value(prometheus, "gatehouse:lane_busy:ratio_rate5m")  # the rules were evaluated
    alerts = httpx.get(f"{prometheus}/api/v1/alerts").json()["data"]["alerts"]
    assert [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"] == []
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
