"""Large tensors stay where the file was read to, and every module computes what it computed."""

import io
import mmap
import warnings
import zipfile
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.artifacts import large_tensors
from app.artifacts.large_tensors import NotSplittable, attach, split
from app.artifacts.loader import load, load_module
from tests.support.builders import CPU, published


@pytest.fixture(autouse=True)
def _nearly_everything_is_large(monkeypatch):
    monkeypatch.setattr(large_tensors, "LARGE", 64)


def saved(module: nn.Module, *, freeze: bool = False) -> memoryview:
    """The file of a module, in writable memory."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = torch.jit.script(module.eval())
        torch.jit.save(torch.jit.freeze(made) if freeze else made, buffer)
    memory = memoryview(mmap.mmap(-1, len(buffer.getvalue())))
    memory[:] = buffer.getvalue()
    return memory


def whole(content: memoryview) -> Any:
    """The module as PyTorch loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(io.BytesIO(content))


def loaded(content: memoryview) -> Any:
    """The module as it is loaded from a file that can be split."""
    parts = split(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(io.BytesIO(parts.archive))
    attach(module, content, parts)
    return module


def is_inside(tensor: Tensor, content: memoryview) -> bool:
    start = torch.frombuffer(content, dtype=torch.uint8).data_ptr()
    return start <= tensor.data_ptr() < start + len(content)


X = torch.randn(7, 8)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
        self.same_shape = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x + self.table(x[:, 0].long().abs()))
        difference: Tensor = found - self.same_shape(x)
        return difference


class Types(nn.Module):
    """A buffer of each type, one that is transposed, and one that is a window of its storage."""

    f64: Tensor
    f16: Tensor
    b16: Tensor
    i64: Tensor
    i32: Tensor
    i16: Tensor
    i8: Tensor
    u8: Tensor
    flags: Tensor
    transposed: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        random = torch.randn(8, 8) * 9
        self.register_buffer("f64", random.double())
        self.register_buffer("f16", random.half())
        self.register_buffer("b16", random.bfloat16())
        self.register_buffer("i64", random.long())
        self.register_buffer("i32", random.int())
        self.register_buffer("i16", random.short())
        self.register_buffer("i8", random.to(torch.int8))
        self.register_buffer("u8", random.abs().to(torch.uint8))
        self.register_buffer("flags", random > 0)
        self.register_buffer("transposed", torch.randn(8, 8).t())
        self.register_buffer("window", torch.randn(99)[3:67].view(8, 8)[:, ::2])
        self.register_buffer("wide", torch.zeros(5).expand(40, 5))

    def forward(self, x: Tensor) -> Tensor:
        halves = self.f16.float() + self.b16.float() + self.f64.float()
        whole = self.i64 + self.i32 + self.i16 + self.i8 + self.u8 + self.flags
        return x @ (halves + whole.float()) @ self.transposed @ self.window


@pytest.mark.parametrize("module", [Layers(), Types()], ids=["layers", "types"])
@pytest.mark.parametrize("freeze", [False, True])
def test_split_module_computes_equal_outputs(module, freeze):
    content = saved(module, freeze=freeze)
    want, got = whole(content), loaded(content)
    assert torch.equal(got(X), want(X))
    if not freeze:
        frozen = (torch.jit.freeze(program.eval()) for program in (want, got))
        assert torch.equal(*(program(X) for program in frozen))


@pytest.mark.parametrize("module", [Layers(), Types()], ids=["layers", "types"])
def test_parameters_and_buffers_are_equal_after_loading(module):
    content = saved(module)
    want, got = whole(content), loaded(content)
    for one, other in (
        (want.named_parameters(), got.named_parameters()),
        (want.named_buffers(), got.named_buffers()),
    ):
        for (name, before), (same, after) in zip(one, other, strict=True):
            assert name == same
            assert (before.dtype, before.stride()) == (after.dtype, after.stride())
            assert before.requires_grad == after.requires_grad
            assert torch.equal(before, after)


def test_large_tensors_are_views_of_the_file():
    content = saved(Layers())
    module = loaded(content)
    assert is_inside(module.table.weight, content)
    assert not is_inside(getattr(module.layers, "1").running_mean, content)  # 32 bytes


