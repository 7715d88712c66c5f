"""The trial: every reason for which a foreign module cannot serve is found, and named exactly."""

import io
import pickle
import warnings
import zipfile
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.artifacts.manifest import IdListInput
from app.cli.main import main
from app.errors import ArtifactInvalid, ExitCode
from app.importing.description import ForeignModel, from_flags
from app.importing.samples import generate
from app.importing.trial import TRIAL_SIZES, examine
from tests.support.foreign import MATRIX_FLAGS, Matrix, matrix_file, traced


def model(*tasks: str, columns: tuple[str, ...] = ("age", "item@10")) -> ForeignModel:
    return from_flags("ctr", columns, ["age"], tasks or ("click:number",))


def file(module: nn.Module, *example: object, script: bool = False) -> bytes:
    """The file of a module that is traced with 4 rows of 2 columns unless said otherwise."""
    made: Any = torch.jit.script(module) if script else None
    if made is None:
        example = example or (torch.ones(4, 2),)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what people overlook
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
        (Ranked(), "a row's output depends on its batch: task click gives 1 for a row alone, and"),
        (Positioned(), "a row's output depends on its batch: task click gives "),
        (Random(), "the same rows give other outputs when they are run again"),
        (Fixed(), "a fixed batch size was traced in: it runs with 4 rows, but with 1: "),
        (Squeezed(), "it fails with 1 row: task click: the output is () for 1 rows"),
        (Identity(), "it gives 2 outputs, but 1 tasks are named: name them all, in order, or"),
        (Several(), "it gives 3 outputs, but 1 tasks are named"),
        (Keyed(), "it gives the outputs ctr, cvr, and none is 'click'"),
        (Column(9), "index out of range"),
        (Logarithm(), "task click gives nan for "),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, nn.Module) else "",
)
def test_a_module_that_could_not_serve_is_refused_with_the_reason(module, reason):
    assert reason in refusal(file(module))


@pytest.mark.parametrize("rows", [7, 1, 257, 1024])
def test_whichever_batch_size_was_traced_in_is_named(rows):
    reason = refusal(file(Fixed(), torch.ones(rows, 2)))
    assert f"a fixed batch size was traced in: it runs with {rows} rows, but with " in reason


def test_a_batch_size_that_nobody_would_guess_is_refused_all_the_same():
    assert "it cannot be called: " in refusal(file(Fixed(), torch.ones(777, 2)))


def test_a_scripted_module_with_a_gpu_in_it_is_refused():
    reason = refusal(file(OnCuda(), script=True))
    assert reason == "the device cuda:0 is baked in, so it runs nowhere else: trace it on the CPU"


def test_a_module_with_the_cpu_in_it_is_for_cpus_only():
    baked, free = (
        examine(file(each, script=True), model()).description.precision.tolerance
        for each in (OnCPU(), Logit())
    )
    assert set(baked) == {"cpu"}
    assert set(free) == {"cpu", "cuda"}


class Logit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def test_a_scripted_module_left_in_training_mode_is_put_into_evaluation_mode():
    trial = examine(file(Normed().train(), script=True), model())
    assert trial.description.task_names == ("click",)


def test_freezing_that_hides_a_training_mode_does_not_hide_it_from_the_trial():
    """`torch.jit.freeze` folds a traced BatchNorm into the layer before it, training or not."""
    assert "BatchNorm is in training mode" in refusal(file(Normed().train()))


@pytest.mark.parametrize(
    ("gives", "reason"),
    [
        ("probability", "which are no probabilities: logits?"),
        ("log-probability", "which is no log-probability"),
    ],
)
def test_what_the_outputs_cannot_mean_is_refused(gives, reason):
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
        (Cube(), "it gives (257, 2, 1), where [B] or [B, columns] is read"),
        (Number(), "task click: the output is () for 1 rows"),
    ],
)
def test_an_output_that_is_no_column_is_refused(module, reason):
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
def test_what_is_no_torchscript_is_refused_and_not_unpickled(content):
    assert refusal(content).startswith("it is no TorchScript file: a pickled module or a state_")


def test_a_refusal_is_one_line_on_standard_error_and_leaves_the_store_alone(capsys, tmp_path):
    path = traced(Matrix().train(), torch.ones(4, 5), path=tmp_path / "wrong.pt")
    store = tmp_path / "store"
    assert main(["import", str(path), *MATRIX_FLAGS, "--store", str(store)]) == ExitCode.FAILED
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gatehouse: {path} cannot be imported: BatchNorm is in training mode")
    assert err.count("\n") == 1
    assert not store.exists()


def test_a_module_that_changes_state_of_its_own_is_refused():
    class Counting(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x[:, 0] + self.count

    assert "the same rows give other outputs" in refusal(file(Counting(), script=True))


def test_samples_hold_both_ends_of_each_vocabulary_and_an_empty_and_a_full_list():
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
