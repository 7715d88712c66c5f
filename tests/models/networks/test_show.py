"""The table of a network adds up."""

import io

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from models.networks.build import build
from models.networks.show import parts, render
from tests.models.cases import ARCHITECTURES, FEATURES, small, tasks, values


def product_flops(_, left, right, **_shapes):
    batch, rows, inner = left
    return 2 * batch * rows * inner * right[2]


@pytest.mark.parametrize("gate_hidden_units", [(), (5,)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_parts_hold_every_parameter_and_product(architecture, gate_hidden_units):
    config = small(architecture, gate_hidden_units=gate_hidden_units)
    network = build(config, FEATURES, tasks(3), seed=1)
    lines = parts(network)
    assert sum(part.parameters for part in lines) == sum(p.numel() for p in network.parameters())

    R, B = 3, 50
    in_place = {torch.ops.aten.baddbmm_: product_flops}  # torch counts the other form only
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, torch.no_grad():
        network(*values(R, B))
    pooling = 2 * (R * 1 * 5 * 4 + B * 1 * 3 * 2)  # the lists' pooling: lists × length × width
    counted = sum(part.row_flops * B + part.request_flops * R for part in lines)
    assert counter.get_total_flops() - pooling == counted


def test_the_table_names_parts_and_sums_them_up():
    network = build(small("ple"), FEATURES, tasks(3), seed=1)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(network))
    text = console.export_text()
    assert "PLE" in text
    assert "body.levels.0.gates" in text
    count = sum(parameter.numel() for parameter in network.parameters())
    assert f"{count:,}" in text.splitlines()[-2]
