"""The operator's guide lists every series that the service exports, as the service exports it."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.main import gatehouse
from app.server.process import _Process
from app.settings import Settings
from app.telemetry.siblings import UP, UP_HELP
from tests import REPOSITORY

GUIDE = (REPOSITORY / "docker" / "OBSERVE.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| `((?:gatehouse|process)_\w+)` \| (\w+) \| (.*?) \| (.+?) \| (.+?) \| (.+?) \|$",
    GUIDE,
    flags=re.M,
)
QUERIES = re.findall(r"`([^`\n]*\bgatehouse_[^`\n]*)`", GUIDE)
"""Series and PromQL: those of the table, and those of the runbook."""


@pytest.fixture
async def series(tmp_path):
    """Type, labels and help text of every series of a serving process, by name."""
    (tmp_path / "policies.toml").touch()
    settings = Settings(store=tmp_path, policies=tmp_path / "policies.toml", lanes=1)
    async with gatehouse(settings) as parts:
        certificate = SimpleNamespace(
            name="certificate", files=(Path("tls.crt"),), context=None, expires_unix_s=0.0
        )
        _Process(settings, parts, certificate)  # type: ignore[arg-type]
        parts.metrics.watch_device_memory({"allocated": lambda: 0.0})  # as on a GPU
        found = {}
        for collector in parts.metrics.registry._collector_to_names:
            labels = getattr(collector, "_labelnames", getattr(collector, "_labels", ()))
            for family in collector.collect():
                name = family.name + ("_total" if family.type == "counter" else "")
                own = labels or getattr(family, "_labelnames", ())  # of a family without a sample
                found[name] = (family.type, tuple(own), family.documentation)
    found[UP] = ("gauge", ("process",), UP_HELP)
    return found


async def test_table_of_metrics_lists_every_series_with_type_labels_and_help(series):
    table = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), meaning)
        for name, kind, labels, _, meaning, _ in ROWS
    }
    assert len(table) == len(ROWS)
    assert table == series


def test_table_of_metrics_states_the_unit_of_the_name():
    for name, _, _, unit, _, _ in ROWS:
        if "timestamp" in name or name.endswith("_time_seconds"):
            assert unit == "Unix time"
        elif re.search(r"_seconds(_total)?$", name):
            assert unit == "seconds"
        elif name.endswith("_bytes"):
            assert unit == "bytes"
        elif name.endswith("_rows"):
            assert unit == "rows"


async def test_runbook_names_series_that_exist(series):
    exported = set(series)
    for name, (kind, _, _) in series.items():
        if kind == "histogram":
            exported |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        if kind == "summary":
            exported |= {f"{name}_sum", f"{name}_count"}
    assert QUERIES
    for query in QUERIES:
        assert set(re.findall(r"\bgatehouse_\w+", query)) <= exported


def test_prometheus_accepts_the_queries_of_the_runbook(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    rules = [f"      - {{record: 'rule{i}', expr: '{q}'}}" for i, q in enumerate(QUERIES)]
    file = tmp_path / "rules.yml"
    file.write_text("\n".join(["groups:", "  - name: runbook", "    rules:", *rules, ""]))
    finished = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
