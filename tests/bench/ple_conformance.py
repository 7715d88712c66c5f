"""Which properties of PLE public implementations have: ``python -m tests.bench.ple_conformance``.

The properties follow from equations 2 to 6 of the PLE paper (Tang et al., RecSys 2020) and from
serving. Each is checked by outputs and gradients of a network with three tasks, for several numbers
of experts; nothing is read from documentation. An implementation is described by an adapter, which
only says where its experts, gates and towers are.

Implementations that are not installed are skipped. They may be in a folder of their own:
`pip install --target DIR --no-deps torch-rechub deepctr-torch`, then `PYTHONPATH=.:DIR`.
"""

import argparse
import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.networks.build import build
from models.networks.config import DenseFeature, NetworkConfig, Task
from models.networks.layers import InputLinear, StackedLinear

D, K, H, T, ROWS = 20, 3, (16, 8), 6, 64
Modules = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """Numbers of experts per task, of shared experts, and of levels."""

    own: int
    shared: int
    levels: int


SHAPES = (Shape(2, 3, 2), Shape(3, 1, 2), Shape(1, 3, 3), Shape(2, 2, 2))


@dataclass(frozen=True, slots=True)
class Network:
    """An implementation, and where its parts are.

    Attributes:
        name: of the library.
        module: the whole network.
        logits: inputs `[B, D]` to outputs `[B, K]`, before or after the sigmoid.
        experts: by level and owner (task, or K for the shared ones), the gradients of each expert.
        gates: by level and owner, the gradients of the gate; empty without one.
        towers: by task, the gradients of the tower.
        gate_inputs: by level and task, the input of the gate in the last forward pass.
        gate_widths: by level and owner, the number of experts that the gate sees; 0 without one.
    """

    name: str
    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    experts: Callable[[int, int], list[list[Tensor]]]
    gates: Callable[[int, int], list[Tensor]]
    towers: Callable[[int], list[Tensor]]
    gate_inputs: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    gate_widths: dict[tuple[int, int], int] = field(default_factory=dict)


