"""The trial finds every reason why a module from elsewhere cannot serve, and states it."""

import io
import pickle
import warnings
import zipfile
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.artifacts.inputs import IdListInput
from app.artifacts.loader import load
from app.artifacts.publish import publish
from app.artifacts.store import Store
from app.cli.main import main
from app.errors import ArtifactInvalid, ExitCode
from app.importing.description import ForeignModel, from_flags
from app.importing.samples import generate
from app.importing.trial import CPU, TRIAL_SIZES, examine
from tests.support.foreign import MATRIX_FLAGS, Matrix, matrix_file, traced


def model(*tasks: str, columns: tuple[str, ...] = ("age", "item@10")) -> ForeignModel:
    """A description of modules that may ignore inputs."""
    described = from_flags("ctr", columns, ["age"], tasks or ("click:number",))
    return described.model_copy(
        update={"unused": tuple(feature.name for feature in described.inputs)}
    )


def file(module: nn.Module, *example: object, script: bool = False) -> bytes:
    """The file of a module, traced with 4 rows of 2 columns by default."""
    made: Any = torch.jit.script(module) if script else None
    if made is None:
        example = example or (torch.ones(4, 2),)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are easily overlooked
            made = torch.jit.trace(module, example, check_trace=False, strict=False)
    buffer = io.BytesIO()
    torch.jit.save(made, buffer)
    return buffer.getvalue()


def refusal(content: bytes, described: ForeignModel | None = None) -> str:
    with pytest.raises(ArtifactInvalid) as caught:
        examine(content, described or model())
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.linear(x))
        return normed.sum(1, keepdim=True)


class Dropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)[:, :1]


class DroppedNever(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.0)[:, :1]


class Ranked(nn.Module):
    """Scores relative to the batch: a softmax over the wrong axis."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x[:, 0], 0)


class Positioned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] + torch.cumsum(torch.ones_like(x[:, 0]), 0)


class Fixed(nn.Module):
    """The batch size of the example stays in the graph as a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), 2)[:, 0]


class Squeezed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1].squeeze()


class OnCuda(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] + torch.zeros(x.size(0), device=torch.device("cuda:0"))


class OnCPU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] + torch.zeros(x.size(0), device=torch.device("cpu"))


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] + torch.randn_like(x[:, 0])


class Unwritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] + 0 * torch.empty(x.size(0))


class Overwritten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        room = torch.empty_like(x)
        room[:, 0] = x[:, 0]
        room[:, 1] = x[:, 1]
        return room.sum(1)


