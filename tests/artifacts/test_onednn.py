"""Large matrix products run with oneDNN, small ones with MKL; the results are the same."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.artifacts import loader
from app.artifacts.columns import ModelInputs
from app.artifacts.golden import Golden
from app.artifacts.loader import load, load_program
from app.artifacts.manifest import Precision
from app.artifacts.onednn import (
    gain_of,
    least_work,
    padded_rows,
    padded_sizes,
    rewrite,
)
from app.artifacts.onednn_products import FEWEST_ROWS, is_large
from app.artifacts.program import Program
from app.errors import ArtifactInvalid
from tests.support.builders import CPU, batch, description, published, scripted

EVERY = 1  # of a product's multiplications: every product is large
NONE = 2**62

E, IN, OUT = 3, 20, 12


class Product(nn.Module):
    """A product with parameters; subclasses say how it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(OUT, IN))
        self.bias = nn.Parameter(torch.randn(OUT))
        self.stack = nn.Parameter(torch.randn(E, IN, OUT))
        self.stack_bias = nn.Parameter(torch.randn(E, 1, OUT))


class Linear(Product):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias).relu()


class LinearWithoutBias(Product):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class LinearOfLists(Product):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.view(x.size(0), 5, 4), self.weight[:, :4], self.bias)


class AddMM(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight.t())


class AddMMOfRows(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(x[:, :12], x, self.weight.t())


class ScaledAddMM(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight.t(), beta=0.5, alpha=2)


class MM(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.stack[0])


class MatMul(Product):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.stack[1] + self.bias


class MatMulOfStack(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.stack)


class BMM(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.expand(3, -1, -1), self.stack)


class BAddBMM(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.stack_bias, x.expand(3, -1, -1), self.stack)


class BAddBMMOfOne(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.stack_bias[1:2], x.unsqueeze(0), self.stack[1:2])


class BAddBMMWithOneBias(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.expand(3, -1, -1), self.stack)


class BAddBMMOfRows(Product):
    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(x[:, :12].expand(3, -1, -1), x.expand(3, -1, -1), self.stack)


class InPlaceOnNewTensor(Product):
    def forward(self, x: Tensor) -> Tensor:
        rows = torch.zeros(x.size(0), dtype=torch.int64)
        return self.stack_bias.index_select(1, rows).baddbmm_(x.expand(3, -1, -1), self.stack)


class InPlaceOnUsedTensor(Product):
    def forward(self, x: Tensor) -> Tensor:
        rows = torch.zeros(x.size(0), dtype=torch.int64)
        sums = self.stack_bias.index_select(1, rows)
        sums.baddbmm_(x.expand(3, -1, -1), self.stack)
        return sums * 2


class InPlaceOnView(Product):
    def forward(self, x: Tensor) -> Tensor:
        sums = torch.ones(1, 3, x.size(0), 12)
        sums[0].baddbmm_(x.expand(3, -1, -1), self.stack)
        return sums


class OfOtherType(Product):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.double(), self.weight.double(), self.bias.double())


class Transposed(Product):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.t().contiguous().t()[:, ::2], self.weight[:, ::2], self.bias)


class BranchesAndLoops(Product):
    def forward(self, x: Tensor) -> Tensor:
        found = functional.linear(x, self.weight, self.bias)
        for e in range(3):
            if x.size(0) > e:
                found = found + torch.mm(x, self.stack[e])
        return found


REWRITTEN = (
    Linear,
    LinearWithoutBias,
    LinearOfLists,
    AddMM,
    AddMMOfRows,
    MM,
    MatMul,
    MatMulOfStack,
    BMM,
    BAddBMM,
    BAddBMMOfOne,
    BAddBMMWithOneBias,
    BAddBMMOfRows,
    InPlaceOnNewTensor,
    OfOtherType,
    Transposed,
    BranchesAndLoops,
)
LEFT_TO_MKL = (OfOtherType, AddMMOfRows, LinearOfLists, MatMulOfStack, BAddBMMWithOneBias)
"""Rewritten, but their sizes or types are none that the functions support."""
LEFT = (ScaledAddMM, InPlaceOnUsedTensor, InPlaceOnView)


def frozen(module):
    return torch.jit.freeze(scripted(module))


def uses_onednn(module: torch.jit.ScriptModule, x: Tensor) -> bool:
    with torch.autograd.profiler.profile() as profile:
        module(x)
    return any(event.name == "mkldnn::_linear_pointwise" for event in profile.function_events)


