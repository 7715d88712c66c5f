"""README is true: its blocks run, its map and its table are complete."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.main import gatehouse
from app.server.in_process import ask
from app.settings import Settings
from tests import REPOSITORY
from tests.support.artifacts import add_version
from tests.support.foreign import matrix_file
from tests.support.server import clean_environment, running_server
from tests.tuning import worlds

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
PRINTED = [json.loads(block) for language, block in BLOCKS if language == "json"]
COMMANDS = [
    command
    for language, block in BLOCKS
    if language == "sh"
    for command in re.split(r"\n(?=\S)(?!\}')", block.strip())
]


def commands(program: str) -> list[str]:
    """README's commands that run a program."""
    found = [command for command in COMMANDS if command.split()[0].endswith(program)]
    assert found
    return found


def run(command: list[str], folder: Path) -> str:
    finished = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=clean_environment(), check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_every_command_is_of_a_kind_that_is_tested():
    kinds = {Path(command.split()[0]).name for command in COMMANDS}
    assert kinds == {"make", "curl", "python", "gatehouse", "docker"}


@pytest.mark.slow
def test_the_curl_command_answers_as_printed(store, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    feed(store, tmp_path)
    (curl,) = commands("curl")
    printed, _ = PRINTED
    with running_server(tmp_path / "store", tmp_path / "log") as server:
        here = curl.replace("http://127.0.0.1:8000", server.url)
        answer = json.loads(run(["sh", "-c", here], tmp_path))
    assert shape(answer) == shape(printed)
    assert sorted(answer["ranking"]) == sorted(printed["ranking"])
    assert answer["policy"] == printed["policy"]


def feed(store, folder):
    """Put a small model that is called `feed` into a store in `folder`."""
    shutil.copytree(store.folder, folder / "store")
    add_version(folder / "store", "feed", 1, name="feed")
    shutil.rmtree(folder / "store" / "tiny")


def shape(node):
    """A document without its values."""
    if isinstance(node, dict):
        return {name: shape(value) for name, value in node.items()}
    if isinstance(node, list):
        return [shape(value) for value in node]
    return type(node)


@pytest.mark.slow
async def test_the_policies_rank_and_explain_as_printed(store, tmp_path):
    feed(store, tmp_path)
    (policies,) = [block for language, block in BLOCKS if language == "toml"]
    (tmp_path / "policies.toml").write_text(policies)
    (body,) = re.findall(r"-d '(.*?)'", commands("curl")[0], flags=re.DOTALL)
    (ranking,) = re.findall(r'`"ranking": ({.*})` in the request', README)
    _, printed = PRINTED
    body = json.dumps(json.loads(body) | {"ranking": json.loads(ranking)})
    settings = Settings(
        store=tmp_path / "store", policies=tmp_path / "policies.toml", request_timeout_ms=30_000
    )
    async with gatehouse(settings) as parts:
        await parts.start()
        answered = await ask(parts.app, "/v1/score", body.encode())
    answer = json.loads(answered.content)
    assert answer["policy"] == printed["policy"]
    assert shape(answer["explanation"]) == shape(printed["explanation"])


def test_make_targets_exist():
    for command in commands("make"):
        run(["make", "--dry-run", *command.split()[1:]], REPOSITORY)


@pytest.mark.slow
def test_gatehouse_commands_run(store, tmp_path):
    feed(store, tmp_path)
    (body,) = re.findall(r"-d '(.*?)'", commands("curl")[0], flags=re.DOTALL)
    (tmp_path / "request.json").write_text(body)
    matrix_file(tmp_path).rename(tmp_path / "ctr.pt")
    (tmp_path / "build").mkdir()
    worlds.write(tmp_path / "build" / "log.parquet", worlds.columns(worlds.log()))
    for command in commands("gatehouse"):
        output = run([sys.executable, "-m", "app", *command.split()[1:]], tmp_path)
        assert re.search(r"\bok\b|published ctr/1|rank score|judged on|held-out", output)


@pytest.mark.slow
def test_python_commands_run():
    for command in commands("python"):
        arguments = command.split()[1:]
        named = [each for each in arguments if each.endswith(".toml")]
        assert all((REPOSITORY / each).is_file() for each in named)
        if "show" not in arguments:  # training takes minutes: the options are parsed, and no more
            arguments.append("--help")
        run([sys.executable, *arguments], REPOSITORY)


def test_docker_commands_name_files_that_exist():
    for command in commands("docker"):
        for name in re.findall(r"-f (\S+)", command):
            assert (REPOSITORY / name).is_file()
    assert (REPOSITORY / "Dockerfile").is_file()


def test_the_settings_table_is_that_of_the_code():
    rows = re.findall(r"^\| `(GATEHOUSE_\w+)` \| (.*?) \| (.*?) \|$", README, flags=re.MULTILINE)
    expected = [
        (
            f"GATEHOUSE_{name.upper()}",
            "" if field.default is None else str(field.default),
            field.description,
        )
        for name, field in Settings.model_fields.items()
    ]
    found = [(name, default.strip(), text.replace("`", "")) for name, default, text in rows]
    assert found == expected


def test_the_map_names_every_module_and_no_other():
    (tree,) = (block for language, block in BLOCKS if language == "text")
    mapped, folders = set(), [REPOSITORY]
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"\s*((?:\S+ )*?\S+)(?:\s{2,}|$)", line)[1].split()  # type: ignore[index]
        for name in names if all("." in each for each in names) else names[:1]:
            path = folders[depth] / name
            assert path.exists(), line
            mapped.add(path.resolve())
            if name.endswith("/"):
                folders[depth + 1 :] = [path]
    for package in ("app", "models"):
        for module in (REPOSITORY / package).rglob("*.py"):
            if module.name not in ("__init__.py", "__main__.py"):
                listed = module.resolve() in mapped or "telemetry" in module.parts
                assert listed or "data" in module.parts, f"{module} is not in README's map"


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (REPOSITORY / target).exists()
