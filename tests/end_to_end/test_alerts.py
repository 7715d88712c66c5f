"""The alerting rules: promtool runs their unit tests, and the guide explains each of them."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests import REPOSITORY

FOLDER = REPOSITORY / "docker" / "prometheus"
GUIDE = (REPOSITORY / "docker" / "OBSERVE.md").read_text(encoding="utf-8")
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


def run_unit_tests(folder):
    command = ["promtool", "test", "rules", "rules_test.yml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@needs_promtool
def test_unit_tests_of_the_rules_pass():
    finished = run_unit_tests(FOLDER)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@needs_promtool
@pytest.mark.parametrize("expression", ["vector(1)", "vector(1) > 2"], ids=["always", "never"])
def test_unit_tests_notice_each_alert_that_always_or_never_fires(expression, tmp_path):
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    alerts = [
        {"alert": name, "expr": expression, "labels": rule["labels"]}
        for name, rule in ALERTS.items()
    ]
    rules = {"groups": [{"name": "wrong", "rules": alerts}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    finished = run_unit_tests(tmp_path)
    assert finished.returncode == 1
    noticed = re.findall(r"^\s+alertname: (\w+), time", finished.stdout + finished.stderr, re.M)
    assert set(noticed) == set(ALERTS)


def test_each_alert_is_tested_silent_and_firing():
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    tested = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in tested if case["exp_alerts"]} == set(ALERTS)
    assert {case["alertname"] for case in tested if not case["exp_alerts"]} == set(ALERTS)


def test_guide_has_a_row_for_each_alert():
    assert re.findall(r"^\| `(Gatehouse\w+)` \|", GUIDE, flags=re.M) == list(ALERTS)


def test_runbook_has_a_symptom_for_each_alert():
    runbook = GUIDE.split("## Runbook\n")[1].split("\n## ")[0]
    rows = [line[1:-1].split(" |") for line in runbook.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {4}
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row[1])} == set(ALERTS)


def test_each_alert_has_a_severity_a_summary_and_a_runbook():
    for alert in ALERTS.values():
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert set(alert["annotations"]) == {"summary", "runbook"}
        assert alert["annotations"]["runbook"] == 'docker/OBSERVE.md, "Alerts"'
    assert "## Alerts\n" in GUIDE
