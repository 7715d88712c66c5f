"""Loading refuses every kind of damage, with the file and the rule that it breaks."""

import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from app.artifacts.artifact_files import LARGEST_MANIFEST, read_manifest
from app.artifacts.columns import ModelInputs
from app.artifacts.golden import Golden
from app.artifacts.loader import load, load_program
from app.artifacts.program import Program
from app.artifacts.store import GOLDEN, MANIFEST, PROGRAM, Artifact
from app.errors import ArtifactInvalid
from tests.support.builders import CPU, Company, Request, description, published, scripted
from tests.support.mixtures import GATES, Mixture


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Artifact:
    return published(tmp_path_factory.mktemp("store"))


@pytest.fixture
def artifact(pristine, tmp_path) -> Artifact:
    """A copy that may be damaged."""
    folder = shutil.copytree(pristine.folder, tmp_path / "feed" / "1")
    return Artifact(pristine.model, pristine.version, folder)


def refusal(artifact: Artifact) -> str:
    with pytest.raises(ArtifactInvalid) as caught:
        load(artifact, CPU)
    return str(caught.value)


def edit_manifest(artifact: Artifact, edit: Callable[[dict[str, Any]], object]) -> None:
    path = artifact.folder / MANIFEST
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))


def replace(artifact: Artifact, name: str, content: bytes) -> None:
    """Replace a file, and its digest in the manifest."""
    (artifact.folder / name).write_bytes(content)
    digest = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(artifact, lambda manifest: manifest["files"].update({name: digest}))


def replace_golden(artifact: Artifact, **changes: Any) -> None:
    """Change named tensors of the golden file, or remove them by None."""
    golden: dict[str, torch.Tensor | None] = {
        **safetensors.torch.load((artifact.folder / GOLDEN).read_bytes()),
        **{key.replace("__", "."): tensor for key, tensor in changes.items()},
    }
    kept = {name: tensor for name, tensor in golden.items() if tensor is not None}
    replace(artifact, GOLDEN, safetensors.torch.save(kept))


def test_unchanged_artifact_is_loaded(artifact):
    model = load(artifact, CPU)
    assert str(model) == "feed/1"
    np.testing.assert_array_equal(model.program.run(model.golden.batch), model.golden.raw)


@pytest.mark.parametrize("name", [PROGRAM, GOLDEN])
@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_a_flipped_bit_is_refused(artifact, name, where):
    path = artifact.folder / name
    content = bytearray(path.read_bytes())
    content[int(len(content) * where) if where >= 0 else -1] ^= 1
    path.write_bytes(content)
    assert refusal(artifact) == f"{name}: its SHA-256 differs from the manifest's"


@pytest.mark.parametrize("name", [PROGRAM, GOLDEN])
def test_a_truncated_file_is_refused(artifact, name):
    path = artifact.folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    length = len(content)
    assert refusal(artifact) == f"{name}: has {length - 1} bytes, the manifest says {length}"


@pytest.mark.parametrize("name", [PROGRAM, GOLDEN, MANIFEST])
def test_a_missing_file_is_refused(artifact, name):
    (artifact.folder / name).unlink()
    assert refusal(artifact) == f"{name}: is missing"


@pytest.mark.parametrize("name", [PROGRAM, GOLDEN, MANIFEST])
def test_a_folder_in_place_of_a_file_is_refused(artifact, name):
    (artifact.folder / name).unlink()
    (artifact.folder / name).mkdir()
    assert refusal(artifact) == f"{name}: is not a regular file"


@pytest.mark.parametrize(("model", "version"), [("other", 1), ("feed", 2)])
def test_an_artifact_in_the_wrong_folder_is_refused(artifact, model, version):
    moved = Artifact(model, version, artifact.folder)
    assert refusal(moved) == f"{MANIFEST}: describes feed/1, its folder is {model}/{version}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}"], ids=str)
