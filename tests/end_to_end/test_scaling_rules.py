"""The recording rules for autoscaling: promtool runs their unit tests, which notice wrong rules."""

import shutil
import subprocess

import pytest
import yaml

from tests import REPOSITORY

FOLDER = REPOSITORY / "docker" / "prometheus"
RULES = (FOLDER / "scaling.yml").read_text()
SIGNAL = "gatehouse:replicas_demanded:rate1m"
EACH = "job, namespace, service, instance"

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


def promtool(folder, *words):
    command = ["promtool", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_unit_tests_of_the_scaling_rules_pass():
    finished = promtool(FOLDER, "test", "rules", "scaling_test.yml")
    assert finished.returncode == 0, finished.stdout + finished.stderr


MISTAKES = {
    "mean of the replicas' busy shares": (
        "gatehouse:replicas_busy:lanes_rate1m",
        f"sum by (job, namespace, service) (sum by ({EACH}) "
        f"(rate(gatehouse_lane_busy_seconds_total[1m])) / sum by ({EACH}) (gatehouse_lane_alive))",
    ),
    "dead lanes count as capacity": (
        "gatehouse:replicas_busy:lanes_rate1m",
        "sum by (job, namespace, service) (rate(gatehouse_lane_busy_seconds_total[1m])) "
        "/ count by (job, namespace, service) (gatehouse_lane_alive) * gatehouse:replicas:count",
    ),
    "busy lanes beside the lanes there are now, without the number of replicas": (
        "gatehouse:replicas_busy:lanes_rate1m",
        "sum by (job, namespace, service) (rate(gatehouse_lane_busy_seconds_total[1m])) "
        "/ sum by (job, namespace, service) (gatehouse_lane_alive)",
    ),
    "mean of the replicas' shed shares": (
        "gatehouse:shed:ratio_rate1m",
        f"avg by (job, namespace, service) (sum by ({EACH}) (rate(gatehouse_shed_total[1m])) "
        f"/ sum by ({EACH}) (rate(gatehouse_requests_total[1m])) > 0)",
    ),
    "requests of every route": (
        "gatehouse:shed:ratio_rate1m",
        "sum by (job, namespace, service) (rate(gatehouse_shed_total[1m])) "
        "/ sum by (job, namespace, service) (rate(gatehouse_requests_total[1m]))",
    ),
    "NaN without requests": (
        "gatehouse:shed:ratio_rate1m",
        "sum by (job, namespace, service) (rate(gatehouse_shed_total[1m])) "
        "/ sum by (job, namespace, service) "
        '(rate(gatehouse_requests_total{route=~"/v[12]/.*(score|infer)"}[1m]))',
    ),
    "lanes only": (
        SIGNAL,
        "gatehouse:replicas_busy:lanes_rate1m / (1 - clamp_max(gatehouse:shed:ratio_rate1m, 0.9))",
    ),
    "event loops only": (
        SIGNAL,
        "gatehouse:replicas_busy:event_loop_rate1m "
        "/ (1 - clamp_max(gatehouse:shed:ratio_rate1m, 0.9))",
    ),
    "shed requests added to the busy share": (
        SIGNAL,
        "gatehouse:replicas_busy:lanes_rate1m + gatehouse:shed:ratio_rate1m",
    ),
    "no limit for what is shed": (
        SIGNAL,
        "gatehouse:replicas_busy:lanes_rate1m / (1 - gatehouse:shed:ratio_rate1m)",
    ),
    "releases are not kept apart": (
        SIGNAL,
        'max by (job) ({__name__=~"gatehouse:replicas_busy:(lanes|event_loop)_rate1m"}) '
        "/ (1 - clamp_max(max by (job) (gatehouse:shed:ratio_rate1m), 0.9))",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_unit_tests_notice_a_mistake(mistake, tmp_path):
    record, expression = MISTAKES[mistake]
    document = yaml.safe_load(RULES)
    [rule] = [rule for rule in document["groups"][0]["rules"] if rule["record"] == record]
    rule["expr"] = expression
    (tmp_path / "scaling.yml").write_text(yaml.safe_dump(document))
    shutil.copy(FOLDER / "scaling_test.yml", tmp_path)
    assert promtool(tmp_path, "check", "rules", "scaling.yml").returncode == 0
    finished = promtool(tmp_path, "test", "rules", "scaling_test.yml")
    assert finished.returncode == 1
    assert "FAILED" in finished.stdout + finished.stderr


def test_query_of_prometheus_adapter_reads_the_signal_of_one_service(tmp_path):
    [rule] = yaml.safe_load((FOLDER / "adapter.yaml").read_text())["rules"]["external"]
    query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
    query = query.replace("<<.LabelMatchers>>", 'namespace="feed",service="b"')
    labels = 'job="gatehouse",namespace="feed"'
    tests = {
        "rule_files": [],
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f'{SIGNAL}{{{labels},service="{service}"}}', "values": f"{value}x9"}
                    for service, value in (("a", 1), ("b", 2))
                ],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": "2m",
                        "exp_samples": [{"labels": '{service="b"}', "value": 2}],
                    }
                ],
            }
        ],
    }
    (tmp_path / "adapter_test.yml").write_text(yaml.safe_dump(tests))
    finished = promtool(tmp_path, "test", "rules", "adapter_test.yml")
    assert finished.returncode == 0, finished.stdout + finished.stderr
