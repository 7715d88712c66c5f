"""`gatehouse import`: foreign files are served as they would run, or refused with the reason."""

import math
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app.artifacts.encoding import Hashed, rows_of, write_vocabulary
from app.artifacts.store import PROGRAM, Store
from app.cli.main import main
from app.errors import ExitCode
from app.main import gatehouse
from app.settings import Settings
from tests.support.foreign import (
    MATRIX_FLAGS,
    NAMED,
    STRINGS,
    TENSORS,
    matrix_file,
    named_file,
    tensors_file,
)
from tests.support.in_process import client_of


def imported(file: Path, store: Path, config: str) -> None:
    described = file.with_suffix(".toml")
    described.write_text(config)
    assert (
        main(["import", str(file), "--config", str(described), "--store", str(store)])
        == ExitCode.OK
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The three foreign files, and a store into which all were imported."""
    folder = tmp_path_factory.mktemp("foreign")
    store = folder / "store"
    assert main(["import", str(matrix_file(folder)), *MATRIX_FLAGS, "--store", str(store)]) == 0
    imported(tensors_file(folder), store, TENSORS)
    imported(named_file(folder), store, NAMED)
    (folder / "vocabulary.brand.jsonl").write_bytes(write_vocabulary(BRANDS))
    strings = shutil.copy(folder / "named.pt", folder / "strings.pt")
    imported(Path(strings), store, STRINGS)
    return folder


@pytest.fixture(scope="module")
async def client(files):
    settings = Settings(store=files / "store", lanes=1, request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            yield client


async def scores(client: httpx.AsyncClient, model: str, request: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(f"/v1/models/{model}/score", json=request)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["scores"]
    return found


def run(path: Path, *arguments: object) -> Any:
    with torch.no_grad():
        return torch.jit.load(path)(*arguments)


def sigmoid(logits: torch.Tensor) -> list[float]:
    return [1 / (1 + math.exp(-z)) for z in logits.tolist()]


MATRIX_REQUEST: dict[str, Any] = {
    "user": {"age": 0.4, "gender": 2, "mood": -1.5},
    "candidates": {"price": [0.1, -0.7, 1.3], "item": [0, 49, 7]},
}


async def test_a_matrix_module_with_float_ids_is_served(client, files):
    found = await scores(client, "matrix", MATRIX_REQUEST)
    x = torch.tensor([[0.4, 2, 0.1, 0, -1.5], [0.4, 2, -0.7, 49, -1.5], [0.4, 2, 1.3, 7, -1.5]])
    click, dwell = run(files / "matrix.pt", x)
    assert found["click"] == pytest.approx(click[:, 0].tolist(), rel=1e-5)
    assert found["dwell"] == pytest.approx([math.expm1(z) for z in dwell[:, 0].tolist()], rel=1e-4)


@pytest.mark.parametrize(
    ("ids", "pointer"),
    [([0, 3.7, 7], "/candidates/item/1"), ([0, 50, 7], "/candidates/item/1")],
    ids=["no integer", "outside the vocabulary"],
)
async def test_a_bad_float_id_is_refused_before_the_batch(client, ids, pointer):
    candidates = MATRIX_REQUEST["candidates"] | {"item": ids}
    request = MATRIX_REQUEST | {"candidates": candidates}
    response = await client.post("/v1/models/matrix/score", json=request)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]


async def test_a_module_with_several_tensors_is_served(client, files):
    request = {
        "user": {"user_id": 999, "recent": [4, 29]},  # an unknown user: row 0
        "candidates": {"item_id": [1, 28], "quality": [[0.1, 0.2], [0.3, -0.4]]},
    }
    found = await scores(client, "tensors", request)
    outputs = run(
        files / "tensors.pt",
        torch.tensor([0, 0]),
        torch.tensor([[0, 0, 4, 29]]).expand(2, 4),
        torch.tensor([1, 28]),
        torch.tensor(request["candidates"]["quality"]),
    )
    assert list(found) == ["like", "dwell"]
    assert found["like"] == pytest.approx(sigmoid(outputs[:, 2]), rel=1e-5)
    assert found["dwell"] == pytest.approx([math.exp(z) for z in outputs[:, 0].tolist()], rel=1e-4)


async def test_a_module_from_dict_to_dict_is_served(client, files):
    numbers = [[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]]
    candidates = {"brand": [8, 0], "numbers": numbers}
    found = await scores(client, "named", {"user": {}, "candidates": candidates})
    outputs = run(
        files / "named.pt",
        {
            "city": torch.full((2, 1), 3.0),
            "brand": torch.tensor([[8], [0]]),
            "numbers": torch.tensor(numbers),
        },
    )
    assert found["click"] == pytest.approx(sigmoid(outputs["click"]), rel=1e-5)
    assert found["value"] == pytest.approx(outputs["value"].tolist(), rel=1e-4, abs=1e-6)


BRANDS = [f"b{row}" for row in range(1, 9)]


async def test_string_ids_are_encoded_by_vocabulary_and_by_hash(client, files):
    candidates: dict[str, Any] = {
        "brand": ["b8", "b1"],
        "numbers": [[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]],
    }
    request = {"user": {"city": "rome"}, "candidates": candidates}
    found = await scores(client, "strings", request)
    rows = rows_of(Hashed(buckets=6), ["rome"], {})
    x = {
        "city": torch.full((2, 1), float(rows[0])),
        "brand": torch.tensor([[8], [1]]),
        "numbers": torch.tensor(candidates["numbers"]),
    }
    assert found["click"] == pytest.approx(sigmoid(run(files / "strings.pt", x)["click"]), rel=1e-5)
    candidates["brand"][1] = "b9"
    assert (await client.post("/v1/models/strings/score", json=request)).status_code == 422


def test_a_missing_vocabulary_file_is_named(capsys, tmp_path):
    named_file(tmp_path)
    described = tmp_path / "strings.toml"
    described.write_text(STRINGS)
    assert (
        main(["import", str(tmp_path / "named.pt"), "--config", str(described)]) == ExitCode.FAILED
    )
    absent = tmp_path / "vocabulary.brand.jsonl"
    assert f"cannot be imported: {absent}: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["matrix", "tensors", "named", "strings"])
async def test_the_example_request_of_an_imported_model_works(client, model):
    example = (await client.get(f"/v1/models/{model}")).json()["example_request"]
    assert (await client.post(f"/v1/models/{model}/score", json=example)).status_code == 200


def test_the_published_program_is_the_imported_file(files):
    for artifact in Store(files / "store").artifacts():
        file = files / f"{artifact.model}.pt"
        assert (artifact.folder / PROGRAM).read_bytes() == file.read_bytes()


def test_imported_artifacts_pass_the_check(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["check", str(files / "store")]) == ExitCode.OK
    assert "MMoE of a blog" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "missing FILE; see gatehouse import --help"),
        (["FILE"], "gatehouse import needs --config, or --name, --columns and --tasks"),
        (["FILE", "--name", "a", "--columns", "b"], "import needs --config, or"),
        (["FILE", "--config", "TOML", "--name", "a"], "--config replaces --name"),
        (["FILE", "--config", "absent.toml"], "absent.toml: No such file"),
        (["absent.pt", "--config", "TOML"], "absent.pt: No such file"),
        (["FILE", "--config", "FILE"], "not valid TOML"),
        (["FILE", "--config", "TOML"], "TOML: name: required key is missing (and 2 more)"),
        (["FILE", "--conf", "TOML"], "unknown option --conf; did you mean --config?"),
        (["FILE", "--name", "a", "--columns", "x@", "--tasks", "c:logit"], "must be NAME, NAME@"),
        (["FILE", "--name", "a", "--columns", "x", "--tasks", "c:logits"], "tasks[c].gives: must"),
        (["FILE", "--name", "a", "--columns", "x", "--tasks", "click"], "tasks[click].gives: must"),
        (
            ["FILE", "--name", "a/b", "--columns", "x", "--tasks", "c:logit"],
            "name: must have 1 to 64",
        ),
        (["FILE", "--name", "a", "--columns", "x,x", "--tasks", "c:logit"], "two inputs have"),
        (
            ["FILE", "--name", "a", "--columns", "x", "--user", "y", "--tasks", "c:logit"],
            '--user: unknown column "y"',
        ),
        (
            ["FILE", "--name", "a", "--columns", "x@16777217", "--tasks", "c:logit"],
            "x: float32 holds integers up to 2**24 exactly",
        ),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_on_standard_error(capsys, monkeypatch, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_bytes(b"\x80")
    Path("TOML").write_bytes(b"")
    assert main(["import", *arguments]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gatehouse: ")
    assert line in err
    assert err.count("\n") == 1


def test_help_explains_the_description_file(capsys):
    assert main(["import", "--help"]) == ExitCode.OK
    text = capsys.readouterr().out
    for word in ("--columns", "--config", "log1p-seconds", "padding_side", "257 rows", "ranges"):
        assert word in text