def test_malformed_manifest_is_refused(artifact, content):
    (artifact.folder / MANIFEST).write_bytes(content)
    assert refusal(artifact).startswith(f"{MANIFEST}: ")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda m: m.update(colour="red"), 'unknown key "colour" (known: name, architecture, '),
        (
            lambda m: m["tasks"][0].update(colour="red"),
            'unknown key "colour" in tasks[click] (known: ',
        ),
        (lambda m: m.pop("tasks"), "tasks: required key is missing"),
        (lambda m: m.update(format=2), "format: must be 1"),
        (lambda m: m["files"].pop(PROGRAM), "files: "),
        (lambda m: m["files"][PROGRAM].update(size=-1), f"files.{PROGRAM}.size: "),
        (
            lambda m: m["ranking"]["weights"].update(like=1),
            'ranking: unknown task "like"; tasks: click, dwell',
        ),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused_at_its_place(artifact, edit, reason):
    edit_manifest(artifact, edit)
    assert refusal(artifact).startswith(f"{MANIFEST}: ")
    assert reason in refusal(artifact)


def zipped() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"import os", b"PK\x03\x04", zipped()], ids=len)
def test_a_program_that_is_not_torchscript_is_refused(artifact, content):
    replace(artifact, PROGRAM, content)
    assert refusal(artifact).startswith(f"{PROGRAM}: cannot be loaded as TorchScript: ")
    assert "\n" not in refusal(artifact)


def test_a_program_that_differs_from_the_golden_one_is_refused(artifact, tmp_path):
    class Other(Request):
        def forward(
            self,
            user: dict[str, torch.Tensor],
            candidate: dict[str, torch.Tensor],
            row_to_request: torch.Tensor,
        ) -> torch.Tensor:
            return candidate["quality"] + user["age"][row_to_request]

    other = published(tmp_path / "other", Other())
    replace(artifact, PROGRAM, (other.folder / PROGRAM).read_bytes())
    assert "golden check, all requests in one batch: raw output of task " in refusal(artifact)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"raw": None}, "tensor 'raw' is missing"),
        ({"user__age": None}, "tensor 'user.age' is missing"),
        ({"row_to_request": None}, "tensor 'row_to_request' is missing"),
        ({"raw": torch.zeros(6, 3)}, "raw is float32 (6, 3), expected float32 (6, 2)"),
        ({"scores": torch.zeros(6, 2).double()}, "scores is float64 (6, 2), expected float32"),
        ({"user__age": torch.zeros(2, 1)}, "user.age is float32 (2, 1), expected float32 (3, 1)"),
        ({"candidate__item": torch.zeros(6)}, "candidate.item is float32 (6,), expected int64"),
        ({"candidate__quality": torch.zeros(6)}, "candidate.quality is float32 (6,)"),
        ({"row_to_request": torch.zeros(0).long()}, "row_to_request must not be empty or negative"),
        (
            {"row_to_request": torch.tensor([-1] * 6)},
            "row_to_request must not be empty or negative",
        ),
        ({"row_to_request": torch.zeros(6, 1).long()}, "row_to_request is int64 (6, 1)"),
        ({"scores": torch.zeros(6, 2).bfloat16()}, "cannot be parsed"),
    ],
    ids=str,
)
def test_a_golden_file_that_does_not_fit_the_manifest_is_refused(artifact, changes, reason):
    replace_golden(artifact, **changes)
    assert refusal(artifact).startswith(f"{GOLDEN}")
    assert reason in refusal(artifact)


@pytest.mark.parametrize("content", [b"", b"junk junk junk", b"\xff" * 64], ids=len)
def test_a_golden_file_that_is_not_safetensors_is_refused(artifact, content):
    replace(artifact, GOLDEN, content)
    assert refusal(artifact).startswith(f"{GOLDEN}: cannot be parsed: ")


@pytest.mark.parametrize("tensor", ["raw", "scores"])
@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_golden_output_that_differs_is_refused(artifact, tensor, wrong):
    golden = safetensors.torch.load((artifact.folder / GOLDEN).read_bytes())
    golden[tensor][4, 1] += wrong
    replace_golden(artifact, **golden)
    what = "raw output" if tensor == "raw" else "score"
    reason = f"golden check, all requests in one batch: {what} of task dwell differs by "
    assert refusal(artifact).startswith(reason)
    assert refusal(artifact).endswith("tolerance 1e-05 on cpu")


