"""What a module changes when it is called is found in its graph, and nothing else is suspected."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.artifacts.effects import Effects, effects


def found(module: nn.Module, *, trace: bool = False) -> Effects:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.eval()
        made: Any = torch.jit.script(module)
        if trace:
            made = torch.jit.trace(module, (torch.ones(4, 3),), check_trace=False)
        return effects(made, torch.jit.freeze(made))


class BufferRow(nn.Module):
    room: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("room", torch.zeros(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.room[: x.size(0)] = x
        return self.room[: x.size(0)]


class Parameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.add_(1)
        return x * self.weight


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = BufferRow()

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.inner(x)
        return seen


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class KeptList(nn.Module):
    kept: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.kept = [torch.zeros(3)]

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x)
        return x


class ListElement(nn.Module):
    kept: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.kept = [torch.zeros(3), torch.zeros(3)]

    def forward(self, x: Tensor) -> Tensor:
        for tensor in self.kept:
            tensor.add_(1)
        return x + self.kept[0]


class KeptDict(nn.Module):
    kept: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"last": torch.zeros(3)}

    def forward(self, x: Tensor) -> Tensor:
        before = self.kept["last"]
        self.kept["last"] = x[0]
        return x + before


class KeptTuple(nn.Module):
    kept: tuple[Tensor, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.kept = (torch.zeros(3), torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.kept[0].add_(1)
        return x + self.kept[0]


class UnpackedTuple(KeptTuple):
    def forward(self, x: Tensor) -> Tensor:
        first, _second = self.kept
        return x + first.add_(1)


class TupleInList(nn.Module):
    kept: list[tuple[Tensor, Tensor]]

    def __init__(self) -> None:
        super().__init__()
        self.kept = [(torch.zeros(3), torch.zeros(3))]

    def forward(self, x: Tensor) -> Tensor:
        for first, second in self.kept:
            first.add_(1)
            x = x + first + second
        return x


class OptionalTensor(nn.Module):
    kept: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept
        if kept is not None:
            kept.add_(1)
            x = x + kept
        return x


class Renormed(nn.Module):
    """`max_norm` rescales rows of the table when they are looked up; a script leaves that out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, max_norm=0.1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.table(x[:, 0].long().clamp(0, 4))
        return x + found


class InBranch(BufferRow):
    def forward(self, x: Tensor) -> Tensor:
        target = self.room
        if x.size(0) > 3:
            target = torch.zeros(9, 3)
        target[: x.size(0)] = x
        return target[: x.size(0)]


class InLoop(BufferRow):
    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.zeros(9, 3), torch.zeros(9, 3)
        for _ in range(x.size(0)):
            second.add_(1)
            second = first
            first = self.room
        return x + second[0]


