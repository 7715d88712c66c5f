"""Scores from folded candidates equal those from their features, in every form of a network."""

import pytest
import torch

from models.networks.build import build
from models.networks.config import Activation, DenseFeature, Feature, IdFeature, Task
from models.networks.layers import InputLinear
from tests.models.cases import (
    ARCHITECTURES,
    DENSE,
    FEATURES,
    TOLERANCE,
    assert_close,
    example,
    small,
    tasks,
    values,
)

SIZES = [(1, 1), (1, 64), (3, 64)]  # requests, rows
CLICK = [Task(name="click", kind="binary")]


def frozen(module):
    return torch.jit.freeze(torch.jit.script(module), ["fold", "score_folded"])


def check(module, arguments, tolerance):
    """Compare the eager, the scripted and the frozen form with the plain forward pass."""
    user, candidate, row_to_request = arguments
    expected = module(user, candidate, row_to_request)
    for form in (module, torch.jit.script(module), frozen(module)):
        for _ in range(3):  # a profiled run and optimised ones
            folded = form.fold(candidate)
            assert folded.dtype == torch.float32
            assert folded.shape == (len(row_to_request), module.folded_width)
            got = form.score_folded(user, folded, row_to_request)
            assert got.dtype == expected.dtype
            assert_close(got, expected, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_candidates_have_the_same_scores(architecture, dtype):
    module = example(architecture, dtype)
    for size in SIZES:
        check(module, values(*size), TOLERANCE[dtype])


@pytest.mark.parametrize("gate_hidden_units", [(), (7,)])
@pytest.mark.parametrize("architecture", ["shared_bottom", "moe", "ple", "esmm"])
def test_the_width_is_that_of_all_first_layers(architecture, gate_hidden_units):
    config = small(architecture, gate_hidden_units=gate_hidden_units, gate_bias=False)
    module = build(config, FEATURES, tasks(3), seed=1).eval()
    linears = [layer for layer in module.modules() if isinstance(layer, InputLinear)]
    assert module.folded_width == sum(linear.weight[:, 0].numel() for linear in linears)
    check(module, values(3, 20), TOLERANCE[torch.float32])


@pytest.mark.parametrize("requests", [1, 4])
def test_experts_in_parts_have_the_same_scores(requests):
    config = small("ple", expert_hidden_units=(128, 16), num_task_experts=1, num_shared_experts=4)
    module = build(config, FEATURES, tasks(3), seed=1).eval().requires_grad_(False)
    user, candidate, row_to_request = values(requests, 1500)  # 0.75 MB of activations an expert
    form = frozen(module)
    expected = module(user, candidate, row_to_request)
    got = form.score_folded(user, form.fold(candidate), row_to_request)
    assert_close(got, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("activation", ["relu", "gelu", "identity"])
def test_folded_rows_are_not_written_to(activation: Activation):
    module = build(
        small("mmoe", expert_activation=activation, expert_hidden_units=(6,)),
        FEATURES,
        tasks(2),
        seed=1,
    )
    form = frozen(module.eval())
    user, candidate, row_to_request = values(1, 9)
    folded = form.fold(candidate)
    before = folded.clone()
    for _ in range(3):
        form.score_folded(user, folded, row_to_request)
    assert torch.equal(folded, before)


def test_a_network_without_user_features_is_folded():
    module = build(small("mmoe"), DENSE, tasks(2), seed=1).eval()
    check(module, ({}, {"x": torch.randn(9, 20)}, torch.zeros(9, dtype=torch.int64)), 1e-6)


def test_folded_candidates_hold_for_every_user():
    module = example("ple", torch.float32)
    _, candidate, row_to_request = values(1, 30)
    folded = module.fold(candidate)
    for seed in range(3):
        user, _, _ = values(1, 1, seed)
        expected = module(user, candidate, row_to_request)
        assert_close(module.score_folded(user, folded, row_to_request), expected, 1e-6)


def test_a_missing_number_spoils_its_own_row_only():
    features: list[Feature] = [
        DenseFeature(name="x", side="candidate", dim=2),
        IdFeature(name="u", side="user", vocabulary_size=4, embedding_dim=3),
    ]
    module = build(small("moe"), features, CLICK, seed=1).eval()
    candidate = {"x": torch.randn(5, 2)}
    candidate["x"][3, 1] = float("nan")
    user, rows = {"u": torch.tensor([1])}, torch.zeros(5, dtype=torch.int64)
    got = module.score_folded(user, module.fold(candidate), rows)
    assert got.isnan().flatten().tolist() == [False, False, False, True, False]
