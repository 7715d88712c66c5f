"""Drift of the active version's features and scores from the training data."""

import numpy as np
import pytest

from app.artifacts.distributions import Distributions, IdBins, NumberBins
from app.artifacts.store import Artifact
from app.engine.request import RequestFeatures
from app.lifecycle.registry import Registry, Role
from app.main import gatehouse
from app.scoring import drift
from app.scoring.drift import DriftMonitor
from app.settings import Settings
from app.telemetry.metrics import Metrics
from tests.support.builders import INPUTS, model
from tests.support.in_process import client_of

RANDOM = np.random.default_rng(3)
KNOWN = Distributions(
    features={
        "age": NumberBins.of(RANDOM.normal(size=1000)),
        "item": IdBins.of(RANDOM.integers(0, 10, 1000), unknown=0),
        "recent": IdBins.of(RANDOM.integers(0, 10, 1000), unknown=0, padding=-1),
        "removed": NumberBins.of(RANDOM.normal(size=1000)),
    },
    scores={"click": NumberBins.of(RANDOM.random(1000))},
)


def features(shift: float, rows: int = 80) -> RequestFeatures:
    return RequestFeatures(
        {
            "age": RANDOM.normal(shift, size=(1, 1)).astype(np.float32),
            "recent": np.array([[1, 2, -1]]),
        },
        {"item": RANDOM.integers(0, 10, rows), "quality": np.zeros((rows, 2), np.float32)},
        rows,
        {},
    )


def scores(rows: int = 80) -> np.ndarray:
    return RANDOM.random((rows, 2), np.float32)


@pytest.fixture
def registry(tmp_path):
    registry = Registry(Metrics())
    loaded = model(tmp_path, distributions=KNOWN)
    registry.activate(Artifact("feed", 1, tmp_path), loaded)
    return registry


def observe(monitor, registry, shift, requests, **changes):
    for _ in range(requests):
        monitor.observe(registry.active("feed"), features(shift, **changes), scores(**changes))


def test_drift_is_shown_after_enough_requests(registry):
    monitor = DriftMonitor(registry)
    observe(monitor, registry, 0.0, drift.MIN_REQUESTS - 1)
    assert monitor.of("feed") == ({}, {})
    observe(monitor, registry, 0.0, 1)
    found = monitor.of("feed")
    assert found is not None
    assert found.features.keys() == {"age", "item", "recent"}
    assert found.features["age"] < 0.25
    assert found.features["item"] < 0.02
    assert found.features["recent"] > 1  # always the same two ids
    assert found.scores["click"] < 0.02
    assert monitor.features()["feed", "item"] == found.features["item"]
    assert monitor.scores() == {("feed", "click"): found.scores["click"]}


def test_a_missing_number_counts_as_the_default_as_in_training(tmp_path):
    """By itself, NaN would be in the last bin, and the bins were made of zeros and ones."""
    ages = np.repeat([0.0, 1.0], [900, 100])
    known = Distributions(features={"age": NumberBins.of(ages)}, scores={})
    age, *others = INPUTS
    filled = age.model_copy(update={"default": (0.0,), "missing": "nan"})
    registry = Registry(Metrics())
    loaded = model(tmp_path, inputs=(filled, *others), distributions=known)
    registry.activate(Artifact("feed", 1, tmp_path), loaded)
    monitor = DriftMonitor(registry)
    for row in range(drift.MIN_REQUESTS):
        sent = features(0.0)
        sent.user["age"][:] = 1.0 if row % 10 == 0 else np.nan
        monitor.observe(loaded, sent, scores())
    found = monitor.of("feed")
    assert found is not None
    assert found.features["age"] < 0.01


def test_old_requests_are_forgotten(registry, monkeypatch):
    monkeypatch.setattr(drift, "WINDOW_REQUESTS", 300)
    monitor = DriftMonitor(registry)
    observe(monitor, registry, 3.0, 300)
    found = monitor.of("feed")
    assert found is not None
    assert found.features["age"] > 1
    observe(monitor, registry, 0.0, 900)
    found = monitor.of("feed")
    assert found is not None
    assert found.features["age"] < 0.2


def test_features_take_turns_where_there_are_many(registry, monkeypatch):
    monkeypatch.setattr(drift, "FEATURES_AT_ONCE", 1)
    monkeypatch.setattr(drift, "MIN_REQUESTS", 10)
    monitor = DriftMonitor(registry)
    observe(monitor, registry, 0.0, 29)
    found = monitor.of("feed")
    assert found is not None
    assert found.features.keys() == {"age", "item"}
    observe(monitor, registry, 0.0, 1)
    found = monitor.of("feed")
    assert found is not None
    assert found.features.keys() == {"age", "item", "recent"}


def test_only_the_active_version_counts_and_a_swap_begins_again(registry, tmp_path):
    monitor = DriftMonitor(registry)
    observe(monitor, registry, 0.0, drift.MIN_REQUESTS)
    old = registry.active("feed")
    registry.activate(Artifact("feed", 2, tmp_path), model(tmp_path, distributions=KNOWN))
    assert registry.role(old) == Role.PREVIOUS
    assert monitor.of("feed") == ({}, {})
    monitor.observe(old, features(0.0), scores())
    assert monitor.of("feed") == ({}, {})
    registry.activate(Artifact("feed", 3, tmp_path), model(tmp_path))
    observe(monitor, registry, 0.0, 1)
    assert monitor.of("feed") is None  # an artifact without figures


def test_requests_without_candidates_are_not_counted(registry):
    monitor = DriftMonitor(registry)
    observe(monitor, registry, 0.0, drift.MIN_REQUESTS, rows=0)
    assert monitor.of("feed") == ({}, {})


async def test_drift_of_a_served_model_is_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "MIN_REQUESTS", 3)
    monkeypatch.setattr("app.scoring.response_sampler.SHARE", 1e9)
    model(tmp_path, distributions=KNOWN)
    settings = Settings(store=tmp_path, lanes=1, request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.start()
        parts.scorer._sampler._every_s = 0.0
        async with client_of(parts) as client:
            card = (await client.get("/v1/models/feed")).json()
            assert card["drift"] == {"features": {}, "scores": {}}
            for _ in range(5):
                answer = await client.post("/v1/score", json=card["example_request"])
                assert answer.status_code == 200
            drifted = (await client.get("/v1/models/feed")).json()["drift"]
            assert drifted["features"]["item"] > 0.25
            assert drifted["scores"].keys() == {"click"}
            exported = parts.metrics.registry.get_sample_value(
                "gatehouse_feature_drift", {"model": "feed", "feature": "item"}
            )
            assert exported == drifted["features"]["item"]
    assert {feature.name for feature in INPUTS} >= drifted["features"].keys()
