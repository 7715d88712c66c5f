"""`gatehouse plan` on a real server, and on a store."""

import argparse
import functools
import json

import pytest
import yaml

from app.benchmarking.replica import Replica, fleet
from app.cli import plan as command, replica_costs
from app.cli.main import main
from app.cli.plan import _lines, _scaler
from app.cli.replica_costs import Measured, _Usage
from app.errors import ExitCode
from tests.support.builders import published

OBJECTIVE = ("--rate", "100000", "--p99", "2s", "--rows", "20")


@pytest.mark.slow
def test_plan_of_a_store_adds_up(tmp_path, capsys, monkeypatch):
    published(tmp_path / "store")
    monkeypatch.setattr(replica_costs, "_QUIET_S", 0.3)
    monkeypatch.setattr(replica_costs, "_BUSY_S", 0.5)
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
        (["--rate", "1e12", "--p99", "9ms"], ExitCode.USAGE, "above 0 and below 10000000"),
    ):
        assert main(["plan", *arguments]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1


REPLICA = Replica(rows=50, front_s=3e-4, batch_s=2e-4, row_s=1e-5, lanes=2, cores=2)
FLEETS = functools.cache(fleet)  # it takes seconds


def planned(monkeypatch, capsys, *arguments):
    """Run the command on made-up costs; return its exit code and its output."""
    measured = Measured("feed/7", REPLICA, 20_000, 1_000, 300_000_000)
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
