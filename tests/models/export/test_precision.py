"""The parity gate: what is measured, what is refused, what the manifest then says."""

import math

import pytest
import torch

from app.artifacts.loader import load
from app.artifacts.manifest import Parity, Precision
from app.artifacts.store import Store
from app.errors import ArtifactInvalid
from models import data
from models.export.export import export, task_outputs
from models.export.precision import Form, parity, reduced, refuse_unless_near
from models.networks.build import build
from models.training import experiment
from models.training.evaluate import evaluate
from models.training.experiment import ExportConfig
from tests import TINY_EXPERIMENT

WIDE = {"max_probability_change": 1, "max_number_change": 9, "max_auc_change": 1}


@pytest.fixture(scope="module")
def tiny():
    return experiment.read(TINY_EXPERIMENT)


@pytest.fixture(scope="module")
def held_out(tiny):
    return data.generate(tiny.data).test


@pytest.fixture(scope="module")
def network(tiny):
    return build(tiny.network, tiny.features, tiny.tasks, seed=0).eval()


def measured(tiny, held_out, network, other) -> Parity:
    outputs = task_outputs(tiny)
    full, less = (
        Form(module, evaluate(module, held_out, tiny.tasks, outputs)) for module in (network, other)
    )
    return parity(full, less, held_out, outputs, tiny.ranking)


def with_precision(tiny, name, **thresholds):
    return tiny.model_copy(update={"export": ExportConfig(precision=name, **thresholds)})


def test_network_has_parity_with_itself(tiny, held_out, network):
    same = measured(tiny, held_out, network, reduced(network, "fp32"))
    assert same.rows == held_out.rows
    for changes in (same.raw_change, same.score_change):
        assert changes == {"click": 0, "like": 0, "dwell": 0}
    assert set(same.auc_change.values()) == {0}
    assert same.top_50_overlap == 1
    assert same.kendall_tau == pytest.approx(1)


def test_shift_of_one_task_is_measured_in_that_task(tiny, held_out, network):
    class Shifted(torch.nn.Module):
        def forward(self, user, candidate, row_to_request):
            return network(user, candidate, row_to_request) + torch.tensor([0.0, 0.0, 0.5])

    found = measured(tiny, held_out, network, Shifted())
    assert (found.raw_change["click"], found.score_change["like"]) == (0, 0)
    assert 0.2 < found.raw_change["dwell"] <= 0.5
    assert 0 < found.score_change["dwell"] < math.exp(0.5) - 1
    assert found.kendall_tau == pytest.approx(1, abs=1e-3)  # every score by the same factor


def test_wrong_order_is_measured(tiny, held_out, network):
    class Backwards(torch.nn.Module):
        def forward(self, user, candidate, row_to_request):
            return -network(user, candidate, row_to_request)

    found = measured(tiny, held_out, network, Backwards())
    assert found.kendall_tau < -0.9
    assert found.top_50_overlap < 0.5
    assert found.auc_change["click"] > 0.001


@pytest.mark.parametrize("name", ["bf16", "fp16", "int8-embeddings"])
def test_reduced_precision_is_published_with_its_parity(tiny, held_out, network, tmp_path, name):
    chosen = with_precision(tiny, name, **WIDE, min_top_50_overlap=0, min_kendall_tau=0)
    artifact = export(network, chosen, held_out, {}, Store(tmp_path))
    manifest = load(artifact, torch.device("cpu")).manifest
    found = manifest.precision.parity
    assert found is not None
    assert manifest.precision.name == name
    assert found == measured(tiny, held_out, network, reduced(network, name))
    worst = max([*found.raw_change.values(), *found.score_change.values()])
    assert worst > 0
    assert manifest.precision.tolerance["cpu"] == max(1e-5, 2 * worst)
    assert manifest.precision.tolerance["cuda"] == max(1e-4, 2 * worst)
    assert set(manifest.evaluation) == {"click", "like", "dwell"}


@pytest.mark.parametrize("name", ["bf16", "int8-embeddings"])
def test_precision_outside_a_limit_is_refused_with_the_value(
    tiny, held_out, network, tmp_path, name
):
    chosen = with_precision(tiny, name, max_number_change=1e-9)
    with pytest.raises(
        ArtifactInvalid, match=rf"{name} differs too much from fp32: .* change of dwell"
    ):
        export(network, chosen, held_out, {}, Store(tmp_path))
    assert list(tmp_path.iterdir()) == []


GOOD = Parity(
    rows=9,
    raw_change={"click": 0.001, "like": 0, "dwell": 0.001},
    score_change={"click": 0.001, "like": 0, "dwell": 0.04},
    auc_change={"click": 0.0001},
    top_50_overlap=1,
    kendall_tau=1,
)


def test_default_limits_accept_a_close_network(tiny):
    refuse_unless_near(GOOD, ExportConfig(precision="bf16"), task_outputs(tiny))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"score_change": {"click": 0.02, "dwell": 0}},
            "largest change of click is 0.02, maximum 0.01",
        ),
        (
            {"score_change": {"click": 0, "dwell": 0.06}},
            "largest change of dwell is 0.06, maximum 0.05",
        ),
        ({"auc_change": {"click": 0.002}}, "AUC change of click is 0.002, maximum 0.001"),
        ({"top_50_overlap": 0.97}, "top-50 overlap is 0.9700, minimum 0.98"),
        ({"kendall_tau": 0.98}, "Kendall's tau is 0.9800, minimum 0.99"),
    ],
    ids=str,
)
def test_each_limit_refuses_alone(tiny, changes, reason):
    far = GOOD.model_copy(update=changes)
    with pytest.raises(ArtifactInvalid) as caught:
        refuse_unless_near(far, ExportConfig(precision="bf16"), task_outputs(tiny))
    assert str(caught.value) == f"bf16 differs too much from fp32: {reason}"


def test_all_exceeded_limits_are_reported(tiny):
    far = GOOD.model_copy(update={"top_50_overlap": 0.1, "kendall_tau": 0.1})
    with pytest.raises(ArtifactInvalid, match=r"top-50 overlap is .*; Kendall's tau is "):
        refuse_unless_near(far, ExportConfig(precision="bf16"), task_outputs(tiny))


def test_unsupported_precision_is_refused(tiny, held_out, network, tmp_path):
    class GPUOnly(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, user, candidate, row_to_request):
            if next(self.parameters()).dtype == torch.float16:
                raise RuntimeError("not implemented for 'Half'")
            return self.network(user, candidate, row_to_request)

    with pytest.raises(ArtifactInvalid, match="fp16 does not run on this CPU: not implemented"):
        export(GPUOnly(), with_precision(tiny, "fp16"), held_out, {}, Store(tmp_path))


def test_full_precision_states_no_parity_and_reduced_precision_must():
    assert Precision().parity is None
    with pytest.raises(ValueError, match="parity is required for reduced precision"):
        Precision(name="bf16")
    with pytest.raises(ValueError, match="parity is required for reduced precision"):
        Precision(parity=GOOD)


def test_the_tolerance_is_twice_the_parity_and_never_under_that_of_fp32():
    assert Precision.reduced("bf16", GOOD).tolerance == {"cpu": 0.08, "cuda": 0.08}
    nothing = GOOD.model_copy(update={"raw_change": {"click": 0.0}, "score_change": {"click": 0.0}})
    assert Precision.reduced("bf16", nothing).tolerance == {"cpu": 1e-5, "cuda": 1e-4}
