"""Reduced precision: what changes in a network, and that the order stays where it must."""

import pytest
import torch

from models.export.precision import quantised, reduced
from models.networks.build import build
from tests.models.cases import ARCHITECTURES, FEATURES, small, tasks, values


def network(architecture="mmoe"):
    return build(small(architecture), FEATURES, tasks(3), seed=1)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_held_in_half_and_logits_come_in_full(name, dtype):
    full = network()
    half = reduced(full, name)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}
    assert half(*values(2, 3)).dtype == torch.float32


def test_int8_embeddings_leave_everything_else_as_it_is():
    full = network()
    small_tables = dict(reduced(full, "int8-embeddings").named_parameters())
    kept = {name: parameter for name, parameter in full.named_parameters() if "tables" not in name}
    assert kept
    for name, parameter in kept.items():
        assert torch.equal(small_tables.pop(name), parameter)
    tables = list(small_tables.values())
    assert [table.dtype for table in tables] == [torch.int8] * 2 + [torch.float32] * 2
    bytes_before = sum(t.numel() * t.element_size() for t in full.columns.tables)
    assert sum(t.numel() * t.element_size() for t in tables[:2]) * 4 == bytes_before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_int8_embeddings_score_as_their_table_in_floats_would(architecture):
    full = network(architecture).eval()
    small_tables = reduced(full, "int8-embeddings")
    with torch.no_grad():
        for table in full.columns.tables:
            numbers, scale = quantised(table)
            table.copy_(numbers * scale)
    arguments = values(3, 17)
    expected = full(*arguments)
    frozen = torch.jit.freeze(torch.jit.script(small_tables))
    for form in (small_tables, frozen, frozen, frozen):
        torch.testing.assert_close(form(*arguments), expected, rtol=0, atol=1e-6)


def test_quantised_row_is_off_by_half_a_step_at_most():
    table = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    table[7] = 0
    table[8] *= 1e-6
    numbers, scale = quantised(table)
    assert (numbers.abs().amax(1)[[0, 8]] == 127).all()
    assert ((numbers * scale - table).abs() <= scale / 2 * 1.001).all()
    assert torch.equal(numbers[7] * scale[7], table[7])


def test_reduced_network_is_a_copy_in_evaluation_mode():
    full = network().train()
    half = reduced(full, "fp32")
    assert not half.training
    assert full.training
    assert not any(parameter.requires_grad for parameter in half.parameters())
    assert all(parameter.requires_grad for parameter in full.parameters())