def test_an_error_within_the_tolerance_passes(artifact):
    golden = safetensors.torch.load((artifact.folder / GOLDEN).read_bytes())
    golden["raw"] += 1e-3
    golden["scores"] += 1e-3
    replace_golden(artifact, **golden)
    edit_manifest(artifact, lambda m: m["precision"].update(tolerance={"cpu": 0.01}))
    load(artifact, CPU)


def test_tolerance_grows_with_the_golden_value(artifact):
    golden = safetensors.torch.load((artifact.folder / GOLDEN).read_bytes())
    edit_manifest(artifact, lambda m: m["tasks"][1].update(link="identity", clamp=(999, 1000)))
    golden["scores"][:, 1] = 999.5  # the program's is 999
    replace_golden(artifact, **golden)
    edit_manifest(artifact, lambda m: m["precision"].update(tolerance={"cpu": 0.51 / 1000.5}))
    load(artifact, CPU)
    edit_manifest(artifact, lambda m: m["precision"].update(tolerance={"cpu": 0.49 / 1000.5}))
    assert "score of task dwell" in refusal(artifact)


def test_a_manifest_without_a_tolerance_for_the_device_is_refused(artifact):
    edit_manifest(artifact, lambda m: m["precision"].update(tolerance={"cuda": 0.1}))
    assert refusal(artifact) == "model.json: precision.tolerance has no entry for cpu"


def test_a_program_whose_rows_depend_on_other_rows_is_refused(artifact):
    buffer = io.BytesIO()
    torch.jit.save(scripted(Company()), buffer)
    program = load_program(buffer.getvalue(), description(), CPU)
    recorded = Golden.record(program, load(artifact, CPU).golden.batch)
    replace(artifact, PROGRAM, buffer.getvalue())
    replace(artifact, GOLDEN, recorded.to_bytes())
    assert refusal(artifact).startswith("golden check, request 0 alone: raw output of task ")


class Crowds(torch.nn.Module):
    """Fails where fewer than three candidates come together."""

    def forward(
        self,
        user: dict[str, torch.Tensor],
        candidate: dict[str, torch.Tensor],
        row_to_request: torch.Tensor,
    ) -> torch.Tensor:
        quality = candidate["quality"] + 0 * user["age"][row_to_request]
        if quality.size(0) < 3:
            raise ValueError("too few")
        return quality


def test_a_program_that_raises_on_a_golden_request_is_refused(artifact):
    buffer = io.BytesIO()
    torch.jit.save(scripted(Crowds()), buffer)
    program = load_program(buffer.getvalue(), description(), CPU)
    recorded = Golden.record(program, load(artifact, CPU).golden.batch)
    replace(artifact, PROGRAM, buffer.getvalue())
    replace(artifact, GOLDEN, recorded.to_bytes())
    assert refusal(artifact) == (
        "golden check, request 1 alone: the program failed: builtins.ValueError: too few"
    )


def test_a_program_that_was_frozen_before_it_was_saved_is_loaded(artifact):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(scripted(Request())), buffer)
    replace(artifact, PROGRAM, buffer.getvalue())
    load(artifact, CPU)


def test_a_manifest_can_be_read_without_its_files(artifact):
    (artifact.folder / PROGRAM).unlink()
    assert read_manifest(artifact).task_names == ("click", "dwell")


def test_a_golden_file_reads_back_as_it_was_written(artifact):
    golden = load(artifact, CPU).golden
    again = Golden.from_bytes(golden.to_bytes(), description())
    np.testing.assert_array_equal(again.raw, golden.raw)
    np.testing.assert_array_equal(again.scores, golden.scores)
    np.testing.assert_array_equal(again.batch.row_to_request, golden.batch.row_to_request)
    for side in ("user", "candidate"):
        for name, column in getattr(golden.batch, side).items():
            np.testing.assert_array_equal(getattr(again.batch, side)[name], column, strict=True)


def test_a_pickle_in_place_of_the_program_is_never_unpickled(artifact, tmp_path):
    """Unpickling it would write a file."""
    trace = tmp_path / "ran"
    (artifact.folder / PROGRAM).write_bytes(b"c__builtin__\nopen\n(V%s\nVw\ntR." % bytes(trace))
    assert refusal(artifact).startswith(f"{PROGRAM}: has ")
    replace(artifact, PROGRAM, (artifact.folder / PROGRAM).read_bytes())
    assert "cannot be loaded as TorchScript" in refusal(artifact)
    assert not trace.exists()