class Several(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[:, 0], x[:, 1:], x


class Keyed(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"ctr": x[:, 0], "cvr": x[:, 1]}


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Column(nn.Module):
    """Its second column looks up a table of `rows`."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.table(x[:, 1].long())
        return found


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x[:, 0])


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Normed(), "BatchNorm is in training mode: call eval() on the module before tracing it"),
        (Dropped(), "dropout is in training mode"),
        (Ranked(), "a row's output depends on the other rows: task click gives 1 for a row alone"),
        (Positioned(), "a row's output depends on the other rows: task click gives "),
        (Random(), "its outputs are random: it calls aten::randn_like"),
        (Unwritten(), "its outputs depend on memory that it has not written to"),
        (
            Fixed(),
            "a fixed batch size is part of its graph: it runs with 4 rows, but fails with 1: ",
        ),
        (Squeezed(), "it fails with 1 row: task click: the module returned () for 1 rows"),
        (Identity(), "it returns 2 outputs, but tasks are named for 1: name a task for each"),
        (Several(), "it returns 3 outputs, but tasks are named for 1"),
        (Keyed(), 'it returns no output "click"; outputs: ctr, cvr'),
        (
            Column(9),
            "input item: vocabulary_size is 10, but the largest id that the module takes is 8",
        ),
        (Logarithm(), "task click gives nan for "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_module_that_cannot_serve_is_refused_with_the_reason(module, reason):
    assert reason in refusal(file(module))


def test_dropout_of_nothing_may_be_in_training_mode():
    content = file(DroppedNever().train())
    assert b"dropout" in code(content)
    assert examine(content, model()).requests.rows


def code(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".py"))


def test_a_module_that_writes_to_all_its_memory_can_serve():
    assert examine(file(Overwritten()), model()).requests.rows
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("rows", [7, 1, 257, 1024])
def test_the_fixed_batch_size_of_a_trace_is_named(rows):
    reason = refusal(file(Fixed(), torch.ones(rows, 2)))
    assert (
        f"a fixed batch size is part of its graph: it runs with {rows} rows, but fails with "
        in reason
    )


def test_an_unusual_fixed_batch_size_is_refused():
    assert "it cannot be called: " in refusal(file(Fixed(), torch.ones(777, 2)))


def test_a_scripted_module_with_a_gpu_constant_is_refused():
    reason = refusal(file(OnCuda(), script=True))
    assert reason == "the device cuda:0 is a constant of its graph: trace it on the CPU"


def test_a_module_with_a_cpu_constant_serves_on_cpus_only():
    baked, free = (
        examine(file(module, script=True), model()).description.precision.tolerance
        for module in (OnCPU(), Logit())
    )
    assert set(baked) == {"cpu"}
    assert set(free) == {"cpu", "cuda"}


class Logit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def test_a_scripted_module_left_in_training_mode_is_put_into_evaluation_mode():
    trial = examine(file(Normed().train(), script=True), model())
    assert trial.description.task_names == ("click",)


def test_training_mode_is_found_in_a_trace_that_freezing_would_change():
    """`torch.jit.freeze` folds a traced BatchNorm into the layer before it, training or not."""
    assert "BatchNorm is in training mode" in refusal(file(Normed().train()))


@pytest.mark.parametrize(
    ("gives", "reason"),
    [
        ("probability", 'which are not probabilities; if they are logits, say "logit"'),
        ("log-probability", "which is not a log-probability"),
    ],
)
def test_outputs_outside_the_range_of_their_meaning_are_refused(gives, reason):
    assert reason in refusal(file(Logit()), model(f"click:{gives}"))


def test_outputs_of_several_columns_must_be_stated():
    reason = refusal(file(Several()), model("a:number", "b:number", "c:number"))
    assert reason == "its output 2 has 2 columns: state the output of each task"


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(2)


class Number(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Cube(), "it returns (257, 2, 1), expected [B] or [B, columns]"),
        (Number(), "task click: the module returned () for 1 rows"),
    ],
)
def test_an_output_of_another_shape_is_refused(module, reason):
    assert reason in refusal(file(module))


def test_a_call_that_does_not_fit_is_refused_with_what_the_module_takes():
    assert "it cannot be called: forward()" in refusal(
        file(Keyed()), model().model_copy(update={"style": "dict"})
    )


class Exploit:
    """What a pickle could do when it is loaded: here, it would raise."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def pickled() -> bytes:
    return pickle.dumps(Exploit())


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled())
        archive.writestr("archive/version", "3")
    return buffer.getvalue()


def saved(what: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80", pickled(), zipped(), saved(Matrix().state_dict()), saved(nn.Linear(2, 1))],
    ids=["empty", "noise", "pickle", "zipped pickle", "state_dict", "whole module"],
)
def test_a_file_that_is_not_torchscript_is_refused_and_not_unpickled(content):
    assert refusal(content).startswith(
        "not a TorchScript file (pickled modules and state_dicts are not read)"
    )


def test_a_refusal_is_one_line_on_standard_error_and_leaves_the_store_alone(capsys, tmp_path):
    path = traced(Matrix().train(), torch.ones(4, 5), path=tmp_path / "wrong.pt")
    store = tmp_path / "store"
    assert main(["import", str(path), *MATRIX_FLAGS, "--store", str(store)]) == ExitCode.FAILED
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gatehouse: {path} cannot be imported: BatchNorm is in training mode")
    assert err.count("\n") == 1
    assert not store.exists()