@pytest.mark.parametrize("kind", [*REWRITTEN, *LEFT])
def test_a_rewritten_product_has_the_same_result(kind):
    torch.manual_seed(3)
    product = kind().eval()
    plain = frozen(product)
    for work in (EVERY, 30 * IN * OUT, NONE):
        rewritten = frozen(product)
        assert (rewrite(rewritten.graph, work)[0] > 0) is (kind in REWRITTEN)
        for rows in (1, FEWEST_ROWS - 1, FEWEST_ROWS, 17, 96, 100):
            x = torch.randn(rows, IN)
            before = x.clone()
            for _ in range(3):  # a profiled run and optimised ones
                torch.testing.assert_close(rewritten(x), plain(x), rtol=1e-5, atol=1e-5)
            assert torch.equal(x, before)


@pytest.mark.parametrize("kind", [kind for kind in REWRITTEN if kind not in LEFT_TO_MKL])
def test_a_product_runs_with_onednn_from_its_size_on(kind):
    module = frozen(kind())
    rewrite(module.graph, EVERY)
    assert not uses_onednn(module, torch.randn(FEWEST_ROWS - 1, IN))
    assert uses_onednn(module, torch.randn(FEWEST_ROWS, IN))
    small = frozen(kind())
    rewrite(small.graph, NONE)
    assert not uses_onednn(small, torch.randn(100, IN))


@pytest.mark.parametrize("kind", [Linear, BAddBMM, MatMul])
def test_nan_stays_in_its_row(kind):
    module = frozen(kind())
    rewrite(module.graph, EVERY)
    x = torch.randn(40, IN)
    expected = module(x)
    x[7, 3] = float("nan")
    found = module(x)
    assert found[..., 7, :].isnan().all()
    others = [row for row in range(40) if row != 7]
    assert torch.equal(found[..., others, :], expected[..., others, :])


def test_least_work_is_measured_once_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    work = least_work()
    assert work is None or work >= FEWEST_ROWS * 128 * 128
    assert least_work() == work
    assert torch.get_num_threads() == threads


def test_sizes_are_few_and_cover_every_number_of_rows():
    for rows in range(2000):
        assert rows <= padded_rows(rows) <= max(rows + 3, 1.125 * rows)
        assert padded_rows(padded_rows(rows)) == padded_rows(rows)
    assert padded_sizes(16, 15) == []
    assert padded_sizes(1, 20) == [1, 2, 4, 8, 12, 16, 20]
    assert padded_sizes(16, 512)[-2:] == [480, 512]
    assert len(padded_sizes(16, 512)) == 37
    assert {padded_rows(rows) for rows in range(1, 513)} == set(padded_sizes(1, 512))


def test_only_padded_sizes_run_with_onednn():
    found = [rows for rows in range(1, 513) if is_large(rows, 1, 1)]
    assert found == padded_sizes(FEWEST_ROWS, 512)
    assert not is_large(64, 999, 64_000)
    assert is_large(64, 1000, 64_000)


def test_a_product_of_two_activations_is_left_alone():
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x.expand(2, -1, -1), x.t().expand(2, -1, -1)) + torch.mm(x, x.t())

    module = frozen(Attention())
    assert rewrite(module.graph, EVERY) == (0, 0)
    assert not uses_onednn(module, torch.randn(64, IN))


class Counts(nn.Module):
    """Returns how many rows and how many users it got."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        quality = candidate["quality"]
        sums = quality[:, :1] * 0 + user["age"][row_to_request] * 0
        return torch.cat([sums + quality.size(0), sums + user["age"].size(0)], 1)


def test_a_batch_is_padded_for_the_module_and_not_for_its_caller():
    program = Program(scripted(Counts()), description(), CPU, pads_from=1)
    inputs = batch(sizes=(5, 1, 3))
    assert program.run(inputs).tolist() == [[12.0, 4.0]] * 9
    exact = Program(scripted(Counts()), description(), CPU, pads_from=16)
    assert exact.run(inputs).tolist() == [[9.0, 3.0]] * 9
    assert exact.run(batch(sizes=(17,))).tolist() == [[20.0, 1.0]] * 17
    assert inputs.rows == 9


class Layers(nn.Module):
    """A network of two layers, wide enough for large products."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 256)
        self.wide = nn.Linear(256, 256)
        self.last = nn.Linear(256, 2)

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        x = torch.cat([candidate["quality"], user["age"][row_to_request]], 1)
        found: Tensor = self.last(self.wide(self.hidden(x).relu()).relu()) * 0.1
        return found