def test_a_batch_yields_its_requests_one_by_one():
    batch = ModelInputs(
        user={"u": np.array([[1.0], [2.0], [3.0]], np.float32)},
        candidate={"c": np.array([10, 20, 30])},
        row_to_request=np.array([2, 0, 2]),
    )
    first, last = batch.requests()
    assert first.user["u"].tolist() == [[1.0]]
    assert first.candidate["c"].tolist() == [20]
    assert last.user["u"].tolist() == [[3.0]]
    assert last.candidate["c"].tolist() == [10, 30]
    assert last.row_to_request.tolist() == [0, 0]
    assert (first.rows, last.rows, batch.rows) == (1, 2, 3)


class Speaker(torch.nn.Module):
    @torch.jit.export
    def speak(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_module_without_forward_is_refused(artifact):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Speaker()), buffer)
    replace(artifact, PROGRAM, buffer.getvalue())
    assert refusal(artifact).startswith("model.ts: ")


def test_a_pipe_in_place_of_a_file_is_refused_without_waiting(artifact):
    (artifact.folder / PROGRAM).unlink()
    os.mkfifo(artifact.folder / PROGRAM)
    assert refusal(artifact) == f"{PROGRAM}: is not a regular file"


class Remembers(torch.nn.Module):
    """Computes in a buffer of its own, which two lanes would share."""

    room: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("room", torch.zeros(64, 2))

    def forward(
        self,
        user: dict[str, torch.Tensor],
        candidate: dict[str, torch.Tensor],
        row_to_request: torch.Tensor,
    ) -> torch.Tensor:
        rows = row_to_request.size(0)
        self.room[:rows] = candidate["quality"] + user["age"][row_to_request]
        return self.room[:rows].clone()


class Overwrites(torch.nn.Module):
    def forward(
        self,
        user: dict[str, torch.Tensor],
        candidate: dict[str, torch.Tensor],
        row_to_request: torch.Tensor,
    ) -> torch.Tensor:
        quality = candidate["quality"]
        quality += user["age"][row_to_request]
        return quality


def replace_program(artifact: Artifact, module: torch.nn.Module) -> Golden:
    """Put another program in place, with golden examples of what it gives for the same batch."""
    buffer = io.BytesIO()
    torch.jit.save(scripted(module), buffer)
    one = Program(scripted(module), description(), CPU, copy_inputs=True)
    recorded = Golden.record(one, load(artifact, CPU).golden.batch)
    replace(artifact, PROGRAM, buffer.getvalue())
    replace(artifact, GOLDEN, recorded.to_bytes())
    return recorded


def test_a_program_that_changes_its_own_state_is_refused(artifact):
    replace_program(artifact, Remembers())
    assert refusal(artifact) == (
        "model.ts: it changes its own state when it is called: room (aten::copy_)"
    )


def test_a_program_that_writes_to_its_inputs_runs_on_copies(artifact):
    recorded = replace_program(artifact, Overwrites())
    model = load(artifact, CPU)
    for _ in range(2):
        np.testing.assert_array_equal(model.program.run(model.golden.batch), recorded.raw)
        for name, column in model.golden.batch.candidate.items():
            np.testing.assert_array_equal(column, recorded.batch.candidate[name])


def test_a_write_to_inputs_that_is_overlooked_is_refused_with_that_reason(artifact):
    recorded = replace_program(artifact, Overwrites())
    with pytest.raises(ArtifactInvalid) as caught:
        recorded.check(Program(scripted(Overwrites()), description(), CPU))
    assert str(caught.value) == (
        "golden check, all requests in one batch: the program changes the tensor that it is given: "
        "quality"
    )


@pytest.mark.parametrize("name", [PROGRAM, GOLDEN])
def test_a_file_of_another_size_is_refused_before_it_is_read(artifact, name):
    os.truncate(artifact.folder / name, 500 << 30)  # sparse: more than any memory
    assert refusal(artifact).startswith(f"{name}: has {500 << 30} bytes, the manifest says ")


def test_a_manifest_that_is_too_large_is_refused(artifact):
    os.truncate(artifact.folder / MANIFEST, 500 << 30)
    assert refusal(artifact) == f"{MANIFEST}: is larger than {LARGEST_MANIFEST} bytes"


