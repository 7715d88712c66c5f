"""What makes a network the one of its paper, as functions of whatever builds it.

Each takes a factory (`models.networks.build.build` or a deliberately wrong one) and asserts one
property. A wrong network must fail at least one of them: see the mutants.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.networks.config import NetworkConfig
from models.networks.layers import StackedMLP
from tests.models.cases import DENSE, FEATURES, WIDTH, Values, small, tasks, values
from tests.models.loop import gate_linears, linears, loop_linears, loop_of, stacked

Factory = Callable[..., Any]
Arguments = tuple[Values, Values, Tensor]

TWO_LEVELS = small("ple", num_task_experts=2, num_shared_experts=3, num_levels=2)
THREE_LEVELS = small("ple", num_task_experts=2, num_shared_experts=3, num_levels=3)


def whole_input(network: Any, arguments: Arguments) -> Tensor:
    """The columns of both sides, the user's repeated for every row: ``[B, D]``."""
    user, candidate, row_to_request = arguments
    u, c = network.columns(user, candidate)
    dtype = network.body.towers.last_weight.dtype
    return torch.cat([u[row_to_request], c], 1).to(dtype)


def float64(factory: Factory, config: NetworkConfig, num_tasks: int = 3) -> Any:
    return factory(config, FEATURES, tasks(num_tasks), seed=1).double()


def it_equals_the_loop(
    factory: Factory,
    config: NetworkConfig = THREE_LEVELS,
    num_tasks: int = 3,
    num_rows: int = 9,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Stacked layers compute what a loop over experts does: outputs and every gradient."""
    network = factory(config, FEATURES, tasks(num_tasks), seed=1).to(dtype)
    loop = loop_of(config, network.body, WIDTH, num_tasks)
    arguments = values(2, num_rows)
    weights = torch.randn(num_rows, num_tasks, generator=torch.Generator().manual_seed(3))
    outputs, expected = network(*arguments), loop(whole_input(network, arguments).detach())
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()

    bound = 1e-12 if dtype == torch.float64 else 1e-5
    close(outputs, expected, bound)
    gradients = linears(network.body, lambda p: p.grad)
    for linear, (weight, bias) in zip(loop_linears(loop), gradients, strict=True):
        close(weight.t(), linear.weight.grad, bound)
        if bias is not None:
            close(bias, linear.bias.grad, bound)


def close(actual: Tensor, expected: Tensor | None, bound: float) -> None:
    assert expected is not None
    scale = expected.abs().max().clamp(min=1.0) if expected.numel() else 1.0
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=bound)


def gradients_of_task(network: Any, task: int) -> None:
    network.zero_grad(set_to_none=False)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    network(*values(3, 64))[:, task].square().sum().backward()


def expert_gradient(experts: nn.Module, e: int) -> float:
    """The largest gradient in any weight of expert ``e``."""
    return max(float(linear.weight.grad[e].abs().max()) for linear in stacked(experts))


def the_last_level_is_private(factory: Factory) -> None:
    """A task's loss leaves other tasks' last experts, gates and towers alone: exactly zero."""
    for config in (TWO_LEVELS, small("cgc", num_task_experts=2, num_shared_experts=3)):
        network = float64(factory, config)
        last = network.body.levels[-1] if config.body == "ple" else network.body
        gradients_of_task(network, 0)
        own, others, shared = range(2), range(2, 6), range(6, 9)
        assert all(expert_gradient(last.experts, e) > 0 for e in (*own, *shared))
        assert all(expert_gradient(last.experts, e) == 0 for e in others)
        gates = [float(w.abs().max()) for w in last_gate_gradients(last)]
        assert gates[0] > 0
        assert gates[1:] == [0, 0]
        towers = network.body.towers.last_weight.grad.abs().amax((1, 2))
        assert towers[0] > 0
        assert towers[1:].tolist() == [0, 0]


def last_gate_gradients(level: Any) -> list[Tensor]:
    """The gradient of each gate's last linear layer."""
    return [weight for weight, _ in gate_linears(level.gates, lambda p: p.grad)]


def earlier_levels_learn_from_every_task(factory: Factory) -> None:
    """Through the shared gate, a task's loss reaches other tasks' experts of earlier levels."""
    network = float64(factory, TWO_LEVELS)
    gradients_of_task(network, 0)
    for e in range(9):
        assert expert_gradient(network.body.experts, e) > 0, f"expert {e} of level 1"


def everything_learns(
    factory: Factory, config: NetworkConfig = THREE_LEVELS, num_tasks: int = 3
) -> None:
    """No parameter without a gradient, and no single expert, gate or tower without one.

    Of a smooth network: a ReLU may be dead on all rows, which is no fault of the wiring.
    """
    smooth = {f"{part}_activation": "silu" for part in ("expert", "gate", "tower")}
    network = float64(factory, config.model_copy(update=smooth), num_tasks)
    outputs = network(*values(5, 257))
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
    (outputs * weights).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name
    for weight, _ in linears(network.body, lambda p: p.grad):
        assert weight.abs().max() > 1e-9


def every_expert_is_its_own_draw(factory: Factory) -> None:
    """Equal experts would stay equal: the gate between them has no gradient."""
    network = float64(factory, THREE_LEVELS)
    for module in network.body.modules():
        for linear in stacked(module) if isinstance(module, StackedMLP) else []:
            for a, b in zip(linear.weight, linear.weight[1:], strict=False):
                assert not torch.equal(a, b)


def the_second_level_selects_by_the_first_levels_output(factory: Factory) -> None:
    """Changing the experts of level 1 changes which experts the gates of level 2 choose."""
    network = float64(factory, TWO_LEVELS)
    arguments = values(2, 5)
    with torch.no_grad():
        first, second = network.gate_weights(*arguments)
        for linear in stacked(network.body.experts):
            linear.weight += 0.5
        first_after, second_after = network.gate_weights(*arguments)
    assert torch.equal(first, first_after)
    assert (second - second_after).abs().amax((0, 2)).min() > 1e-6  # of every gate


def the_shared_gate_sees_every_expert(factory: Factory) -> None:
    """K·m_t + m_s of them, at every level but the last, which has no shared gate."""
    K, own, shared = 3, 2, 3
    network = float64(factory, THREE_LEVELS, K)
    levels = network.gate_weights(*values(2, 5))
    assert [level.size(1) for level in levels] == [K + 1, K + 1, K]
    for level in levels[:-1]:
        seen = (level[:, K] > 0).sum(1)  # [B]
        assert seen.tolist() == [K * own + shared] * 5
    for level in levels:
        seen = (level[:, :K] > 0).sum(2)  # [B, K]
        assert seen.unique().tolist() == [own + shared]


def the_parameter_count_is_the_formulas(factory: Factory) -> None:
    """PLE of D=20, h=(16, 8), t=(6), K=3, m_t=2, m_s=3."""
    for num_levels, count in ((1, 4746), (2, 7590), (3, 10326)):
        config = small(
            "ple",
            expert_hidden_units=(16, 8),
            tower_hidden_units=(6,),
            num_task_experts=2,
            num_shared_experts=3,
            num_levels=num_levels,
        )
        network = factory(config, DENSE, tasks(3), seed=1)
        assert parameter_count(network.body) == count


def parameter_count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


PLE_PROOFS: tuple[Callable[[Factory], None], ...] = (
    it_equals_the_loop,
    the_last_level_is_private,
    earlier_levels_learn_from_every_task,
    everything_learns,
    every_expert_is_its_own_draw,
    the_second_level_selects_by_the_first_levels_output,
    the_shared_gate_sees_every_expert,
    the_parameter_count_is_the_formulas,
)
