"""Drafted descriptions: the first import of a sequence model succeeds."""

import io
import tomllib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.artifacts.store import Store
from app.cli.main import main
from app.errors import ArtifactInvalid, ExitCode
from app.importing.draft import draft
from app.main import gatehouse
from app.settings import Settings
from tests.support.in_process import client_of
from tests.support.sequences import (
    DoubleFields,
    Interest,
    OneMatrix,
    OtherNames,
    SelfAttention,
    scripted,
)

MODULES = {
    "interest": Interest,
    "self-attention": SelfAttention,
    "double-fields": DoubleFields,
    "other-names": OtherNames,
    "one-matrix": OneMatrix,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """The file of each module."""
    del tmp_path_factory
    return {name: scripted(module()) for name, module in MODULES.items()}


@pytest.fixture(scope="module")
def drafts(files) -> dict[str, dict[str, Any]]:
    """The draft of each module; each says that it was tried."""
    found = {}
    for name, content in files.items():
        text = draft(content, name)
        assert "It imports as it is." in text, text
        found[name] = tomllib.loads(text) | {"text": text}
    return found


def inputs(drafted: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {feature["name"]: (feature["side"], feature["kind"]) for feature in drafted["inputs"]}


def packs(drafted: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {
        argument["name"]: (*argument["pack"], argument["dtype"], argument.get("rank", 2))
        for argument in drafted["arguments"]
    }


def test_a_length_is_derived_from_its_list_and_is_no_input(drafts):
    drafted = drafts["interest"]
    assert inputs(drafted) == {
        "user": ("user", "id"),
        "item": ("candidate", "id"),
        "hist_item": ("user", "id_list"),
        "dense": ("candidate", "dense"),
    }
    assert packs(drafted) == {
        "user": ("user", "int64", 1),
        "item": ("item", "int64", 1),
        "hist_item": ("hist_item", "int64", 2),
        "seq_length": ({"take": "length", "of": "hist_item", "at_least": 1}, "int64", 1),
        "dense": ("dense", "float32", 2),
    }
    sizes = {feature["name"]: feature.get("vocabulary_size") for feature in drafted["inputs"]}
    assert sizes == {"user": 20, "item": 30, "hist_item": 30, "dense": None}
    (dense,) = (feature for feature in drafted["inputs"] if feature["name"] == "dense")
    assert dense["dim"] == 2
    assert [(task["name"], task["gives"]) for task in drafted["tasks"]] == [
        ("score", "probability")
    ]


def test_a_padding_mask_is_told_from_a_mask_and_the_longest_list_is_found(drafts):
    drafted = drafts["self-attention"]
    assert packs(drafted)["key_padding_mask"] == (
        {"take": "padding", "of": "item_seq", "at_least": 1},
        "bool",
        2,
    )
    (history,) = (feature for feature in drafted["inputs"] if feature["kind"] == "id_list")
    assert (history["max_length"], history["padding"]) == (6, 0)


def test_a_mask_by_another_name_is_told_from_a_padding_mask():
    class Turned(OtherNames):
        def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
            mask = 1 - x["hist padding"].float().unsqueeze(2)  # 1 is padding
            pooled = (self.items(x["hist items"]) * mask).sum(1) / (mask.sum(1) + 1e-9)
            wage = x["wage per hour"].unsqueeze(1)
            z = self.top(torch.cat([self.items(x["_item"]), pooled, wage], 1))
            return {"a": z[:, 0], "b": z[:, 1]}

    class Kept(OtherNames):
        def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
            mask = x["pad mask"].float().unsqueeze(2)  # 1 is an id, whatever its name says
            pooled = (self.items(x["hist items"]) * mask).sum(1) / (mask.sum(1) + 1e-9)
            wage = x["wage per hour"].unsqueeze(1)
            z = self.top(torch.cat([self.items(x["_item"]), pooled, wage], 1))
            return {"a": z[:, 0], "b": z[:, 1]}

    for module, key, take in ((Turned(), "hist padding", "padding"), (Kept(), "pad mask", "mask")):
        drafted = tomllib.loads(draft(scripted(module), "m"))
        assert packs(drafted)[key][0]["take"] == take


def test_float64_modules_get_float64_and_named_tuples_are_read_by_field(drafts):
    drafted = drafts["double-fields"]
    assert packs(drafted)["context"] == ("context", "float64", 2)
    assert [(task["name"], task["output"]) for task in drafted["tasks"]] == [
        ("ctr", {"path": "ctr"}),
        ("watch_time", {"path": "watch_time"}),
    ]


def test_names_stay_as_they_are_except_those_of_tasks(drafts):
    drafted = drafts["other-names"]
    assert drafted["style"] == "dict"
    assert inputs(drafted) == {
        "hist items": ("user", "id_list"),
        "_item": ("candidate", "id"),
        "wage per hour": ("candidate", "dense"),
    }
    assert [(task["name"], task["output"]["path"]) for task in drafted["tasks"]] == [
        ("p_click", "p(click)"),
        ("task", "停留"),
    ]


def test_the_columns_of_one_matrix_are_ids_lists_their_lengths_and_numbers(drafts):
    drafted = drafts["one-matrix"]
    (argument,) = drafted["arguments"]
    assert argument["pack"][-1] == {"take": "length", "of": "X_3", "at_least": 1}
    assert inputs(drafted) == {
        "X_0": ("candidate", "id"),
        "X_1": ("candidate", "dense"),
        "X_3": ("candidate", "id_list"),
    }


class ListOfTensors(nn.Module):
    def forward(self, x: list[Tensor]) -> Tensor:
        return x[0]


class Endless(nn.Module):
    """No tensor of any width fits."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.size(0) < 0, "never"
        return x


class OverRows(nn.Module):
    """Probabilities over the batch instead of over the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        shares: Tensor = self.top(x).softmax(dim=0)
        return shares


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (scripted(ListOfTensors()), 'its argument "x" is List[Tensor]; arguments must be tensors'),
        (scripted(Endless()), "no tensors were found with which it runs"),
        (scripted(OverRows()), "the outputs of a row change with the other rows of the batch"),
        (b"\x80", "not a TorchScript file"),
    ],
    ids=["list", "endless", "over-rows", "noise"],
)
def test_a_module_that_cannot_be_drafted_is_refused_with_the_reason(content, reason):
    with pytest.raises(ArtifactInvalid) as caught:
        draft(content, "m")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unused_arguments_and_outputs_of_like_names_import_as_drafted():
    class Sloppy(nn.Module):
        def forward(self, price: Tensor, debug: Tensor) -> dict[str, Tensor]:
            del debug
            total = price.sum(1)
            return {"p(a)": total, "p a": total * 2, "rank_score": total * 3}

    text = draft(scripted(Sloppy()), "sloppy")
    assert "It imports as it is." in text
    drafted = tomllib.loads(text)
    assert drafted["unused"] == ["debug"]
    names = [(task["name"], task["output"]["path"]) for task in drafted["tasks"]]
    assert names == [("p_a", "p(a)"), ("p_a_2", "p a"), ("rank_score_2", "rank_score")]


def test_a_draft_names_what_it_leaves_out():
    class Rich(nn.Module):
        def forward(
            self, price: Tensor, scale: float = 1.0, bias: Tensor | None = None
        ) -> dict[str, Tensor]:
            total = price.sum(1) * scale
            if bias is not None:
                total = total + bias
            pair = torch.stack([total, -total], 1)
            return {"click": total, "other": pair, "all": pair.unsqueeze(2)}

    text = draft(scripted(Rich()), "rich")
    assert "It imports as it is." in text
    notes = [line for line in text.splitlines() if line.startswith("# Left out: ")]
    assert notes == [
        '# Left out: argument "scale", which has a default. Requests cannot change it.',
        '# Left out: argument "bias", which has a default. Requests cannot change it.',
        '# Left out: output "other", of 2 columns. A task takes one: '
        'output = { path = "other", column = 0 }.',
        '# Left out: output "all", which has 3 dimensions.',
    ]
    assert [task["name"] for task in tomllib.loads(text)["tasks"]] == ["click"]


def test_a_draft_that_does_not_import_says_why():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0] * 0

    text = draft(scripted(Constant()), "constant")
    assert "# Drafted from" in text
    assert "It does not import yet: no output depends on x" in text
    assert tomllib.loads(text)["inputs"][0]["name"] == "x"