def test_the_small_archive_lacks_the_large_tensors():
    content = saved(nn.Linear(300, 300))
    assert len(content) > 360_000
    assert len(split(content).archive) < 20_000


class Plain(nn.Module):
    """A tensor and a list of tensors that are neither parameters nor buffers."""

    kept: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.randn(8, 8)
        self.kept = [torch.randn(8, 8), torch.randn(8, 8)]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.plain @ self.kept[0] @ self.kept[1]


class Restored(nn.Module):
    """Computes while it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(8, 8)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return (self.table, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.table = state[0] * 2
        self.training = state[1]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table


@pytest.mark.parametrize("module", [Plain(), Restored()], ids=["plain", "restored"])
def test_a_module_that_cannot_be_split_is_loaded_as_a_whole(module):
    content = saved(module)
    with pytest.raises(NotSplittable):
        loaded(content)
    assert torch.equal(load_module(content, CPU)(X), whole(content)(X))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.other(self.one(x))
        return found


@pytest.mark.parametrize("freeze", [False, True])
def test_shared_tensors_stay_shared(freeze):
    content = saved(Tied(), freeze=freeze)
    module = load_module(content, CPU)
    assert torch.equal(module(X), whole(content)(X))
    if not freeze:
        assert module.one.weight.data_ptr() == module.other.weight.data_ptr()


def test_memory_that_is_not_writable_is_copied():
    content = bytes(saved(Layers()))
    with pytest.raises(NotSplittable, match="not writable"):
        split(memoryview(content))
    assert torch.equal(load_module(content, CPU)(X), whole(memoryview(content))(X))


def archive(**records: bytes) -> memoryview:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        for name, content in records.items():
            written.writestr(f"m/{name.replace('_pkl', '.pkl')}", content)
    return memoryview(bytearray(buffer.getvalue()))


@pytest.mark.parametrize(
    "content",
    [
        memoryview(bytearray(b"")),
        memoryview(bytearray(b"PK\x03\x04")),
        archive(version=b"3"),
        archive(data_pkl=b"", constants_pkl=b""),
        archive(data_pkl=b"cos\nsystem\n.", constants_pkl=b")."),
        archive(data_pkl=b"Q.", constants_pkl=b")."),
        archive(data_pkl=b"(K\x01K\x01K\x01K\x01K\x01tQ.", constants_pkl=b")."),
    ],
    ids=["empty", "noise", "no pickles", "empty pickles", "a function", "no storage", "numbers"],
)
def test_what_is_not_torchscript_is_not_split(content):
    with pytest.raises(NotSplittable):
        split(content)


def test_an_artifact_s_program_shares_the_memory_that_was_verified(tmp_path, monkeypatch):
    artifact = published(tmp_path, WithTable())
    attached: list[int] = []

    def attach_and_count(module: Any, content: memoryview, parts: large_tensors.Split) -> None:
        attach(module, content, parts)
        attached.append(len(parts.tensors))

    monkeypatch.setattr("app.artifacts.loader.attach", attach_and_count)
    model = load(artifact, CPU)
    assert attached == [1]
    assert (model.program.run(model.golden.batch) == model.golden.raw).all()


class WithTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 2)

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        found: Tensor = self.table(candidate["item"])
        return found + 0 * user["age"][row_to_request]


def test_many_tensors_of_one_shape_keep_their_own_values():
    class Many(nn.Module):
        halves: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(150)))
            self.register_buffer("halves", torch.randn(120, 8, 8).half())

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layers(x)
            return found + self.halves.float().sum(0)[:7]

    content = saved(Many(), freeze=True)
    assert torch.equal(loaded(content)(X), whole(content)(X))


def test_more_tensors_of_a_small_type_than_placeholders_are_loaded():
    class Bytes(nn.Module):
        b0: Tensor
        b129: Tensor

        def __init__(self) -> None:
            super().__init__()
            for i in range(130):
                self.register_buffer(f"b{i}", torch.randint(-9, 9, (64,), dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b0[:8] + self.b129[:8]

    content = saved(Bytes())
    assert len(split(content).tensors) == 100
    module = loaded(content)
    assert torch.equal(module(X), whole(content)(X))
    for (_, one), (_, other) in zip(
        module.named_buffers(), whole(content).named_buffers(), strict=True
    ):
        assert torch.equal(one, other)