def test_a_module_that_changes_its_own_state_is_refused():
    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x[:, 0] + self.count

    assert refusal(file(Counting(), script=True)) == (
        "it changes its own state when it is called: count (aten::add_)"
    )


def test_samples_have_extreme_ids_and_empty_and_full_lists():
    columns = {"name": "c", "inputs": [], "tasks": [{"name": "t", "gives": "number"}]}
    lists = [
        IdListInput(
            name=side,
            side="candidate",
            vocabulary_size=9,
            max_length=3,
            padding=-7,
            padding_side=side,
        )
        for side in ("left", "right")
    ]
    described = ForeignModel.model_validate(columns | {"inputs": lists})
    batch = generate(described, TRIAL_SIZES[257])
    for name, end in (("left", 2), ("right", 0)):
        column = batch.candidate[name]
        assert column[0].tolist() == [-7, -7, -7]
        assert column[-1].tolist() == [8, 8, 8]
        assert set(column[column != -7]) == set(range(9))
        assert (column[(column != -7).any(1), end] != -7).all()
    assert batch.rows == 257


@pytest.mark.parametrize("padding", [0, 3, 8])
def test_samples_have_no_padding_among_the_ids_of_a_measured_list(padding):
    listed = IdListInput(
        name="h",
        side="candidate",
        vocabulary_size=9,
        unknown="reject",
        max_length=3,
        padding=padding,
    )
    columns = {"name": "c", "tasks": [{"name": "t", "gives": "number"}]}
    arguments = [{"name": "n", "pack": [{"take": "length", "of": "h"}], "dtype": "int64"}]
    described = ForeignModel.model_validate(columns | {"inputs": [listed], "arguments": arguments})
    column = generate(described, TRIAL_SIZES[257]).candidate["h"]
    real = column != padding
    assert (real[:, 1:] <= real[:, :-1]).all()
    assert set(column[real]) == set(range(9)) - {padding}


def test_samples_of_a_dense_input_keep_to_its_range():
    described = model(columns=("age", "price:2")).model_copy(update={"ranges": {"price": (3, 4)}})
    batch = generate(described, TRIAL_SIZES[257])
    assert ((batch.candidate["price"] >= 3) & (batch.candidate["price"] <= 4)).all()
    assert (batch.user["age"] < 3).any()


def test_the_same_file_imported_twice_has_the_same_golden_requests(tmp_path):
    content = matrix_file(tmp_path).read_bytes()
    flags = from_flags(
        "matrix",
        ("age", "gender@3", "price", "item@50", "mood"),
        (),
        ("click:probability", "dwell:log-seconds"),
    )
    first, second = examine(content, flags), examine(content, flags)
    for name, column in first.requests.candidate.items():
        assert (column == second.requests.candidate[name]).all()


class InPlace(nn.Module):
    """Writes to its arguments: to a matrix, and to a vector that would be the caller's own."""

    def forward(self, x: Tensor, item: Tensor) -> Tensor:
        x[:, 0] = torch.relu(x[:, 0])
        item.clamp_(max=3)
        return x[:, 0] + x[:, 1] + item.float()


PACKED = {
    "name": "ctr",
    "inputs": [
        {"name": "age", "side": "candidate", "kind": "dense"},
        {"name": "price", "side": "candidate", "kind": "dense"},
        {"name": "item", "side": "candidate", "kind": "id", "vocabulary_size": 10},
    ],
    "arguments": [
        {"name": "x", "pack": ["age", "price"], "dtype": "float32"},
        {"name": "item", "pack": ["item"], "dtype": "int64", "rank": 1},
    ],
    "tasks": [{"name": "click", "gives": "number"}],
}