@pytest.mark.parametrize("error", [MemoryError(), KeyError("x"), TypeError("what")])
def test_any_exception_while_loading_is_a_refusal(artifact, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.jit, "load", fail)
    assert refusal(artifact).startswith(f"{PROGRAM}: {type(error).__name__}: ")


class Shifting(Request):
    """Its gates count their calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    @torch.jit.export
    def gate_weights(
        self,
        user: dict[str, Tensor],  # noqa: ARG002
        candidate: dict[str, Tensor],  # noqa: ARG002
        row_to_request: Tensor,
    ) -> list[Tensor]:
        self.calls.add_(1)
        return [torch.ones(len(row_to_request), 1, 1)]


def test_gates_of_a_loaded_module_are_those_of_the_module(tmp_path):
    artifact = published(tmp_path, Mixture(), gates=(GATES,))
    model = load(artifact, CPU)
    batch = model.golden.batch
    (weights,) = model.program.gate_weights(batch)
    user, candidate = (
        {name: torch.from_numpy(column) for name, column in side.items()}
        for side in (batch.user, batch.candidate)
    )
    (expected,) = Mixture().gate_weights(user, candidate, torch.from_numpy(batch.row_to_request))
    np.testing.assert_allclose(weights, expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(model.program.run(batch), model.golden.raw)


def test_module_with_gates_that_the_manifest_does_not_describe_is_loaded_as_before(tmp_path):
    model = load(published(tmp_path, Mixture()), CPU)
    assert model.program.gates == ()
    assert not hasattr(model.program._module, "gate_weights")


@pytest.mark.parametrize(
    ("module", "gates", "message"),
    [
        (Request(), GATES, "describes gates, but the module has no method gate_weights"),
        (Mixture(1.5), GATES, "level 1: the weights of a gate must sum to 1"),
        (Mixture(), GATES | {"sees": [[0, 1, 2], [0, 2]]}, "be 0 for experts that it does not see"),
        (
            Mixture(),
            GATES | {"experts": ["a", "b", "c", "d"]},
            r"gate_weights: level 1 is \(6, 2, 3\), expected \(6, 2, 4\)",
        ),
        (
            Shifting(),
            {"gates": ["all"], "experts": ["a"], "sees": [[0]]},
            "it changes its own state when it is called: calls",
        ),
    ],
    ids=["no method", "sums", "unseen", "shape", "state"],
)
def test_gates_that_differ_from_the_manifest_are_refused(tmp_path, module, gates, message):
    with pytest.raises(ArtifactInvalid, match=message):
        published(tmp_path, module, gates=(gates,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": ["click", "click"]}, "two gates have the same name"),
        ({"experts": ["a", "b", "b"]}, "two experts have the same name"),
        ({"sees": [[0, 1, 2]]}, "sees has 1 entries for 2 gates"),
        ({"sees": [[0, 1, 3], [1, 2]]}, "different positions below 3"),
        ({"sees": [[0, 1, 1], [1, 2]]}, "different positions below 3"),
        ({"sees": [[0, 1, 2], []]}, "different positions below 3"),
    ],
)
def test_manifest_with_gates_that_contradict_themselves_is_refused(artifact, change, message):
    edit_manifest(artifact, lambda manifest: manifest.update(gates=[GATES | change]))
    assert message in refusal(artifact)


def test_manifest_with_more_gate_weights_than_are_observed_is_refused(artifact):
    experts = [str(i) for i in range(1025)]
    level = {"gates": ["all"], "experts": experts, "sees": [list(range(1025))]}
    edit_manifest(artifact, lambda manifest: manifest.update(gates=[level]))
    assert "1025 weights, at most 1024 are observed" in refusal(artifact)


def test_keeping_the_gates_leaves_the_graph_of_the_scores_as_it_is():
    module = scripted(Mixture())
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    plain = load_program(buffer.getvalue(), description(), CPU)
    observed = load_program(buffer.getvalue(), description(gates=(GATES,)), CPU)
    assert operators(plain) == operators(observed)


def operators(program: Program) -> list[str]:
    """The operators of a frozen module's `forward`, in order."""
    return [node.kind() for node in program._module.graph.nodes()]