def gradients(module: Any) -> list[Tensor]:
    """The gradient of every parameter; zeros where there is none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]


def largest(tensors: Iterable[Tensor]) -> float:
    """The largest absolute value."""
    return max((float(tensor.abs().max()) for tensor in tensors), default=0.0)


def ours(shape: Shape) -> Network:
    """`models.networks.ple`; its experts are slices of stacked parameters."""
    config = NetworkConfig(
        architecture="ple",
        num_task_experts=shape.own,
        num_shared_experts=shape.shared,
        num_levels=shape.levels,
        expert_hidden_units=H,
        tower_hidden_units=(T,),
    )
    feature = DenseFeature(name="x", side="candidate", dim=D)
    tasks = [Task(name=f"t{k}", kind="binary") for k in range(K)]
    network = build(config, [feature], tasks, seed=0)
    body: Any = network.body
    levels = [body, *body.levels]

    def slices(module: Any, index: int) -> list[Tensor]:
        linears = [m for m in module.modules() if isinstance(m, StackedLinear | InputLinear)]
        return [grad[index] for m in linears for grad in gradients(m)]

    def experts(level: int, owner: int) -> list[list[Tensor]]:
        first = owner * shape.own
        count = shape.shared if owner == K else shape.own
        return [slices(levels[level].experts, first + i) for i in range(count)]

    def gates(level: int, owner: int) -> list[Tensor]:
        widths = levels[level].gates.softmax.widths
        if owner >= len(widths):
            return []
        if level == 0:  # all gates of level 1 are one linear map
            parts = [part.split(widths, -1) for part in gradients(levels[0].gates.first)]
            return [part[owner] for part in parts]
        found = [g for run in levels[level].gates.heads.runs for g in gradients(run)]
        heads = [(run, i) for run in levels[level].gates.heads.runs for i in range(run.count)]
        run, index = heads[owner]
        return [g[index] for g in gradients(run)] if found else []

    def towers(task: int) -> list[Tensor]:
        last = (body.towers.last_weight, body.towers.last_bias)
        own = [p.grad[task] for p in last if p.grad is not None]
        return own + slices(body.towers.hidden, task)

    def logits(x: Tensor) -> Tensor:
        row_to_request = torch.zeros(len(x), dtype=torch.int64)
        outputs: Tensor = network({}, {"x": x}, row_to_request)
        return outputs

    found = Network("Gatehouse", network, logits, experts, gates, towers)
    for level, module in enumerate(levels):
        for owner, width in enumerate(module.gates.softmax.widths):
            found.gate_widths[level, owner] = width
        if level:
            record_stacked(module.gates, found, level)
    return found


def record_stacked(gates: nn.Module, network: Network, level: int) -> None:
    """Record the inputs of all gates of a level, ``[G, B, d]``."""

    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        for task in range(K):
            network.gate_inputs[level, task] = arguments[0][task].detach()

    gates.register_forward_pre_hook(hook)


def record(gate: nn.Module, network: Network, level: int, task: int) -> None:
    """Record the input of one gate."""

    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        network.gate_inputs[level, task] = arguments[0].detach()

    gate.register_forward_pre_hook(hook)


def torch_rechub(shape: Shape) -> Network:
    """`torch_rechub.models.multi_task.PLE`."""
    from torch_rechub.basic.features import DenseFeature as RechubFeature
    from torch_rechub.models.multi_task import PLE

    features = [RechubFeature(f"x{i}") for i in range(D)]
    model = PLE(
        features,
        ["classification"] * K,
        shape.levels,
        shape.own,
        shape.shared,
        {"dims": list(H)},
        [{"dims": [T]} for _ in range(K)],
    )
    layers = model.cgc_layers

    def experts(level: int, owner: int) -> list[list[Tensor]]:
        layer = layers[level]
        first = owner * shape.own
        found = layer.experts_shared if owner == K else layer.experts_specific
        modules = found if owner == K else found[first : first + shape.own]
        return [gradients(expert) for expert in modules]

    def gate(level: int, owner: int) -> Any:
        layer = layers[level]
        return layer.gates_specific[owner] if owner < K else getattr(layer, "gate_shared", None)

    def gates(level: int, owner: int) -> list[Tensor]:
        found = gate(level, owner)
        return gradients(found) if found is not None else []

    def logits(x: Tensor) -> Tensor:
        outputs: Tensor = model({f"x{i}": x[:, i] for i in range(D)})
        return outputs

    network = Network(
        "torch-rechub", model, logits, experts, gates, lambda k: gradients(model.towers[k])
    )
    for level in range(shape.levels):
        for owner in range(K + 1):
            found = gate(level, owner)
            network.gate_widths[level, owner] = 0 if found is None else found.mlp[0].out_features
            if owner < K:
                record(found, network, level, owner)
    return network


def deepctr_torch(shape: Shape) -> Network:
    """`deepctr_torch.models.multitask.PLE`, with the linear gates of the paper."""
    from deepctr_torch.inputs import DenseFeat
    from deepctr_torch.models.multitask.ple import PLE

    with contextlib.redirect_stdout(io.StringIO()):
        model = PLE(
            [DenseFeat("x", D)],
            shared_expert_num=shape.shared,
            specific_expert_num=shape.own,
            num_levels=shape.levels,
            expert_dnn_hidden_units=H,
            gate_dnn_hidden_units=(),
            tower_dnn_hidden_units=(T,),
            task_types=("binary",) * K,
            task_names=tuple(f"t{k}" for k in range(K)),
            init_std=0.3,
        )

    def experts(level: int, owner: int) -> list[list[Tensor]]:
        found = (
            model.shared_experts[level][0] if owner == K else model.specific_experts[level][owner]
        )
        return [gradients(expert) for expert in found]

    def gate(level: int, owner: int) -> Any:
        if owner < K:
            return model.specific_gate_dnn_final_layer[level][owner]
        return model.shared_gate_dnn_final_layer[level]

    def towers(task: int) -> list[Tensor]:
        return gradients(model.tower_dnn[task]) + gradients(model.tower_dnn_final_layer[task])

    network = Network(
        "DeepCTR-Torch",
        model,
        model,
        experts,
        lambda level, owner: gradients(gate(level, owner)),
        towers,
    )
    for level in range(shape.levels):
        for owner in range(K + 1):
            network.gate_widths[level, owner] = gate(level, owner).out_features
            if owner < K:
                record(gate(level, owner), network, level, owner)
    return network


IMPLEMENTATIONS = (ours, torch_rechub, deepctr_torch)
Make = Callable[[Shape], Network]


def inputs(rows: int = ROWS, seed: int = 1) -> Tensor:
    """Random inputs `[rows, D]`."""
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def learn(network: Network, task: int) -> None:
    """Take the gradient of one task's outputs, in evaluation mode."""
    network.module.eval()
    network.module.zero_grad(set_to_none=True)
    network.logits(inputs())[:, task].square().sum().backward()


def any_number_of_experts(make: Make) -> None:
    for shape in SHAPES:
        network = make(shape)
        network.module.eval()
        assert network.logits(inputs()).shape == (ROWS, K)
        for level in range(shape.levels):
            assert len(network.experts(level, 0)) == shape.own
            assert len(network.experts(level, K)) == shape.shared


def last_level_is_private(make: Make) -> None:
    shape = SHAPES[3]
    network = make(shape)
    learn(network, 0)
    last = shape.levels - 1
    for owner in (0, K):
        assert largest(g for expert in network.experts(last, owner) for g in expert) > 0
    for owner in range(1, K):
        assert largest(g for expert in network.experts(last, owner) for g in expert) == 0
        assert largest(network.gates(last, owner)) == 0
        assert largest(network.towers(owner)) == 0


