"""The guide of imported modules is true: its modules, commands, descriptions and messages."""

import json
import re
import runpy
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import torch
from torch import Tensor, nn

from app.cli.main import main
from app.errors import ExitCode
from app.main import gatehouse
from app.server.in_process import post_json
from app.settings import Settings
from tests import REPOSITORY

GUIDE = (REPOSITORY / "app" / "importing" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)
MESSAGES = re.findall(r"^\| `(.+?)` \| .+ \| .+ \|$", GUIDE, flags=re.MULTILINE)


@pytest.fixture(autouse=True)
def _modules(tmp_path, monkeypatch):
    """Work in a folder with the files that the guide's Python writes."""
    monkeypatch.chdir(tmp_path)
    python = "".join(text for language, text in BLOCKS if language == "python")
    Path("guide.py").write_text(python)  # TorchScript reads the source of a class
    runpy.run_path("guide.py", run_name="guide")


def call(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command of the guide; `> FILE` writes what it prints."""
    words, _, target = command.partition(" > ")
    code = main(shlex.split(words)[1:])
    printed = capsys.readouterr()
    if target:
        Path(target).write_text(printed.out)
    return code, printed.out, printed.err


def test_everything_runs_in_the_order_of_the_guide(capsys):
    drafted, requests = "", []
    for language, text in BLOCKS:
        match language:
            case "sh":
                for command in text.splitlines():
                    code, out, err = call(command, capsys)
                    assert code == ExitCode.OK, err
                    if "--draft" in command:
                        drafted = out
                        assert "It imports as it is." in out
                    else:
                        assert out.startswith("published ")
            case "toml" if text.startswith("# from the draft\n"):
                for line in text.splitlines()[1:]:
                    assert line in drafted.splitlines()
            case "toml":
                first, rest = text.split("\n", 1)
                Path(first.removeprefix("# ")).write_text(rest)
            case "json" if '"inputs"' not in text:
                requests.append(text)
    for model, request in zip(("ctr", "watch"), requests, strict=True):
        Path("request.json").write_text(request)
        code, out, err = call(f"gatehouse rank request.json --model {model}", capsys)
        assert code == ExitCode.OK, err
        assert len(json.loads(out)["rank_score"]) == 2
    refused = json.loads(requests[1])
    refused["candidates"][0]["item"] = 7000  # row 499, as the description says
    refused["user"]["watched"] = [0]
    Path("request.json").write_bytes(orjson.dumps(refused))
    code, _, err = call("gatehouse rank request.json --model watch", capsys)
    assert code != ExitCode.OK
    assert "/user/watched/0: must be an id between 1 and 499: 0 is the padding" in err
    assert "candidates" not in err


async def test_one_tensor_of_numbers_keeps_the_names_of_a_triton_client(capsys):
    lines = [line for _, text in BLOCKS for line in text.splitlines()]
    (command,) = (line for line in lines if line.startswith("gatehouse import scorer.pt"))
    assert call(command, capsys)[0] == ExitCode.OK
    (request,) = (text for language, text in BLOCKS if language == "json" and '"inputs"' in text)
    async with gatehouse(Settings(store=Path("store"), lanes=1)) as parts:
        await parts.start()
        response = await post_json(parts.app, "/v2/models/scorer/infer", request.encode())
    assert response.status == 200, response.problem
    (output,) = orjson.loads(response.content)["outputs"]
    assert (output["name"], output["shape"]) == ("OUTPUT__0", [2, 1])
    (sent,) = orjson.loads(request)["inputs"]
    expected = torch.jit.load("scorer.pt")(torch.tensor(sent["data"]).reshape(sent["shape"]))
    assert output["data"] == pytest.approx(expected.flatten().tolist(), abs=1e-6)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) - x.mean()


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) + torch.rand(1)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.layer = nn.Dropout(0.5), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(self.drop(x))) * torch.ones(len(x), 1)


def refusals(capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """What is printed for a module or a description that breaks a rule, in the guide's order."""
    (described,) = (text for _, text in BLOCKS if text.startswith("# watch.toml"))
    Path("watch.toml").write_text(described)
    example = torch.zeros(4, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Fixed(), example, check_trace=False), "training.pt")
        torch.jit.save(torch.jit.trace(Fixed().eval(), example, check_trace=False), "fixed.pt")
    for module in (Mean(), Random()):
        torch.jit.save(torch.jit.script(module), f"{type(module).__name__.lower()}.pt")
    for name in ("training", "fixed", "mean", "random"):
        yield refusal(f"{name}.pt --name a --columns price --tasks click:number", capsys)
    for columns, tasks in (
        ("age,price,gender@3,item@600", "click:probability,dwell:seconds"),
        ("age,price,gender@3,item@500,price2", "click:probability,dwell:seconds"),
        ("age,price,gender@3,item", "click:probability,dwell:seconds"),
        ("age,price,gender@3,item@500", "dwell:seconds,click:probability"),
        ("age,price,gender@3,item@500", "click:probability"),
    ):
        yield refusal(f"click.pt --name a --columns {columns} --tasks {tasks}", capsys)
    text = Path("watch.toml").read_text().replace('name = "click"', 'name = "clik"')
    Path("watch.toml").write_text(text)
    yield refusal("watch.pt --config watch.toml", capsys)


def refusal(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    code, _, err = call(f"gatehouse import {arguments}", capsys)
    assert code == ExitCode.FAILED, err
    return err


def test_refusals_are_those_of_the_table(capsys):
    for message, printed in zip(MESSAGES, refusals(capsys), strict=True):
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert re.search(pattern, printed), f"{message}\n{printed}"
