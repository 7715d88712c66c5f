"""No network of ours asks the host for a value: the capture of a CUDA graph would fail there.

Told on the CPU, by the scripted, frozen graph and by the operators that it comes down to.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from app.artifacts.columns import ModelInputs
from app.artifacts.effects import effects
from app.artifacts.program import Program
from models.export.export import description
from models.networks.build import build
from models.networks.config import NetworkConfig
from models.training import experiment
from tests import TINY_EXPERIMENT
from tests.support.builders import CPU, batch, description as small_description, scripted

ARCHITECTURES = ("single_task", "shared_bottom", "moe", "mmoe", "cgc", "ple", "esmm")
ASKS = {"Bool", "Int", "Float", "item", "tolist", "equal", "is_nonzero"} | {
    f"{kind}Implicit" for kind in ("Int", "Float", "Scalar")
}
"""Conversions in TorchScript that wait where what they convert is a tensor."""
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2"}
"""Operators whose result, or whose size, is known to the host only after the device is done."""


class Operators(TorchDispatchMode):
    """Notes which operators are called; picking elements by a mask is `nonzero`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            name = "nonzero"
        self.names.add(name)
        return func(*args, **(kwargs or {}))


def nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from nodes(inner)


def waiting(module: torch.jit.ScriptModule, program: Program, requests: ModelInputs) -> set[str]:
    """Where a module waits for the device."""
    asking = {
        node.kind().removeprefix("aten::")
        for node in nodes(module.inlined_graph)
        if any(str(value.type()) == "Tensor" for value in node.inputs())
    }
    with torch.jit.optimized_execution(False), Operators() as operators:  # type: ignore[attr-defined]
        program.run(requests)
    assert operators.names
    found: set[str] = (asking & ASKS) | (operators.names & WAITS)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_network_does_not_synchronise_with_the_host(architecture):
    tiny = experiment.read(TINY_EXPERIMENT)
    network = NetworkConfig.model_validate(
        tiny.network.model_dump() | {"architecture": architecture}
    )
    tasks = tiny.tasks
    if architecture == "esmm":
        click, like, *rest = tasks
        tasks = (click, like.model_copy(update={"sample_space": click.name}), *rest)
    told = description(tiny.model_copy(update={"network": network, "tasks": tasks}), {})
    built = build(network, tiny.features, tasks, seed=0).eval()
    module = torch.jit.freeze(torch.jit.script(built))
    assert waiting(module, Program(module, told, CPU), batch(told.inputs)) == set()
    assert not effects(module, module).reads_values


class Masks(nn.Module):
    """Picks by a mask."""

    def forward(
        self,
        user: dict[str, torch.Tensor],
        candidate: dict[str, torch.Tensor],
        row_to_request: torch.Tensor,
    ) -> torch.Tensor:
        quality = candidate["quality"] + user["age"][row_to_request]
        return quality + quality[quality > 100].sum()  # [B, 2]


class Branches(nn.Module):
    """Looks at a value."""

    def forward(
        self,
        user: dict[str, torch.Tensor],
        candidate: dict[str, torch.Tensor],
        row_to_request: torch.Tensor,
    ) -> torch.Tensor:
        quality = candidate["quality"] + user["age"][row_to_request]
        if bool((quality > 100).any()):
            return -quality
        return quality


@pytest.mark.parametrize(("module", "found"), [(Masks(), {"nonzero"}), (Branches(), {"Bool"})])
def test_synchronising_module_is_detected(module, found):
    script = scripted(module)
    assert waiting(script, Program(script, small_description(), CPU), batch()) == found
