"""Metrics with the series of a large server: every label that the service has, many values each."""

import numpy as np

from app.telemetry.gates import GateCell
from app.telemetry.metrics import Metrics
from app.telemetry.requests import STAGES, RequestRecord

ROUTES = (
    *("/v1/score", "/v1/models/{model}/score", "/v1/models/{model}/versions/{version}/score"),
    *("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"),
)
STATUSES = (200, 400, 401, 404, 413, 422, 429, 499, 500, 503, 504)


def fill(
    metrics: Metrics, *, models: int = 8, tasks: int = 4, keys: int = 64, policies: int = 16
) -> None:
    """Create the series of so many models, tasks of each, API keys and policies."""
    names = [f"model-{number}" for number in range(models)]
    task_names = [f"task-{number}" for number in range(tasks)]
    for name in names:
        _fill_model(metrics, name, task_names)
    label = f"{names[0]}/1"
    for number in range(keys):
        for status in (200, 422, 429, 503, 504):
            key = f"key-{number}"
            metrics.record(RequestRecord(ROUTES[0], names[0], status, 0.01, label, key))
    for number in range(policies):
        policy = f"policy-{number}"
        stages = (0.001,) * len(STAGES)
        metrics.record(
            RequestRecord(ROUTES[0], names[0], 200, 0.01, label, "", policy, 50, stages, "active")
        )
        metrics.ranking.shadow_compared(policy, "shadow", tau=0.9, overlap=0.9)


def _fill_model(metrics: Metrics, name: str, tasks: list[str]) -> None:
    random = np.random.default_rng(3)
    label = f"{name}/1"
    for route in ROUTES:
        for status in STATUSES:
            metrics.record(RequestRecord(route, name, status, 0.01, label, role="active"))
    for role in ("active", "canary", "previous", "shadow"):
        for status in STATUSES:
            metrics.record(RequestRecord(ROUTES[0], name, status, 0.01, label, role=role))
    scores = random.random((50, len(tasks))).astype(np.float32)
    metrics.ranking.scores_sampled(name, tasks, scores, scores[:, 0])
    for role in ("canary", "shadow"):
        metrics.ranking.version_compared(name, role, "compared")
        differences = dict.fromkeys(tasks, 0.1)
        metrics.ranking.versions_differed(name, role, tau=0.5, overlap=0.5, differences=differences)
    metrics.unknown(name, {f"feature-{number}": 1 for number in range(20)})
    metrics.versions.tried(name, activated=True)
    metrics.versions.activated(name, 1, "0" * 64)
    metrics.versions.show_intact(name, is_intact=True)
    metrics.versions.show_roles(name, [("1", "active"), ("2", "canary")])
    cells = [
        GateCell(str(level), gate, f"expert-{expert}")
        for level in (1, 2)
        for gate in tasks
        for expert in range(8)
    ]
    metrics.gates.observe(label, cells, np.full(len(cells), 1 / 8))
