"""A network as a table: parts, shapes, parameters and floating-point operations.

Only matrix products are counted, two operations per weight and row. The user part of the first
layer counts once per request, everything else once per row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table
from torch import nn

from models.networks.build import RankingNetwork
from models.networks.gates import Softmax
from models.networks.layers import InputLinear, StackedLinear, Towers


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the table; operations are per candidate row and per request."""

    name: str
    shape: str
    parameters: int = 0
    row_flops: int = 0
    request_flops: int = 0


def parts(network: RankingNetwork) -> list[Part]:
    """The parts of a network in the order of the forward pass."""
    return [
        part for name, module in network.named_modules() for part in parts_of(name, module, network)
    ]


def parts_of(name: str, module: nn.Module, network: RankingNetwork) -> Iterator[Part]:
    """The table lines of one module; none for a module that only contains others."""
    if isinstance(module, nn.ParameterList):
        for i, table in enumerate(module):
            yield Part(f"{name}.{i}", "{} ids × {}".format(*table.shape), table.numel())
    elif isinstance(module, StackedLinear):
        E, inputs, outputs = module.weight.shape
        flops = 2 * module.weight.numel()
        yield Part(name, f"{E} × ({inputs} → {outputs})", own_parameters(module), flops)
    elif isinstance(module, InputLinear):
        E, outputs = module.count, module.weight.size(2)
        yield Part(
            name,
            f"{E} × ({module.user} + {module.candidate} → {outputs})",
            own_parameters(module),
            row_flops=2 * E * module.candidate * outputs,
            request_flops=2 * E * module.user * outputs,
        )
    elif isinstance(module, Softmax):
        gates, experts, width = module.num_gates, module.num_experts, expert_width(network)
        flops = 2 * gates * experts * width
        yield Part(name, f"{gates} gates × {experts} experts × {width}", row_flops=flops)
    elif isinstance(module, Towers):
        K, inputs, _ = module.last_weight.shape
        flops = 2 * module.last_weight.numel()
        yield Part(f"{name}.last", f"{K} × ({inputs} → 1)", own_parameters(module), flops)


def own_parameters(module: nn.Module) -> int:
    """Number of parameters of the module itself, without its children."""
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def expert_width(network: RankingNetwork) -> int:
    """The output width of an expert, which is the input width of a tower."""
    return next(module.inputs for module in network.modules() if isinstance(module, Towers))


def render(network: RankingNetwork) -> Table:
    """The table, for ``rich.console.Console().print``; the last line is the sum."""
    lines = parts(network)
    total = Part(
        "total",
        "",
        sum(part.parameters for part in lines),
        sum(part.row_flops for part in lines),
        sum(part.request_flops for part in lines),
    )
    table = Table(title=type(network.body).__name__)
    for heading in ("part", "shape"):
        table.add_column(heading)
    for heading in ("parameters", "FLOPs per row", "FLOPs per request"):
        table.add_column(heading, justify="right")
    for part in [*lines, total]:
        if part is total:
            table.add_section()
        counts = (part.parameters, part.row_flops, part.request_flops)
        table.add_row(part.name, part.shape, *(f"{count:,}" if count else "" for count in counts))
    return table