class Statistics(nn.Module):
    """Batch normalisation that goes on learning."""

    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.mean, self.var, training=True)


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (BufferRow(), "room (aten::copy_)"),
        (Parameter(), "weight (aten::add_)"),
        (Nested(), "inner.room (aten::copy_)"),
        (Counter(), "calls (assignment)"),
        (KeptList(), "kept (aten::append)"),
        (ListElement(), "kept (aten::add_)"),
        (KeptDict(), "kept (aten::_set_item)"),
        (KeptTuple(), "kept (aten::add_)"),
        (UnpackedTuple(), "kept (aten::add_)"),
        (TupleInList(), "kept (aten::add_)"),
        (OptionalTensor(), "kept (aten::add_)"),
        (InBranch(), "room (aten::copy_)"),
        (InLoop(), "room (aten::add_)"),
        (Statistics(), "aten::batch_norm in training mode"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_write_to_state_of_the_module_is_found(module, what):
    result = found(module)
    assert what in " ".join(result.state)
    assert result.problem.startswith("it changes its own state when it is called: ")


class TracedConstant(nn.Module):
    """A literal tensor becomes a constant of the traced graph, and is the same in each call."""

    def forward(self, x: Tensor) -> Tensor:
        sums = torch.tensor([0.0, 0.0, 0.0])
        sums += x[0]
        return x + sums


@pytest.mark.parametrize("module", [BufferRow(), Renormed(), TracedConstant()], ids=str)
def test_a_write_to_state_of_a_traced_module_is_found(module):
    assert found(module, trace=True).state


class InputColumn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0.0
        return x.sum(1)


class InputView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        parts = x.view(-1, 3).chunk(3, dim=1)
        parts[1].mul_(2)
        return x.sum(1)


class InputAfterDropout(nn.Module):
    """In evaluation mode dropout returns its input, and the activation writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.layers(x)
        return hidden.sum(1)


class InputInList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        made: list[Tensor] = []
        made.append(x)
        made[0].add_(1)
        return x.sum(1)


class InputDict(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        x["b"] = x["a"] + 1
        return x["b"]


class InputDictElement(nn.Module):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        for value in x.values():
            value.add_(1)
        return x["a"]


@pytest.mark.parametrize(
    "module",
    [
        *(InputColumn(), InputView(), InputAfterDropout(), InputInList()),
        *(InputDict(), InputDictElement()),
    ],
    ids=lambda module: type(module).__name__,
)
def test_write_to_an_input_is_found_and_accepted(module):
    assert found(module) == Effects(inputs=True)
    assert found(module).problem == ""


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class NoiseInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros_like(x).normal_()


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class NoiseOfAnInitializer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + nn.init.normal_(torch.empty(3))


class Dirichlet(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch._sample_dirichlet(torch.ones(3))


@pytest.mark.parametrize(
    "module",
    [Noise(), NoiseInPlace(), AlwaysDropout(), NoiseOfAnInitializer(), Dirichlet()],
    ids=lambda module: type(module).__name__,
)
def test_random_numbers_are_found(module):
    result = found(module)
    assert result.random
    assert result.problem.startswith("its outputs are random: it calls aten::")


class Harmless(nn.Module):
    """In-place operators on tensors of its own, and changes that only training makes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 3), nn.ReLU(inplace=True), nn.BatchNorm1d(3), nn.Dropout(0.5)
        )
        self.calls = 0
        self.scales = [torch.ones(3), torch.ones(3)]

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            x = x + torch.rand_like(x)
        hidden: Tensor = self.layers(x)
        hidden += 1
        room = torch.zeros(x.size(0), 3)
        room[:, 0] = hidden[:, 0]
        made = [room]
        made.append(hidden)
        for tensor in made:
            tensor.mul_(2)
        parts: list[Tensor] = []
        for scale in self.scales:
            parts.append(x)
            parts.append(scale)
        made.extend([x * scale for scale in self.scales])
        return torch.cat(made, 1).sum(1) + parts[0].sum(1)


@pytest.mark.parametrize("trace", [False, True])
def test_writes_to_local_tensors_and_training_branches_are_accepted(trace):
    assert found(Harmless(), trace=trace) == Effects()


class Recurrent(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 3, 2, batch_first=True, dropout=dropout)
        self.gru = nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.unsqueeze(1)
        long, _ = self.lstm(sequence)
        short, _ = self.gru(sequence)
        both: Tensor = long + short
        return both.sum(1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(3, 1, 6, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.encoder(x.unsqueeze(1))
        return found.sum(1)


@pytest.mark.parametrize("module", [Recurrent(0.0), Recurrent(0.1), Attention()])
@pytest.mark.parametrize("trace", [False, True])
def test_recurrent_and_attention_layers_in_evaluation_mode_are_harmless(module, trace):
    harmless = found(module, trace=trace)
    harmless.reads_values = False  # a trace keeps some sizes as tensors
    assert harmless == Effects()


class AttentionDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q = x.unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5).sum(1)


def test_attention_that_always_drops_out_is_random():
    assert found(AttentionDropout()).random == ["aten::scaled_dot_product_attention"]


def test_a_recurrent_layer_traced_in_training_mode_is_random():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Recurrent(0.5).train()
        made: Any = torch.jit.trace(module, (torch.ones(4, 3),), check_trace=False)
        assert effects(made, torch.jit.freeze(made.eval())).random == ["aten::lstm"]


class BranchOnValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 0).any()):
            return x + 1
        return x


class LoopOnValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x[0])):
            x = x + 1
        return x


class WhileOnValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while float(x.sum()) < 100:
            x = x + 1
        return x


class ItemInBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for row in range(x.size(0)):
            if row > 0:
                x = x * x[row].item()
        return x


class LoopOnSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for row in range(x.size(0)):
            x = x + float(row)
        if x.size(0) > 3:
            x = x + int(2.5)
        return x


@pytest.mark.parametrize("module", [BranchOnValue, LoopOnValue, WhileOnValue, ItemInBranch])
def test_a_module_that_reads_values_is_found(module):
    assert found(module()).reads_values


def test_a_module_that_reads_sizes_only_does_not_read_values():
    assert not found(LoopOnSize()).reads_values
