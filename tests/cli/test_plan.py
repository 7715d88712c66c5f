"""`gatehouse plan` on a real server, and on a store."""

import argparse
import functools
import io
import json
from dataclasses import replace

import pytest
import yaml

from app.benchmarking.load import Plan, Refusal, Report
from app.benchmarking.replica import Replica, fleet
from app.benchmarking.requests import Post
from app.cli import plan as command, replica_costs
from app.cli.load_target import Target
from app.cli.main import main
from app.cli.plan import _lines, _scaler
from app.cli.replica_costs import CannotMeasure, Measured, _busy, _Usage, _usage_in
from app.cli.started_server import _last_reason, environment_of_server
from app.errors import ExitCode
from tests.support.builders import published
from tests.support.server import free_port, running_server

OBJECTIVE = ("--rate", "100000", "--p99", "2s", "--rows", "20")


KEY = "a-key-that-is-long-enough-for-this-test"


@pytest.fixture
def brief(monkeypatch):
    """Measure for less than a second."""
    monkeypatch.setattr(replica_costs, "_QUIET_S", 0.3)
    monkeypatch.setattr(replica_costs, "_BUSY_S", 0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_plan_of_a_store_adds_up(tmp_path, capsys, monkeypatch):
    published(tmp_path / "store")
    for name, value in (  # for servers, but not for the one that is started
        ("PROCESSES", "2"),
        ("METRICS_PORT", str(free_port())),
        ("KEYS", f"load:{KEY}"),
        ("RECORD", str(tmp_path / "recorded")),
        ("RECORD_SHARE", "1"),
        ("DRAIN_DELAY_S", "600"),
    ):
        monkeypatch.setenv(f"GATEHOUSE_{name}", value)
    monkeypatch.setenv("GATEHOUSE_MIN_CHUNK_ROWS", "7")  # for the server that is started
    monkeypatch.setenv("GATEHOUSE_MAX_BATCH_ROWS", "200")
    monkeypatch.setenv("GATEHOUSE_MAX_WAIT_MS", "1.5")
    arguments = ["plan", "--store", str(tmp_path / "store"), *OBJECTIVE, "--price", "0.05"]
    assert main([*arguments, "--json"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert err == ""
    plan = json.loads(out)
    replica = plan["measured"]["replica"]
    assert 0 < replica["front_s"] < 0.1
    assert 0 < replica["batch_s"] < 0.1
    assert replica["rows"] == 20
    assert (replica["min_chunk_rows"], replica["max_batch_rows"]) == (7, 200)
    assert replica["max_wait_s"] == 1.5e-3
    assert plan["measured"]["request_bytes"] > plan["measured"]["response_bytes"] / 100 > 0
    assert plan["replicas"] * plan["planned"]["rate"] == pytest.approx(100_000)
    assert plan["planned"]["rate"] <= 0.7 * plan["capacity"]["rate"]
    assert plan["capacity"]["rate"] <= min(plan["limits"].values())
    assert plan["cores"] == plan["replicas"] * replica["cores"]
    per_hour = plan["cores"] * 0.05
    assert plan["cost_per_million_candidates"] == pytest.approx(per_hour / (2e6 * 3600) * 1e6)
    assert plan["network_bits_per_s"]["in"] == 100_000 * 8 * plan["measured"]["request_bytes"]
    assert plan["measured"]["processes"] == 1
    assert not (tmp_path / "recorded").exists()


def test_started_server_has_the_settings_that_change_costs_and_no_others():
    kept = {"GATEHOUSE_LANES": "3", "GATEHOUSE_POLICIES": "p.toml", "HOME": "/root"}
    others = ("KEYS", "processes", "METRICS_PORT", "TLS_CERT", "HOST", "RECORD")
    given = {f"GATEHOUSE_{name}": "2" for name in others}
    given |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector", "gatehouse_port": "1"}
    taken = environment_of_server(kept | given | {"PYTHONPATH": "/mine"})
    assert taken.pop("PYTHONPATH").endswith(":/mine")
    assert taken == kept


def test_store_without_artifacts_is_refused_at_once(tmp_path, capsys):
    store = tmp_path / "store"
    store.mkdir()
    assert main(["plan", "--store", str(store), *OBJECTIVE]) == ExitCode.FAILED
    assert capsys.readouterr().err == f'gatehouse: store "{store}" has no artifacts\n'
    published(store).folder.rename(store / "feed" / "one")
    assert main(["plan", "--store", str(store), *OBJECTIVE]) == ExitCode.FAILED
    assert f'store "{store}" has no artifacts; feed/one: ' in capsys.readouterr().err


@pytest.mark.slow
def test_reason_of_a_server_that_does_not_start_is_shown(tmp_path, capsys):
    published(tmp_path / "store")
    policies = tmp_path / "policies.toml"
    policies.write_text("[polices]")
    assert main(["plan", "--store", str(tmp_path / "store"), *OBJECTIVE]) == ExitCode.FAILED
    err = capsys.readouterr().err
    assert err.startswith(f"gatehouse: the server of the store has ended: {policies}: ")
    assert "polices" in err.removeprefix(str(policies))


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (b'gatehouse: port: taken\n{"level": "info", "message": "bye"}\n', "port: taken"),
        (b'{"level": "error", "message": "bad"}\n{"level": "info", "message": "bye"}\n', "bad"),
        (b"Traceback (most recent call last):\nMemoryError\n", "MemoryError"),
        (b"", ""),
    ],
)
def test_last_reason_is_the_error_in_what_a_server_wrote(written, reason):
    assert _last_reason(io.BytesIO(written)) == reason


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_server_of_two_processes_with_a_port_for_metrics_is_planned(tmp_path, capsys, monkeypatch):
    published(tmp_path / "store")
    metrics = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("GATEHOUSE_KEY", KEY)
    flags = ["--processes", "2", "--lanes", "1", "--metrics-port", metrics.rpartition(":")[2]]
    flags += ["--max-candidates", "50", "--max-queue-rows", "50"]  # two requests fill the queue
    environment = {"GATEHOUSE_KEYS": f"load:{KEY}"}
    log = tmp_path / "log"
    with running_server(tmp_path / "store", log, *flags, environment=environment) as server:
        arguments = ["plan", "--url", server.url, *OBJECTIVE, "--json"]
        assert main(arguments) == ExitCode.FAILED
        assert f"{server.url}/metrics responds with status 404: " in (
            err := capsys.readouterr().err
        )
        assert "GATEHOUSE_METRICS_PORT, give --metrics-url" in err
        for place in (metrics, f"{metrics}/metrics"):
            assert main([*arguments, "--metrics-url", place]) == ExitCode.OK
            plan = json.loads(capsys.readouterr().out)
    assert plan["measured"]["processes"] == 2
    assert plan["measured"]["replica"]["lanes"] == plan["measured"]["replica"]["cores"] == 1
    assert plan["cores"] == 2 * plan["replicas"]
    assert plan["limits"]["event loop"] == pytest.approx(2 / plan["measured"]["replica"]["front_s"])
    assert plan["planned"]["rate"] <= 0.7 * plan["capacity"]["rate"]


@pytest.fixture
def fired(monkeypatch):
    """Return a function that lets the load be refused from some number of connections on."""

    def install(limit, refusal):
        tried = []

        def fire(plan):
            tried.append(plan.connections)
            is_refused = plan.connections >= limit
            rows = [(0, refusal.status if is_refused else 200, 0.1, False, 0.0, 0.0, 0.0)]
            return Report.of_rows(plan, rows, refusal=refusal if is_refused else None)

        monkeypatch.setattr("app.benchmarking.load.fire", fire)
        used = iter(_Usage(n, n, n, 20 * n, 1) for n in range(100))
        monkeypatch.setattr(replica_costs, "_usage", lambda _: next(used))
        return tried

    return install


TARGET = Target("feed/1", Plan(1, [b""]), Post("/v1/score", b"{}", {}), "cpu")


def test_load_that_does_not_fit_into_the_limits_is_halved(fired):
    tried = fired(10, Refusal(429, "request bodies together"))
    report, used = _busy(TARGET, "http://here", "http://here", 32)
    assert tried == [32, 16, 8]
    assert report.statuses == {200: 1}
    assert used.batches == 1  # of the load that fitted


@pytest.mark.parametrize(("status", "attempts"), [(429, [4, 2, 1]), (503, [4])])
def test_refused_load_is_shown_with_its_reason(fired, status, attempts):
    tried = fired(1, Refusal(status, "too much"))
    message = f"http://here responds with status {status}: too much"
    with pytest.raises(CannotMeasure, match=message):
        _busy(TARGET, "http://here", "http://here", 4)
    assert tried == attempts


@pytest.fixture
def measured_as(monkeypatch):
    """Return a function that measures a stand-in for a server on a device."""

    def measured(device, processes, busy):
        usage = _Usage(0, 0, 0, 0, 1, processes)
        monkeypatch.setattr(replica_costs, "target_of", lambda _: replace(TARGET, device=device))
        monkeypatch.setattr(replica_costs, "_response_bytes", lambda *_: 100)
        monkeypatch.setattr(replica_costs, "_usage", lambda _: usage)
        monkeypatch.setattr("app.benchmarking.load.fire", lambda _: None)
        cost = {"batch_ms": 1.0, "row_us": 1.0, "max_batch_rows": 512}
        engine = {"lanes": [1], "min_chunk_rows": 64, "max_wait_ms": 0.0, "max_queue_rows": 1000}
        monkeypatch.setattr(replica_costs, "_engine_of", lambda *_: (engine, cost))
        report = Report.of_rows(TARGET.plan, [(0, 200, 0.1, False, 0.0, 0.0, 0.0)] * 10)
        monkeypatch.setattr(replica_costs, "_busy", lambda *_: (report, busy))
        options = argparse.Namespace(
            url="http://here", metrics_url=None, rows=20, lanes=None, cores=3
        )
        return replica_costs.measure(options)

    return measured


def test_cores_are_divided_between_processes(measured_as):
    measured = measured_as("cpu", 2, _Usage(1, 2, 10, 200, 9, 2))
    assert (measured.processes, measured.replica.cores, measured.memory_bytes) == (2, 1.5, 9)


def test_processes_that_share_a_gpu_are_not_planned(measured_as):
    busy = _Usage(1, 2, 10, 200, 9, 2)
    with pytest.raises(CannotMeasure, match="http://here has 2 processes that share a GPU"):
        measured_as("cuda:0", 2, busy)


@pytest.mark.parametrize("busy", [_Usage(1, 2, 4, 80, 9, 2), _Usage(1, 2, 10, 200, 9, 1)])
def test_metrics_of_another_server_are_told(measured_as, busy):
    """Ten requests of twenty rows were served by two processes."""
    with pytest.raises(CannotMeasure, match="do not show the requests that http://here served"):
        measured_as("cpu", 2, busy)


METRICS = """\
# TYPE gatehouse_event_loop_cpu_seconds_total counter
gatehouse_event_loop_cpu_seconds_total{process="0"} 1.5
gatehouse_event_loop_cpu_seconds_total{process="1"} 2.0
process_cpu_seconds_total{process="0"} 3.0
process_cpu_seconds_total{process="1"} 4.0
gatehouse_batch_rows_count{process="0"} 10.0
gatehouse_batch_rows_count{process="1"} 20.0
gatehouse_batch_rows_sum{process="0"} 1e+03
gatehouse_batch_rows_sum{process="1"} 500.0
process_resident_memory_bytes{process="0"} 2.5e+08
process_resident_memory_bytes{process="1"} 2.5e+08
gatehouse_process_up{process="0"} 1
gatehouse_process_up{process="1"} 1
"""


def test_usage_is_the_sum_of_all_processes():
    assert _usage_in(METRICS, "here") == _Usage(3.5, 7.0, 30, 1500, 500_000_000, 2)
    alone = METRICS.replace('{process="0"}', "").replace('{process="1"}', '{other="1"}')
    assert _usage_in(alone, "here") == _Usage(1.5, 3.0, 10, 1000, 250_000_000, 1)
    with pytest.raises(CannotMeasure, match="here lacks the metrics of process 1: try again"):
        _usage_in(METRICS.replace('up{process="1"} 1', 'up{process="1"} 0'), "here")
    with pytest.raises(CannotMeasure, match="here has no series gatehouse_batch_rows_sum"):
        _usage_in(METRICS.replace("rows_sum", "rows"), "here")


def test_plan_renders_the_autoscaler_and_names_the_limit():
    replica = Replica(rows=50, front_s=3e-4, batch_s=2e-4, row_s=1e-5, lanes=2, cores=2)
    plan = fleet(replica, 10_000, 0.05, 0.3)
    assert plan is not None
    measured = Measured("feed/7", replica, 20_000, 1_000, 300_000_000)
    options = argparse.Namespace(
        rate=10_000, scaler="hpa", name="ranker", namespace="feeds", form="json", headroom=0.3,
        price=0.05,
    )  # fmt: skip
    rendered = yaml.safe_load(_scaler(plan, options))
    assert rendered["kind"] == "HorizontalPodAutoscaler"
    assert rendered["spec"]["scaleTargetRef"]["name"] == "ranker"
    assert rendered["spec"]["minReplicas"] == 2
    assert rendered["spec"]["maxReplicas"] == 2 * plan.replicas
    (metric,) = rendered["spec"]["metrics"]
    busy = float(metric["external"]["target"]["averageValue"])
    assert busy == pytest.approx(max(plan.planned.lane_share, plan.planned.front_share), abs=0.006)
    text = "\n".join(_lines(measured, plan, options))
    assert "0.200 ms + 10.00 µs a row, 2 lanes on 2 cores" in text
    assert "(limit: cores, " in text
    assert f"replicas     {plan.replicas}, headroom 30%" in text
    assert "network      1.60 Gbit/s in, 0.08 Gbit/s out" in text
    assert f"cost         {plan.replicas * 2 * 0.05 / (500_000 * 3600) * 1e6:.4g} per" in text


NOT_THERE = "cannot connect to http://127.0.0.1:1: "


def test_mistakes_are_one_line(tmp_path, capsys):
    for arguments, code, message in (
        (["--rate", "1"], ExitCode.USAGE, "missing --p99"),
        ([*OBJECTIVE, "--headroom", "1"], ExitCode.USAGE, "must be a share from 0 to below 0.95"),
        ([*OBJECTIVE, "--store", str(tmp_path / "no")], ExitCode.USAGE, "does not exist"),
        ([*OBJECTIVE, "--url", "http://127.0.0.1:1"], ExitCode.FAILED, NOT_THERE),
        ([*OBJECTIVE, "--scaler", "vpa"], ExitCode.USAGE, "vpa"),
        ([*OBJECTIVE, "--name", "Bad_Name"], ExitCode.USAGE, "must be 1 to 63 lowercase letters"),
        ([*OBJECTIVE, "--metrics-url", "http://here:9"], ExitCode.USAGE, "it needs --url"),
        (["--rate", "1e12", "--p99", "9ms"], ExitCode.USAGE, "above 0 and below 10000000"),
    ):
        assert main(["plan", *arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1


REPLICA = Replica(rows=50, front_s=3e-4, batch_s=2e-4, row_s=1e-5, lanes=2, cores=2)
FLEETS = functools.cache(fleet)  # it takes seconds


def planned(monkeypatch, capsys, *arguments, processes=1):
    """Run the command on made-up costs; return its exit code and its output."""
    measured = Measured("feed/7", REPLICA, 20_000, 1_000, 300_000_000, processes)
    monkeypatch.setattr(command, "measure", lambda _: measured)
    monkeypatch.setattr("app.benchmarking.replica.fleet", FLEETS)
    code = main(["plan", "--url", "http://here", "--rate", "9000", *arguments])
    return code, *capsys.readouterr()


def test_plan_is_text_json_or_an_object(monkeypatch, capsys):
    code, text, _ = planned(monkeypatch, capsys, "--p99", "50ms")
    assert code == ExitCode.OK
    assert text.startswith("measured: feed/7, 50 candidates, json, 20,000 bytes in")
    _, document, _ = planned(monkeypatch, capsys, "--p99", "50ms", "--json")
    replicas = json.loads(document)["replicas"]
    assert f"replicas     {replicas}, " in text
    _, rendered, _ = planned(monkeypatch, capsys, "--p99", "50ms", "--scaler", "keda")
    assert yaml.safe_load(rendered)["spec"]["maxReplicaCount"] == 2 * replicas


def test_replica_of_two_processes_has_twice_the_lanes_and_event_loops(monkeypatch, capsys):
    def plan(processes):
        *_, out = planned(
            monkeypatch, capsys, "--p99", "50ms", "--json", "--price", "1", processes=processes
        )[:2]
        return json.loads(out)

    one, two = plan(1), plan(2)
    assert two["capacity"]["rate"] == 2 * one["capacity"]["rate"]
    assert two["limits"] == {name: 2 * rate for name, rate in one["limits"].items()}
    assert two["replicas"] == -(-one["replicas"] // 2)
    assert two["replicas"] * two["planned"]["rate"] == pytest.approx(9000)
    assert two["cores"] == two["replicas"] * 2 * REPLICA.cores
    _, text, _ = planned(monkeypatch, capsys, "--p99", "50ms", processes=2)
    assert "  processes    2, each with such a loop and such lanes\n" in text


def test_objective_that_one_request_misses_is_an_error(monkeypatch, capsys):
    code, out, err = planned(monkeypatch, capsys, "--p99", "0.8ms")
    assert (code, out) == (ExitCode.FAILED, "")
    assert "no number of replicas meets p99 0.8 ms: a request of 50 candidates alone takes 1" in err


def test_cost_model_is_scaled_to_the_cpu_time_of_the_lanes():
    """20 batches of 10 rows should cost 0.2 s, but the lanes used 0.15 s: others had the cores."""
    used = _Usage(loop_s=0.5, process_s=0.65, batches=20, rows=200, memory_bytes=0)
    assert used.lane_scale(0.005, 0.0005) == pytest.approx(0.75)


def test_batches_count_once_whoever_runs_them():
    """10 s of CPU time, of which 1000 batches of 2 rows have taken 1000 · (2 + 2 · 1) ms."""
    used = _Usage(loop_s=7.0, process_s=10.0, batches=1000, rows=2000, memory_bytes=1)
    assert used.without_batches_s(2e-3, 1e-3) == pytest.approx(6.0)
    assert used.lane_scale(2e-3, 1e-3) == pytest.approx(3 / 4)
    # A cost model from a disturbed machine says that the batches took all of the time.
    assert used.without_batches_s(20e-3, 1e-3) == pytest.approx(7 / 4)