def test_the_command_prints_a_draft_that_the_next_command_takes(files, tmp_path, capsys):
    path = tmp_path / "self attention.pt"
    path.write_bytes(files["self-attention"])
    assert main(["import", "--draft", str(path)]) == ExitCode.OK
    text = capsys.readouterr().out
    assert tomllib.loads(text)["name"] == "self-attention"
    config = tmp_path / "m.toml"
    config.write_text(text, encoding="utf-8")
    store = tmp_path / "store"
    command = ["import", str(path), "--config", str(config), "--store", str(store)]
    assert main(command) == ExitCode.OK
    assert Store(store).versions("self-attention") == [1]
    assert main(["import", "--draft", str(path), "--config", str(config)]) == ExitCode.USAGE
    assert "--draft takes no description" in capsys.readouterr().err


@pytest.fixture(scope="module")
async def client(files, drafts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    for name, content in files.items():
        (folder / f"{name}.pt").write_bytes(content)
        (folder / f"{name}.toml").write_text(drafts[name]["text"], encoding="utf-8")
        described = ["--config", str(folder / f"{name}.toml"), "--store", str(folder / "store")]
        assert main(["import", str(folder / f"{name}.pt"), *described]) == ExitCode.OK
    settings = Settings(store=Path(folder / "store"), lanes=1, request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            yield client


async def scores(client: httpx.AsyncClient, model: str, request: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(f"/v1/models/{model}/score", json=request)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["scores"]
    return found


def call(content: bytes, *arguments: object) -> Any:
    with torch.no_grad():
        return torch.jit.load(io.BytesIO(content))(*arguments)


async def test_callers_send_the_list_only(client, files):
    request = {
        "user": {"user": 3, "hist_item": [4, 5, 29]},
        "candidates": {"item": [1, 28], "dense": [[0.1, 0.2], [0.3, -0.4]]},
    }
    found = await scores(client, "interest", request)
    want = call(
        files["interest"],
        torch.tensor([3, 3]),
        torch.tensor([1, 28]),
        torch.tensor([[4, 5, 29]] * 2),
        torch.tensor([3, 3]),
        torch.tensor(request["candidates"]["dense"]),
    )
    assert found["score"] == pytest.approx(want.tolist(), rel=1e-5)
    request["user"]["seq_length"] = 3
    response = await client.post("/v1/models/interest/score", json=request)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/user/seq_length"


async def test_padding_is_no_id_of_a_list_that_a_mask_is_derived_from(client, files):
    candidates = {"_item": [1, 2], "wage per hour": [0.5, -1.0]}
    url = "/v1/models/other-names/score"
    for history, place in (([3, 0, 7], 1), ([3, 7, 0], 2)):
        request = {"user": {"hist items": history}, "candidates": candidates}
        response = await client.post(url, json=request)
        assert response.status_code == 422
        assert response.json()["errors"] == [
            {
                "pointer": f"/user/hist items/{place}",
                "detail": "must be an id between 1 and 29: 0 is the padding of this feature",
            }
        ]
    padded = {
        "inputs": [
            {"name": "hist items", "datatype": "INT64", "shape": [1, 4], "data": [3, 7, 0, 0]},
            {"name": "_item", "datatype": "INT64", "shape": [2], "data": [1, 2]},
            {"name": "wage per hour", "datatype": "FP32", "shape": [2], "data": [0.5, -1.0]},
        ]
    }
    response = await client.post("/v2/models/other-names/infer", json=padded)
    assert response.status_code == 200, response.text
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    want = call(
        files["other-names"],
        {
            "hist items": torch.tensor([[3, 7]] * 2),
            "hist mask": torch.ones(2, 2),
            "_item": torch.tensor([1, 2]),
            "wage per hour": torch.tensor([0.5, -1.0]),
        },
    )
    np.testing.assert_allclose(outputs["p_click"], want["p(click)"], rtol=1e-5)
    padded["inputs"][0]["data"] = [3, 0, 7, 0]
    response = await client.post("/v2/models/other-names/infer", json=padded)
    assert response.status_code in (400, 422)
    assert "0 is the padding of this feature (row 0, element 1)" in response.text
    document = (await client.get("/openapi.json")).text
    assert '"not":{"const":0}' in document.replace(" ", "")


async def test_an_empty_history_counts_as_one_padding_item(client, files):
    request = {"user": {"item_seq": []}, "candidates": {"item_id": [7]}}
    found = await scores(client, "self-attention", request)
    mask = torch.tensor([[False] + [True] * 5])
    want = call(
        files["self-attention"],
        torch.zeros(1, 6).long(),
        torch.tensor([1]),
        mask,
        torch.tensor([7]),
    )
    assert found["score"] == pytest.approx(torch.sigmoid(want).tolist(), rel=1e-5)


async def test_other_names_work_in_both_dialects_and_in_policies(client, files):
    request: dict[str, Any] = {
        "user": {"hist items": [4, 9]},
        "candidates": {"_item": [1, 2], "wage per hour": [0.5, -1.0]},
        "ranking": {"weights": {"p_click": 2.0}},
    }
    found = await scores(client, "other-names", request)
    want = call(
        files["other-names"],
        {
            "hist items": torch.tensor([[4, 9]] * 2),
            "hist mask": torch.ones(2, 2),
            "_item": torch.tensor([1, 2]),
            "wage per hour": torch.tensor([0.5, -1.0]),
        },
    )
    assert found["p_click"] == pytest.approx(want["p(click)"].tolist(), rel=1e-5)
    tensors = [
        ("hist items", "INT64", [1, 2], [4, 9]),
        ("_item", "INT64", [2], [1, 2]),
        ("wage per hour", "FP32", [2], [0.5, -1.0]),
    ]
    body = {
        "inputs": [
            {"name": name, "datatype": kind, "shape": shape, "data": data}
            for name, kind, shape, data in tensors
        ]
    }
    response = await client.post("/v2/models/other-names/infer", json=body)
    assert response.status_code == 200, response.text
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    np.testing.assert_allclose(outputs["p_click"], found["p_click"], rtol=1e-6)
    wrong = request | {"candidates": {"_item": [1, 2], "wage per hour": ["a", 1]}}
    response = await client.post("/v1/models/other-names/score", json=wrong)
    assert response.json()["errors"][0]["pointer"] == "/candidates/wage per hour/0"
    metrics = (await client.get("/metrics")).text
    assert 'model="other-names"' in metrics


class WatchedMean(nn.Module):
    """A list whose name does not say so: summed over dim 1, it takes a single id as well."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(500, 8)
        self.layer = nn.Linear(8, 1)

    def forward(self, seen: Tensor, seen_length: Tensor) -> Tensor:
        mean = self.item(seen).sum(1) / seen_length.clamp(min=1).unsqueeze(1)
        return torch.sigmoid(self.layer(mean))


class MaskedSum(WatchedMean):
    def forward(self, seen: Tensor, mask: Tensor) -> Tensor:
        return torch.sigmoid(self.layer((self.item(seen) * mask.unsqueeze(2)).sum(1)))


@pytest.mark.parametrize("module", [WatchedMean, MaskedSum])
def test_a_length_or_a_mask_makes_a_list_of_what_could_be_one_id(module):
    drafted = tomllib.loads(draft(scripted(module()), "seen"))
    assert inputs(drafted)["seen"][1] == "id_list"
