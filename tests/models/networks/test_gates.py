"""Gates choose among the experts that they see, and the mix takes what they chose."""

import pytest
import torch

from models.networks.features import Rows
from models.networks.gates import Gates, InputGates, Softmax, mix
from tests.models.cases import small

SEES = [[0, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_weights_of_the_experts_seen_sum_to_one(dtype, scale):
    logits = (torch.randn(50, 12, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    weights = Softmax(SEES, 5)(logits)
    assert weights.shape == (50, 3, 5)
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(weights.sum(2), torch.ones_like(weights[:, :, 0]))
    for gate, seen in enumerate(SEES):
        unseen = [e for e in range(5) if e not in seen]
        assert torch.equal(weights[:, gate, unseen], torch.zeros_like(weights[:, gate, unseen]))


def test_logits_stand_gate_after_gate():
    logits = torch.randn(6, 12)
    weights = Softmax(SEES, 5)(logits)
    for gate, (seen, part) in enumerate(zip(SEES, logits.split([3, 4, 5], 1), strict=True)):
        torch.testing.assert_close(weights[:, gate, seen], part.softmax(1))


def test_the_mix_is_a_weighted_sum():
    weights, experts = torch.rand(7, 3, 5), torch.randn(5, 7, 4)
    expected = torch.einsum("bge,ebd->gbd", weights, experts)
    torch.testing.assert_close(mix(weights, experts), expected)


@pytest.mark.parametrize("gate_bias", [True, False])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 3)])
def test_input_gates_and_level_gates_give_equal_weights(hidden, gate_bias):
    config = small("ple", gate_hidden_units=hidden, gate_bias=gate_bias)
    x = Rows(torch.randn(2, 4), torch.randn(9, 4), torch.arange(9) % 2)
    assert InputGates(SEES, 5, (4, 4), config)(x).shape == (9, 3, 5)
    assert Gates(SEES, 5, 8, config)(torch.randn(3, 9, 8)).shape == (9, 3, 5)
