"""Each architecture is the one of its paper: against a loop, the formulas, and one another."""

from typing import Any

import pytest
import torch

from models.networks.build import build
from models.networks.config import NetworkConfig
from tests.models import proofs
from tests.models.cases import DENSE, FEATURES, GRID, Case, small, tasks, values
from tests.models.loop import gate_linears, linears, stacked

STACKED = [case for case in GRID if case.architecture != "esmm"]


@pytest.mark.parametrize("case", STACKED, ids=str)
def test_stacked_experts_equal_a_loop_in_value_and_gradient(case: Case):
    proofs.it_equals_the_loop(build, case.config, case.num_tasks, case.num_rows, case.dtype)


@pytest.mark.parametrize("gate_hidden_units", [(), (5,)])
@pytest.mark.parametrize("counts", [(1, 0, 2), (0, 0, 3), (2, 1, 1)])
def test_tasks_may_own_different_numbers_of_experts(counts, gate_hidden_units):
    config = small(
        "ple", num_task_experts=counts, num_levels=3, gate_hidden_units=gate_hidden_units
    )
    proofs.it_equals_the_loop(build, config)


@pytest.mark.parametrize("architecture", ["mmoe", "ple"])
def test_the_options_of_a_network_equal_the_loops(architecture):
    config = small(
        architecture,
        expert_activation="gelu",
        expert_output_activation=False,
        tower_hidden_units=(),
        gate_bias=False,
        gate_hidden_units=(4, 3),
        gate_activation="tanh",
    )
    proofs.it_equals_the_loop(build, config)


@pytest.mark.parametrize("proof", proofs.PLE_PROOFS, ids=lambda proof: proof.__name__)
def test_ple_has_every_property_of_the_paper(proof):
    proof(build)


@pytest.mark.parametrize("case", [c for c in STACKED if c.every_gate_chooses], ids=str)
def test_every_part_of_every_network_learns(case: Case):
    proofs.everything_learns(build, case.config, case.num_tasks)


def copied(target: NetworkConfig, source: NetworkConfig, rename=lambda name: name, **tensors):
    """Both networks, ``target`` with the weights of ``source`` and with ``tensors``."""
    a = build(source, FEATURES, tasks(3), seed=1).double()
    b = build(target, FEATURES, tasks(3), seed=2).double()
    wanted = b.state_dict()
    state = {rename(name): value for name, value in a.state_dict().items()}
    state |= {name: change(a) for name, change in tensors.items()}
    b.load_state_dict({name: state[name] for name in wanted})
    return a, b


def assert_equal_outputs(a, b):
    arguments = values(3, 17)
    torch.testing.assert_close(b(*arguments), a(*arguments), rtol=0, atol=1e-12)


def test_mmoe_of_one_expert_is_shared_bottom():
    assert_equal_outputs(
        *copied(
            small("shared_bottom"),
            small("mmoe", num_experts=1),
            lambda name: name.replace("body.experts", "body.bottom"),
        )
    )


def test_mmoe_of_equal_gates_is_moe():
    def tiled(part):
        return lambda moe: getattr(moe.body.gate.first, part).detach().repeat(1, 1, 3)

    first = "body.gates.first."
    assert_equal_outputs(
        *copied(
            small("mmoe"),
            small("moe"),
            **{first + "weight": tiled("weight"), first + "bias": tiled("bias")},
        )
    )


def test_cgc_without_task_experts_is_mmoe():
    assert_equal_outputs(
        *copied(small("mmoe"), small("cgc", num_task_experts=0, num_shared_experts=4))
    )


def test_ple_of_one_level_is_cgc():
    assert_equal_outputs(*copied(small("cgc"), small("ple", num_levels=1)))


def test_cgc_without_shared_experts_is_a_network_for_each_task():
    assert_equal_outputs(
        *copied(small("single_task"), small("cgc", num_task_experts=1, num_shared_experts=0))
    )


@pytest.mark.parametrize("architecture", ["moe", "mmoe", "cgc", "ple"])
def test_permuted_experts_with_their_gate_columns_change_nothing(architecture):
    config = small(architecture, num_experts=4, num_task_experts=1, num_shared_experts=4)
    network = build(config, FEATURES, tasks(3), seed=1).double()
    arguments = values(3, 17)
    before = network(*arguments)
    body: Any = network.body
    level = body.levels[-1] if architecture == "ple" else body
    gates = level.gate if architecture == "moe" else level.gates
    count = gates.softmax.num_experts
    last, to = [count - 1, count - 2], [count - 2, count - 1]  # two experts that every gate sees
    with torch.no_grad():
        for linear in stacked(level.experts):
            linear.weight[last] = linear.weight[to]
            linear.bias[last] = linear.bias[to]
        for weight, bias in gate_linears(gates, lambda p: p):
            assert bias is not None
            weight[:, [-1, -2]] = weight[:, [-2, -1]]
            bias[[-1, -2]] = bias[[-2, -1]]
    torch.testing.assert_close(network(*arguments), before, rtol=0, atol=1e-12)


def test_parameter_counts_are_those_counted_by_hand():
    shape = {"expert_hidden_units": (16, 8), "tower_hidden_units": (6,)}
    mmoe = build(small("mmoe", num_experts=4, **shape), DENSE, tasks(3))
    assert proofs.parameter_count(mmoe.body) == 2323
    proofs.the_parameter_count_is_the_formulas(build)


@pytest.mark.parametrize("case", [c for c in STACKED if not c.gate_hidden_units], ids=str)
def test_parameter_counts_are_the_formulas(case: Case):
    config, K, D = case.config, case.num_tasks, 20
    (h1, d), (t,) = config.expert_hidden_units, config.tower_hidden_units

    def expert(width):
        return (width + 1) * h1 + (h1 + 1) * d

    def gate(width, n):
        return (width + 1) * n

    m, s = case.experts
    n, N = m + s, config.levels
    inputs = [D, d, d][:N]
    counts = {
        "single_task": K * expert(D),
        "shared_bottom": expert(D),
        "moe": n * expert(D) + gate(D, n),
        "mmoe": n * expert(D) + K * gate(D, n),
        "cgc": (K * m + s) * expert(D) + K * gate(D, n),
        "ple": sum((K * m + s) * expert(width) + K * gate(width, n) for width in inputs)
        + sum(gate(width, K * m + s) for width in inputs[:-1]),
    }
    network = build(config, DENSE, tasks(K))
    towers = K * ((d + 1) * t + t + 1)
    assert proofs.parameter_count(network.body) == counts[config.body] + towers


@pytest.mark.parametrize("architecture", ["shared_bottom", "mmoe", "ple"])
def test_weights_are_drawn_within_one_over_the_root_of_their_inputs(architecture):
    network = build(small(architecture, expert_hidden_units=(40, 30)), FEATURES, tasks(3), seed=0)
    for weight, bias in linears(network.body):
        bound = weight.size(0) ** -0.5
        assert weight.abs().max() <= bound
        assert weight.numel() < 100 or weight.abs().max() > 0.9 * bound
        assert bias is not None
        assert bias.abs().max() <= bound