def test_a_module_that_writes_to_its_inputs_gets_copies_of_them(tmp_path):
    content = file(InPlace(), script=True)
    trial = examine(content, ForeignModel.model_validate(PACKED))
    artifact = publish(Store(tmp_path), trial.description, content, trial.requests)
    served = load(artifact, CPU)
    batch = served.golden.batch
    before = {name: column.copy() for name, column in batch.candidate.items()}
    once, again = served.program.run(batch), served.program.run(batch)
    np.testing.assert_array_equal(once, again)
    want = np.maximum(before["age"][:, 0], 0) + before["price"][:, 0] + before["item"].clip(max=3)
    np.testing.assert_allclose(once[:, 0], want, rtol=1e-6)
    for name, column in batch.candidate.items():
        np.testing.assert_array_equal(column, before[name])
    assert before["item"].max() > 3


class Spread(nn.Module):
    """NaN for one row: a sample variance needs two."""

    def forward(self, x: Tensor) -> Tensor:
        variance = (x - x.mean(0)).pow(2).sum(0) / (x.size(0) - 1)
        return x[:, 0] + 0 * variance[0]


def test_a_row_that_gives_nan_only_when_it_is_alone_is_found():
    assert "task click gives nan for 1 of 1 rows" in refusal(file(Spread()))


class NoneLeft(nn.Module):
    """The mean of an empty list is NaN, but of a batch only where all lists are empty."""

    def forward(self, x: Tensor) -> Tensor:
        ids = x[:, 1:]
        known = (ids >= 0).float()
        longest = known.sum(1).max()
        return x[:, 0] + (ids * known).sum(1) * (longest / longest)


HISTORY = {
    "name": "ctr",
    "inputs": [
        {"name": "age", "side": "candidate", "kind": "dense"},
        {
            "name": "history",
            "side": "candidate",
            "kind": "id_list",
            "vocabulary_size": 10,
            "max_length": 4,
            "padding": -1,
        },
    ],
    "tasks": [{"name": "click", "gives": "number"}],
}


def test_an_empty_list_that_gives_nan_only_in_a_row_alone_is_found():
    reason = refusal(file(NoneLeft(), script=True), ForeignModel.model_validate(HISTORY))
    assert reason.startswith("a row's output depends on the other rows: task click gives nan for a")


def strict(*columns: str, **changes: Any) -> ForeignModel:
    """A description whose every input must have an influence."""
    described = from_flags("ctr", columns, [], ("click:number",))
    return ForeignModel.model_validate(described.model_dump() | changes)


class Narrow(nn.Module):
    """Reads three of the columns that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3].sum(1)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (("a", "b", "c", "d"), "no output depends on d: check the order, the widths and"),
        (("a", "b", "c:3"), "no output depends on c[1], c[2]: "),
        (("a", "b:9", "c@5"), "no output depends on b[2], b[3], b[4], b[5], b[6], b[7], b[8], c: "),
        (("a", "b:10", "c@5"), "b[7], b[8], b[9], ...: "),
    ],
)
def test_inputs_without_influence_are_named(columns, named):
    assert named in refusal(file(Narrow(), script=True), strict(*columns))


def test_an_input_that_is_described_as_unused_needs_no_influence():
    described = strict("a", "b", "c", "d", unused=["d"])
    assert examine(file(Narrow(), script=True), described).description.task_names == ("click",)


class Faint(nn.Module):
    """Steps that only large values reach, and a weight that float32 hardly shows."""

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.bucketize(x[:, 0].contiguous(), torch.tensor([18.0, 35.0, 65.0]))
        return steps + 1e-6 * x[:, 1] + (x[:, 2] > 0.5).float()


def test_small_influences_and_thresholds_are_accepted():
    examine(file(Faint(), script=True), strict("age", "price", "is_new"))


class LookedUp(nn.Module):
    """A list of five ids, then a number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.table(x[:, :5].long())
        return found.sum(2).sum(1) + x[:, 5:].sum(1)