def earlier_levels_learn_from_every_task(make: Make) -> None:
    network = make(SHAPES[3])
    learn(network, 0)
    for owner in range(K + 1):
        for expert in network.experts(0, owner):
            assert largest(expert) > 0


def gates_select_by_the_previous_output(make: Make) -> None:
    network = make(SHAPES[3])
    network.module.eval()
    network.logits(inputs())
    assert network.gate_inputs[1, 0].shape == (ROWS, H[-1])
    assert not torch.equal(network.gate_inputs[1, 0], network.gate_inputs[1, 1])


def shared_gate_sees_every_expert(make: Make) -> None:
    for shape in SHAPES:
        network = make(shape)
        for level in range(shape.levels):
            assert network.gate_widths[level, 0] == shape.own + shape.shared
        assert network.gate_widths[0, K] == K * shape.own + shape.shared


def no_gate_without_a_reader(make: Make) -> None:
    """The last level has no shared gate."""
    shape = SHAPES[3]
    assert make(shape).gate_widths.get((shape.levels - 1, K), 0) == 0


def every_parameter_learns(make: Make) -> None:
    for shape in SHAPES:
        network = make(shape)
        network.module.train()
        weights = torch.randn(ROWS, K, generator=torch.Generator().manual_seed(2))
        (network.logits(inputs()) * weights).sum().backward()
        for name, parameter in network.module.named_parameters():
            assert parameter.grad is not None, name


def row_alone_equals_row_in_a_batch(make: Make) -> None:
    network = make(SHAPES[3])
    network.module.eval()
    x = inputs()
    alone = torch.cat([network.logits(row) for row in x.split(1)])
    assert torch.allclose(alone, network.logits(x), atol=1e-6)


def training_does_not_mix_rows(make: Make) -> None:
    """In training mode, without dropout, a row's output depends on that row only."""
    network = make(SHAPES[3])
    network.module.train()
    x = inputs()
    changed = torch.cat([x[:1], inputs(ROWS - 1, seed=9)])
    assert torch.allclose(network.logits(x)[0], network.logits(changed)[0], atol=1e-6)


def one_row_trains(make: Make) -> None:
    network = make(SHAPES[3])
    network.module.train()
    assert network.logits(inputs(1)).shape == (1, K)


def no_rows_give_no_scores(make: Make) -> None:
    network = make(SHAPES[3])
    network.module.eval()
    assert network.logits(inputs(0)).shape == (0, K)


def scripted_gives_the_same(make: Make) -> None:
    module = make(SHAPES[3]).module.eval()
    for submodule in module.modules():
        submodule._forward_pre_hooks.clear()  # those that `record` added
    torch.jit.script(module)


def parameters_are_those_of_the_formula(make: Make) -> None:
    """Experts, gates and towers with biases, and nothing else: 7590 parameters."""
    module = make(SHAPES[0]).module
    assert sum(parameter.numel() for parameter in module.parameters()) == 7590


PROOFS: dict[str, Callable[[Make], None]] = {
    "any number of task and shared experts": any_number_of_experts,
    "7: the last level is private to its task": last_level_is_private,
    "8: earlier levels learn from every task": earlier_levels_learn_from_every_task,
    "9: every parameter has a gradient": every_parameter_learns,
    "10: gates of level 2 read level 1's output": gates_select_by_the_previous_output,
    "13: the shared gate sees every expert": shared_gate_sees_every_expert,
    "13: the last level has no shared gate": no_gate_without_a_reader,
    "14: parameters of linear gates and plain MLPs, no more": parameters_are_those_of_the_formula,
    "16: a row alone scores as in a batch": row_alone_equals_row_in_a_batch,
    "16: rows do not mix in training": training_does_not_mix_rows,
    "17: one row can be trained on": one_row_trains,
    "17: no rows give no scores": no_rows_give_no_scores,
    "19: torch.jit.script compiles it": scripted_gives_the_same,
}


def verdict(proof: Callable[[Make], None], make: Make) -> str:
    """`yes`, or `no`, or `-` where the library is not installed."""
    torch.manual_seed(0)
    np.random.seed(0)
    try:
        proof(make)
    except ImportError:
        return "–"
    except Exception:  # noqa: BLE001  (whatever a library raises, the property does not hold)
        return "**no**"
    return "yes"


def main() -> None:
    """Print the table in Markdown."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    names = ["Gatehouse", "torch-rechub", "DeepCTR-Torch"]
    print(f"| property | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for name, proof in PROOFS.items():
        print(f"| {name} | {' | '.join(verdict(proof, make) for make in IMPLEMENTATIONS)} |")


if __name__ == "__main__":
    main()
