"""Gates of live requests: sampled beside serving, shown in metrics and at /v1/models."""

import re

import numpy as np
import pytest
import torch

from app.artifacts.loader import load
from app.engine.batch import Chunk
from app.engine.request import QueuedRequest
from app.scoring import gate_sampler
from app.scoring.gate_sampler import MOST_ROWS, GateSampler, gate_cells, mean_weights
from app.telemetry.gates import GateMetrics
from tests.support.builders import own_policies
from tests.support.mixtures import features, mixture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(mixture(tmp_path_factory.mktemp("store")), CPU)


def shares(metrics):
    """The mean weight by level, gate and expert, as Prometheus computes it."""
    (family,) = metrics.collect()
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for sample in family.samples:
        cell = tuple(sample.labels[name] for name in ("level", "gate", "expert"))
        found.setdefault(cell, {})[sample.name.rpartition("_")[2]] = sample.value
    return {cell: values["sum"] / values["count"] for cell, values in found.items()}


async def until_sampled(sampler):
    if sampler._task is not None:
        await sampler._task


def chunk_of(model, request_features):
    request = QueuedRequest(model, request_features, own_policies(model.manifest).default_options)
    return Chunk(request, request_features, 0, request_features.rows)


def sampled(model, request_features):
    return mean_weights(model, chunk_of(model, request_features))


def test_mean_weights_are_those_of_the_module_over_the_candidates(model):
    request = features(rows=5)
    quality = torch.from_numpy(request.candidate["quality"]).sigmoid().numpy()
    first, second = quality[:, 0], quality[:, 1]
    expected = [first * second, first * (1 - second), 1 - first, first, 1 - first]
    np.testing.assert_allclose(sampled(model, request), np.mean(expected, axis=1), rtol=1e-5)
    assert [tuple(cell) for cell in gate_cells(model)] == [
        *(("1", "click", expert) for expert in "abc"),
        *(("1", "dwell", expert) for expert in "bc"),
    ]


def test_large_request_is_sampled_evenly(model):
    request = features(rows=10 * MOST_ROWS)
    thinned = features(rows=10 * MOST_ROWS, chosen=slice(None, None, 10))
    np.testing.assert_array_equal(sampled(model, request), sampled(model, thinned))


async def test_requests_are_sampled_once_a_second_and_add_up(model):
    metrics = GateMetrics()
    sampler = GateSampler(metrics)
    requests = [features(rows=4, seed=seed) for seed in range(4)]
    for now, request in zip((0.0, 0.5, 1.0, 1.9), requests, strict=True):
        sampler.sample(10 + now, chunk_of(model, request).request)
        await until_sampled(sampler)
    expected = np.mean([sampled(model, requests[i]) for i in (0, 2)], axis=0)
    np.testing.assert_allclose(list(shares(metrics).values()), expected)
    count, recent = metrics.recent(model.label)
    assert count == 2
    assert recent is not None
    np.testing.assert_allclose(recent, expected)


async def test_module_that_raises_is_asked_no_more_and_scoring_goes_on(model, caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken")

    metrics = GateMetrics()
    sampler = GateSampler(metrics)
    monkeypatch.setattr(gate_sampler, "mean_weights", fail)
    for now in (10.0, 20.0, 30.0):
        sampler.sample(now, chunk_of(model, features(rows=4)).request)
        await until_sampled(sampler)
    assert [record.message for record in caplog.records] == [
        "model feed/1: its gates are not observed: broken"
    ]
    assert metrics.recent(model.label) == (0, None)


def test_series_of_a_version_that_is_freed_go_away(model):
    metrics = GateMetrics()
    for version in ("feed/1", "feed/2", "feed/3"):
        metrics.observe(version, gate_cells(model), np.full(5, 0.2))
    metrics.forget("feed/1")
    metrics.keep_only({"feed/2"})
    (family,) = metrics.collect()
    assert {sample.labels["version"] for sample in family.samples} == {"2"}


async def test_scored_request_shows_its_gates_in_metrics_and_at_the_model(client, example, service):
    card = (await client.get("/v1/models/tiny")).json()
    [loaded] = card["versions"]
    assert [level["gates"] for level in loaded["gates"]["levels"]] == [
        ["click", "like", "dwell", "shared"],
        ["click", "like", "dwell"],
    ]
    service.scorer._sampler.next_at = 0.0
    (await client.post("/v1/score", json=example)).raise_for_status()
    await until_sampled(service.scorer._gates)

    [loaded] = (await client.get("/v1/models/tiny")).json()["versions"]
    assert loaded["gates"]["requests"] >= 1
    first, last = loaded["gates"]["levels"]
    assert first["experts"] == ["click.1", "like.1", "dwell.1", "shared.1"]
    assert first["weights"][0][1] is None  # click's gate does not see like's expert
    for row in (*first["weights"], *last["weights"]):
        assert sum(weight for weight in row if weight is not None) == pytest.approx(1, abs=1e-5)
    text = (await client.get("/metrics")).text
    labels = 'expert="shared.1",gate="click",level="1",model="tiny",version="1"'
    count = re.search(rf"gatehouse_gate_weight_count{{{labels}}} (\S+)", text)
    assert count is not None
    assert float(count[1]) >= 1


async def test_model_shows_how_close_it_is_to_its_golden_examples(client):
    [loaded] = (await client.get("/v1/models/tiny")).json()["versions"]
    assert loaded["golden"]["examples"] == 7
    assert 0 <= loaded["golden"]["largest_difference"] <= loaded["golden"]["tolerance"] == 1e-5
    assert loaded["precision"]["name"] == "fp32"
    assert set(loaded["evaluation"]) == {"click", "like", "dwell"}