def test_a_list_of_ids_that_is_described_as_dense_is_refused():
    content = file(LookedUp(), script=True)
    reason = refusal(content, strict("history:5", "price"))
    assert reason.startswith("input history: the module fails on its trial values (")
    reason = refusal(content, strict("history:5", "price", ranges={"history": (0, 9)}))
    assert reason.startswith("history[0] is described as dense, but the module uses only the whole")


def test_list_with_a_max_length_that_is_too_small_is_refused():
    """Its fifth position then reads the number after it as an id."""
    described = ForeignModel.model_validate(
        {
            "name": "ctr",
            "inputs": [
                HISTORY["inputs"][1] | {"padding": 0},  # type: ignore[operator]
                {"name": "price", "side": "candidate", "kind": "dense", "dim": 2},
            ],
            "tasks": [{"name": "click", "gives": "number"}],
            "ranges": {"price": [0, 8]},
        }
    )
    reason = refusal(file(LookedUp(), script=True), described)
    assert reason.startswith("price[0] is described as dense, but the module uses only the whole")
    assert "check the widths of the inputs beside it" in reason


@pytest.mark.parametrize("script", [False, True])
def test_id_out_of_range_is_not_reported_as_a_fixed_batch_size(script):
    """A single row seldom has the largest id, so that the module runs with one row only."""
    reason = refusal(file(Column(9), script=script))
    assert "batch size" not in reason
    assert reason.startswith(
        "input item: vocabulary_size is 10, but the largest id that the module"
    )
    assert reason.endswith("index out of range in self")


def test_padding_that_is_not_a_row_of_the_table_is_named():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.table(x[:, 1:].long())
            return x[:, 0] + found.sum(2).sum(1)

    reason = refusal(file(Pooled(), script=True), ForeignModel.model_validate(HISTORY))
    assert reason.startswith("input history: the module fails on its padding, -1: ")


def test_an_id_with_a_single_row_cannot_change_and_is_accepted():
    described = strict("a", "b", "c@1")
    assert examine(file(Narrow(), script=True), described).description.task_names == ("click",)


class Fields(NamedTuple):
    ctr: Tensor
    cvr: Tensor


class Returned(nn.Module):
    def forward(self, x: Tensor) -> Fields:
        return Fields(x[:, 0], x[:, 1] * 2)


@pytest.mark.parametrize(
    ("tasks", "paths"),
    [
        (("cvr:number", "ctr:number"), ["cvr", "ctr"]),
        (("cvr:number",), ["cvr"]),
        (("first:number", "second:number"), [0, 1]),
    ],
)
def test_outputs_of_a_named_tuple_are_found_by_field_or_by_place(tasks, paths):
    described = examine(file(Returned(), script=True), model(*tasks)).description
    assert [task.output.path for task in described.tasks] == paths


def test_an_output_of_another_name_is_named_with_a_path():
    reason = refusal(file(Keyed(), script=True), model("p_ctr:number"))
    assert reason.endswith('; an output of another name is named with output = { path = "…" }')
    tasks = [{"name": "p_ctr", "gives": "number", "output": {"path": "ctr"}}]
    described = model().model_dump() | {"tasks": tasks, "ranking": None}
    trial = examine(file(Keyed(), script=True), ForeignModel.model_validate(described))
    assert trial.description.tasks[0].output.path == "ctr"


class Weighted(nn.Module):
    """The sum of a list with a weight for each position."""

    weights: Tensor

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] + (x[:, 1:] * self.weights).sum(1)


def test_a_position_of_a_list_may_be_faint_but_not_its_end():
    described = ForeignModel.model_validate(HISTORY)
    examine(file(Weighted(1, 0, 1, 1), script=True), described)
    for weights, named in (((1, 1, 1, 0), "history[3]"), ((0, 0, 1, 1), "history[0], history[1]")):
        reason = refusal(file(Weighted(*weights), script=True), described)
        assert reason.startswith(f"no output depends on {named}: ")