def test_padding_changes_no_score():
    torch.manual_seed(0)
    plain = Program(scripted(Layers()), description(), CPU)
    padded = Program(scripted(Layers()), description(), CPU, pads_from=1)
    padded._module.load_state_dict(plain._module.state_dict())
    for sizes in ((1,), (3, 1, 2), (1,) * 21, (70, 30)):
        inputs = batch(sizes=sizes)
        np.testing.assert_allclose(padded.run(inputs), plain.run(inputs), rtol=1e-5, atol=1e-6)


def test_a_version_is_served_with_onednn_and_has_the_same_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "least_work", lambda: 64 * 256 * 256)
    artifact = published(tmp_path, Layers())
    served = load(artifact, CPU)
    assert served.program.pads_from == 64
    assert "mkldnn::_linear_pointwise" in str(served.program._module.graph)
    plain = load_program((artifact.folder / "model.ts").read_bytes(), description(), CPU)
    assert plain.pads_from == 0
    for sizes in ((1,), (100, 1, 30), (1,) * 90, (128,)):
        inputs = batch(sizes=sizes)
        np.testing.assert_allclose(
            served.program.run(inputs), plain.run(inputs), rtol=1e-5, atol=1e-6
        )


def test_where_onednn_is_not_faster_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "least_work", lambda: None)
    served = load(published(tmp_path, Layers()), CPU)
    assert served.program.pads_from == 0
    assert "mkldnn" not in str(served.program._module.graph)


@pytest.mark.parametrize("check", ["check", "check_repeated"])
@pytest.mark.parametrize("error", [ArtifactInvalid("it differs"), RuntimeError("no kernel")])
def test_a_version_that_fails_with_onednn_stays_with_mkl(
    tmp_path, monkeypatch, caplog, check, error
):
    monkeypatch.setattr(loader, "least_work", lambda: 64 * 256 * 256)

    method = getattr(Golden, check)

    def differs(golden: Golden, program: Program, *rows: int):
        if program.pads_from:
            raise error
        return method(golden, program, *rows)

    monkeypatch.setattr(Golden, check, differs)
    with caplog.at_level(logging.WARNING):
        served = load(published(tmp_path, Layers()), CPU)
    assert served.program.pads_from == 0
    assert f"feed/1: matrix products stay with MKL: {error}" in caplog.text


def test_every_rewritten_product_is_checked_in_a_large_batch(tmp_path, monkeypatch):
    """A narrow network: its products are large in larger batches than the golden examples."""
    monkeypatch.setattr(loader, "least_work", lambda: 600 * 256 * 256)
    checked = []
    check = Golden.check_repeated

    def recording(golden: Golden, program: Program, rows: int) -> float:
        checked.append((rows, program.pads_from))
        return check(golden, program, rows)

    monkeypatch.setattr(Golden, "check_repeated", recording)
    load(published(tmp_path, Layers()), CPU)
    assert checked == [(1024, 600)]  # the last layer, 256 × 2, is large nowhere


def test_repeated_examples_find_a_program_that_is_wrong_in_large_batches(tmp_path, monkeypatch):
    served = load(published(tmp_path, Layers()), CPU)
    golden, program = served.golden, served.program

    assert golden.check_repeated(program, 256) <= 1e-5
    run = program.run

    def wrong_from_100_rows_on(inputs: ModelInputs):
        return run(inputs) + (inputs.rows >= 100)

    monkeypatch.setattr(program, "run", wrong_from_100_rows_on)
    golden.check(program)
    with pytest.raises(ArtifactInvalid, match=r"a batch of \d+ rows: raw output of task"):
        golden.check_repeated(program, 256)


@pytest.mark.parametrize("gain", [0.4, 2.0])
def test_a_network_in_bf16_is_padded_at_every_size(tmp_path, monkeypatch, caplog, gain):
    monkeypatch.setattr(loader, "gain_of", lambda _: gain)

    class Half(Layers):
        def forward(
            self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
        ) -> Tensor:
            x = torch.cat([candidate["quality"], user["age"][row_to_request]], 1).to(torch.bfloat16)
            found: Tensor = self.last(self.wide(self.hidden(x).relu()).relu()).float() * 0.1
            return found

    described = Precision(tolerance={"cpu": 0.1, "cuda": 0.1})
    served = load(published(tmp_path, Half().to(torch.bfloat16), precision=described), CPU)
    assert served.program.pads_from == 1
    slow = "parameters in bfloat16, which this CPU computes at 0.40 of the speed of float32"
    assert (slow in caplog.text) is (gain < 1)


def test_the_gain_of_a_precision_is_measured():
    assert gain_of(torch.float32) > 0
    assert gain_of(torch.bfloat16) > 0
