"""Stacked layers, map by map."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.networks.features import Rows
from models.networks.layers import InputLinear, InputMLP, StackedLinear, StackedMLP, experts_at_once


def rows(num_requests: int = 3, num_rows: int = 7) -> Rows:
    which = torch.arange(num_rows) % num_requests
    return Rows(torch.randn(num_requests, 4), torch.randn(num_rows, 5), which)


def test_stack_maps_each_input_by_its_own_weights():
    linear, x = StackedLinear(3, 4, 2), torch.randn(3, 6, 4)
    y = linear(x)
    for e in range(3):
        expected = functional.linear(x[e], linear.weight[e].t(), linear.bias[e, 0])
        torch.testing.assert_close(y[e], expected)
    torch.testing.assert_close(linear(x[1:], 1), y[1:])


def test_the_input_is_the_users_columns_then_the_candidates():
    linear, x = InputLinear(3, 4, 5, 2), rows()
    whole = torch.cat([x.user[x.row_to_request], x.candidate], 1)
    y = linear(x)
    for e in range(3):
        expected = functional.linear(whole, linear.weight[e].t(), linear.bias[e, 0])
        torch.testing.assert_close(y[e], expected)
    torch.testing.assert_close(linear.rows(linear.once(x.user), x, 1, 2), y[1:])


def test_the_user_is_computed_once_a_request():
    linear, x = InputLinear(3, 4, 5, 2), rows(num_requests=2, num_rows=100)
    assert linear.once(x.user).shape == (3, 2, 2)


@pytest.mark.parametrize(
    "module", [StackedLinear(3, 4, 2, bias=False), InputLinear(3, 4, 0, 2, bias=False)]
)
def test_map_without_bias_maps_zero_to_zero(module):
    zero = torch.zeros(3, 6, 4)
    x = (
        zero
        if isinstance(module, StackedLinear)
        else Rows(zero[0], zero[0, :, :0], torch.arange(6))
    )
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert torch.equal(module(x), torch.zeros(3, 6, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("candidate", [0, 4])
@pytest.mark.parametrize("requests", [1, 2])
def test_scripted_input_layer_gives_the_same_for_any_number_of_requests(requests, candidate, dtype):
    module = InputLinear(3, 5, candidate, 2).to(dtype)
    x = Rows(torch.randn(requests, 5), torch.randn(7, candidate), torch.arange(7) * requests // 7)
    inputs = torch.cat([x.user[x.row_to_request], x.candidate], 1).to(dtype)
    expected = torch.baddbmm(module.bias, inputs.expand(3, -1, -1), module.weight)
    for form in (module, torch.jit.script(module)):
        torch.testing.assert_close(
            form(x),
            expected,
            rtol=2e-2 if dtype.itemsize < 4 else 1e-5,
            atol=2e-2 if dtype.itemsize < 4 else 1e-6,
        )


@pytest.mark.parametrize("activate_last", [True, False])
@pytest.mark.parametrize("widths", [(8,), (8, 6), (8, 6, 4)])
def test_the_last_layer_is_activated_if_asked(widths, activate_last):
    x = rows()
    first = InputMLP(2, (4, 5), widths, "relu", activate_last=activate_last)(x)
    assert first.shape == (2, 7, widths[-1])
    assert bool((first >= 0).all()) is activate_last
    if len(widths) > 1:
        later = StackedMLP(2, widths, "relu", activate_last=activate_last)(torch.randn(2, 7, 8))
        assert later.shape == (2, 7, widths[-1])
        assert bool((later >= 0).all()) is activate_last


def test_dropout_follows_hidden_layers_only():
    mlp = StackedMLP(2, (4, 3, 2), "relu", activate_last=False, dropout=0.5)
    assert sum(isinstance(module, nn.Dropout) for module in mlp.modules()) == 1


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(0, 8), (1, 8), (64, 8), (128, 4), (256, 2), (512, 1), (10**6, 1)]
)
def test_number_of_experts_at_once_fits_the_cache(num_rows, expected):
    scripted = torch.jit.script(experts_at_once)
    assert min(8, scripted(8, num_rows, 256, torch.zeros(1))) == expected
    assert experts_at_once(8, num_rows, 256, torch.zeros(1)) == 8
