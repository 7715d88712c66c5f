"""The manifest names the gates of every architecture as the network computes them."""

import pytest
import torch

from app.artifacts.loader import load
from app.artifacts.store import Store
from models import data
from models.export.export import export
from models.export.gates import gate_levels
from models.networks.build import build
from models.networks.config import NetworkConfig
from models.training import experiment
from tests import TINY_EXPERIMENT

ARCHITECTURES = ("moe", "mmoe", "cgc", "ple", "esmm")


@pytest.fixture(scope="module")
def tiny():
    return experiment.read(TINY_EXPERIMENT)


def with_network(tiny, architecture, **changes):
    fields = {"num_experts": 5, "num_task_experts": (1, 2, 1), "num_shared_experts": 2}
    network = NetworkConfig(
        architecture=architecture,
        **{**fields, "num_levels": 3, "expert_hidden_units": (6,), "esmm_body": "mmoe", **changes},
    )
    return tiny.model_copy(update={"network": network})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gates_of_a_published_network_are_those_of_the_manifest(tiny, architecture, tmp_path):
    changed = with_network(tiny, architecture)
    held_out = data.generate(tiny.data).test
    network = build(changed.network, changed.features, changed.tasks, seed=3)
    model = load(export(network, changed, held_out, {}, Store(tmp_path)), torch.device("cpu"))

    weights = model.program.gate_weights(model.golden.batch)  # checks shapes, sums and zeros

    assert model.manifest.gates == gate_levels(changed)
    assert len(weights) == (3 if architecture == "ple" else 1)
    for level, found in zip(model.manifest.gates, weights, strict=True):
        for gate, positions in enumerate(level.sees):
            assert (found[:, gate, list(positions)] > 0).all()


def test_names_are_those_of_the_tasks_and_of_the_experts_owners(tiny):
    first, _, last = gate_levels(with_network(tiny, "ple"))
    assert first.gates == ("click", "like", "dwell", "shared")
    assert last.gates == ("click", "like", "dwell")
    assert (
        first.experts
        == last.experts
        == (*("click.1", "like.1", "like.2", "dwell.1", "shared.1", "shared.2"),)
    )
    assert first.sees == ((0, 4, 5), (1, 2, 4, 5), (3, 4, 5), (0, 1, 2, 3, 4, 5))
    (moe,) = gate_levels(with_network(tiny, "moe"))
    assert moe.gates == ("all",)
    assert moe.experts == ("expert.1", "expert.2", "expert.3", "expert.4", "expert.5")


@pytest.mark.parametrize("architecture", ["single_task", "shared_bottom"])
def test_network_without_gates_has_none(tiny, architecture):
    assert gate_levels(with_network(tiny, architecture)) == ()


def test_network_with_too_many_weights_is_published_without_its_gates(tiny):
    assert gate_levels(with_network(tiny, "mmoe", num_experts=341)) != ()
    assert gate_levels(with_network(tiny, "mmoe", num_experts=342)) == ()
