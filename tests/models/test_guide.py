"""The guide is true: its commands lead from a table to a served ranking."""

import json
import re
import shutil
import subprocess

import pytest

from app.artifacts.artifact_files import read_manifest
from app.artifacts.store import Store
from app.cli import main as gatehouse
from models import __main__ as models
from models.data import census_income
from tests import REPOSITORY
from tests.models.data.test_census_income import SAMPLE
from tests.models.data.test_movielens import recbole
from tests.support.server import running_server

GUIDE = (REPOSITORY / "models" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    found = [block for kind, block in BLOCKS if kind == language]
    assert found
    return found


def public_data(folder, patch):
    """Small raw files by data set; the configurations of the repository are put into `folder`."""
    shutil.copytree(REPOSITORY / "models" / "configs", folder / "models" / "configs")
    schema = folder / "sample" / "schema.toml"
    schema.parent.mkdir()
    schema.write_text(census_income.SCHEMA.read_text().replace("min_count = 10", "min_count = 1"))
    patch.setattr(census_income, "SCHEMA", schema)
    return {"census-income": SAMPLE, "movielens-100k": recbole(folder / "recbole")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which everything up to `serve` was done as the guide says."""
    path = tmp_path_factory.mktemp("guide")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for block in blocks("python"):
            exec(compile(block, "guide", "exec"), {})
        for block in blocks("toml"):
            (path / block.splitlines()[0].removeprefix("# ")).write_text(block)
        sources = public_data(path, patch)
        for command in "\n".join(blocks("sh")).splitlines():
            words = command.split()
            if words[:3] == ["python", "-m", "models"]:
                arguments = words[3:]
                if arguments[0] == "fetch":
                    arguments += ["--source", str(sources[arguments[1]])]
                if arguments[0] == "compare":
                    arguments[arguments.index("--seeds") + 1] = "2"
                assert models.main(arguments) == 0, command
            elif words[:2] == ["gatehouse", "check"]:
                assert gatehouse.main(words[1:]) == 0
    return path


def test_every_command_is_of_a_kind_that_is_tested():
    first = {" ".join(line.split()[:3]) for line in "\n".join(blocks("sh")).splitlines()}
    commands = {words for words in first if re.match(r"\w", words) and not words.startswith("clip")}
    assert commands == {
        "python -m models",
        "gatehouse check store",
        "gatehouse items publish",
        "gatehouse items show",
        "gatehouse serve --store",
        "curl -s http://127.0.0.1:8000/v1/models/clips/score",
    }


@pytest.mark.slow
def test_public_data_is_compared_in_tables(folder):
    for name, tasks in (("census-income", ("income", "never_married")), ("movielens", ("rated",))):
        table = (folder / "build" / name / "compare.md").read_text()
        for task in tasks:
            assert f"### {task}\n" in table
        assert "| PLE | " in table


@pytest.mark.slow
def test_what_is_published_takes_the_strings_of_the_table(folder):
    (artifact,) = Store(folder / "store").artifacts()
    manifest = read_manifest(artifact)
    inputs = {feature.name: feature.model_dump() for feature in manifest.inputs}
    assert {name: feature.get("encoding", {}).get("kind") for name, feature in inputs.items()} == {
        "user_id": "hash",
        "recent_clips": "vocabulary",
        "clip_id": "vocabulary",
        "clip": None,
    }
    assert "vocabulary.clip_id.jsonl" in manifest.files
    assert (manifest.evaluation["click"]["auc"] or 0) > 0.7  # what people click can be learnt
    assert sorted(path.name for path in (folder / "store").iterdir()) == ["clips"]


@pytest.mark.slow
def test_the_items_of_the_guide_become_a_table(folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder / "store", tmp_path / "store")
    shutil.copy(folder / "clips.parquet", tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in "\n".join(blocks("sh")).splitlines():
        if command.startswith("gatehouse items"):
            assert gatehouse.main(command.split()[1:]) == 0
    out = capsys.readouterr().out
    assert out.startswith("published items/1 of clips: 50 rows, 2 features, key clip_id (string)")
    assert re.search(r"clip_id: \d+ \(clip-7\)\n  clip: \d+ 0\.\d+", out)


@pytest.mark.slow
def test_the_service_answers_as_printed(folder):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (curl,) = [block for block in blocks("sh") if block.startswith("curl")]
    (printed,) = [json.loads(block) for block in blocks("json")]
    with running_server(folder / "store", folder / "log") as server:
        here = curl.replace("http://127.0.0.1:8000", server.url)
        answer = ask(here)
        wrong = ask(here.replace('"clip-3"', "3"))
        shown = ask(f"curl -s {server.url}/v1/models/clips")
        metrics = subprocess.run(
            ["curl", "-s", f"{server.url}/metrics"], capture_output=True, text=True, check=True
        ).stdout
    assert answer.keys() == printed.keys()
    assert answer["policy"] == printed["policy"]
    assert answer["ranking"][0] == printed["ranking"][0]
    assert wrong["errors"] == [{"pointer": "/candidates/clip_id/0", "detail": "must be a string"}]
    assert 'gatehouse_unknown_id_total{feature="clip_id",model="clips"} 1.0' in metrics
    encodings = {feature["name"]: feature.get("encoding") for feature in shown["inputs"]}
    assert encodings["user_id"] == {"kind": "hash", "ids": "string", "buckets": 500, "seed": 0}
    known = set((folder / "clips.jsonl").read_text().split())
    example = shown["example_request"]["candidates"]["clip_id"]
    assert {f'"{clip}"' for clip in example} & known


def ask(command):
    finished = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", GUIDE):
        assert (REPOSITORY / "models" / target.partition("#")[0]).exists()
