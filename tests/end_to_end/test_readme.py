"""The documentation is true: commands run, answers and tables equal the code, links work."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import orjson
import pytest
import torch

from app.api.examples import example_request
from app.artifacts.loader import load
from app.artifacts.store import Store
from app.settings import Settings
from tests import REPOSITORY
from tests.support.artifacts import add_version
from tests.support.foreign import matrix_file
from tests.support.forked import run_forked
from tests.support.server import patient_environment, running_server
from tests.tuning import worlds

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
API = (REPOSITORY / "app" / "api" / "README.md").read_text(encoding="utf-8")
MAP = (REPOSITORY / "app" / "README.md").read_text(encoding="utf-8")
OPERATIONS = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docker").glob("*.md"))
)
DOCUMENTS = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(
            path
            for folder in ("app", "docker", "models", "tests")
            for path in (REPOSITORY / folder).rglob("*.md")
        ),
    ]
)


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


COMMANDS = [
    command
    for block in blocks(README, "sh") + blocks(OPERATIONS, "sh")
    for command in re.split(r"(?<!\\)\n(?=\S)(?!\}')", block.strip())
]
ASSIGNMENT = re.compile(r"[A-Z_]+=")
"""A variable in front of a command."""
(PRINTED,) = map(json.loads, blocks(README, "json"))
EXPLAINED = next(
    document for document in map(json.loads, blocks(API, "json")) if "explanation" in document
)
INLINE = re.findall(r"`([^`\n]+)`", "\n".join(re.split(r"^```.*?^```$", README, flags=re.S | re.M)))


def commands(program: str) -> list[str]:
    """Return the commands that run a program."""
    found = [command for command in COMMANDS if command.split()[0].endswith(program)]
    assert found
    return found


def request_body() -> str:
    """Return the request that README sends with curl."""
    (body,) = re.findall(r"-d '(.*?)'", commands("curl")[0], flags=re.DOTALL)
    return str(body)


def run(command: list[str], folder: Path) -> str:
    env = patient_environment()
    if command[:2] == [sys.executable, "-m"]:
        finished = run_forked(command[2:], cwd=folder, env=env, timeout=600)
    else:
        finished = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env=env, check=False
        )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_readme_and_map_are_short():
    assert len(README.splitlines()) <= 150
    assert len(MAP.splitlines()) <= 175


def test_every_command_is_of_a_kind_that_is_tested():
    programs = [
        next(word for word in command.replace("\\\n", " ").split() if not ASSIGNMENT.match(word))
        for command in COMMANDS
    ]
    kinds = {Path(program).name for program in programs}
    assert kinds == {"make", "curl", "python", "gatehouse", "pip", "docker"}


@pytest.mark.slow
def test_demo_model_responds_as_printed(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    demo = ["-m", "models", "train", "--config", "models/configs/demo.toml", "--quiet"]
    run([sys.executable, *demo, "--store", str(tmp_path / "store")], REPOSITORY)
    publish_demo_tables(tmp_path)
    curl, example, *_ = commands("curl")
    with running_server(tmp_path / "store", tmp_path / "log") as server:
        here = curl.replace("http://127.0.0.1:8000", server.url)
        answer = json.loads(run(["sh", "-c", here], tmp_path))
        run(["sh", "-c", example.replace("http://127.0.0.1:8000", server.url)], tmp_path)
    assert len(json.loads((tmp_path / "request.json").read_text())["candidates"]) == 20
    (policies,) = blocks(README, "toml")
    (tmp_path / "policies.toml").write_text(policies)
    (ranking,) = re.findall(r'`"ranking": ({.*})`', API)
    asked = json.loads(request_body()) | {"ranking": json.loads(ranking)}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    rank = ["rank", "request.json", "--model", "feed", "--policies", "policies.toml"]
    explained = json.loads(run([sys.executable, "-m", "app", *rank], tmp_path))
    assert answer["policy"] == PRINTED["policy"]
    assert explained["policy"] == EXPLAINED["policy"]
    if trains_as_documented():
        assert answer == PRINTED
        assert explained["explanation"] == EXPLAINED["explanation"]
    else:
        assert shape(answer) == shape(PRINTED)
        assert sorted(answer["ranking"]) == sorted(PRINTED["ranking"])
        candidates = len(EXPLAINED["explanation"]["candidates"])
        assert len(explained["explanation"]["candidates"]) == candidates
        assert shape(explained["explanation"]).keys() == shape(EXPLAINED["explanation"]).keys()


def publish_demo_tables(folder: Path) -> None:
    """Run the commands of `make demo` that follow the training, with a store in `folder`."""
    makefile = (REPOSITORY / "Makefile").read_text()
    (recipe,) = re.findall(r"^demo:.*\n((?:\t.*\n)+)", makefile, flags=re.M)
    _, *commands = [shlex.split(line) for line in recipe.strip().splitlines()]
    assert [command[1] for command in commands] == ["-m", "items", "users"]
    for program, *arguments in commands:
        module = ["-m", "app"] if program.endswith("gatehouse") else []
        named = [argument.replace("build/", f"{folder}/") for argument in arguments]
        store = ["--store", str(folder / "store")] if module else []
        run([sys.executable, *module, *named, *store], REPOSITORY)


def trains_as_documented() -> bool:
    """Whether this CPU rounds as the one that trained the documented demo model.

    Other vector instructions round sums differently, and training amplifies that. Without
    AVX2, scores differ from the printed ones by up to a sixth.
    """
    cpu = Path("/proc/cpuinfo")
    vendor = "AuthenticAMD" in cpu.read_text() if cpu.is_file() else False
    return vendor and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def shape(node):
    """A document without its values."""
    if isinstance(node, dict):
        return {name: shape(value) for name, value in node.items()}
    if isinstance(node, list):
        return [shape(value) for value in node]
    return type(node)


def test_printed_rank_scores_follow_from_the_printed_scores():
    weights = PRINTED["policy"]["weights"]
    products = [
        math.prod(PRINTED["scores"][task][n] ** weight for task, weight in weights.items())
        for n in range(3)
    ]
    assert PRINTED["rank_score"] == pytest.approx(products, rel=1e-6)
    keys = json.loads(request_body())["candidates"]
    by_rank_score = sorted(zip(PRINTED["rank_score"], keys, strict=True), reverse=True)
    assert PRINTED["ranking"] == [key for _, key in by_rank_score]


def test_printed_shares_add_up():
    for candidate in EXPLAINED["explanation"]["candidates"]:
        shares = [task["share"] for task in candidate["tasks"].values()]
        assert candidate["total"] == pytest.approx(sum(shares), rel=1e-6)


def test_figures_beside_peers_are_those_of_the_benchmarks():
    """The README has the CPU time of binary requests; the table of BENCHMARKS.md has all."""
    bench = (REPOSITORY / "BENCHMARKS.md").read_text(encoding="utf-8")
    bench = bench.partition("<!-- peers-costs: begin -->")[2]

    def row(server: str) -> str:
        (cells,) = re.findall(rf"^\| \**{server}, binary\** \|(.*)\|$", bench, flags=re.M)[:1]
        return " / ".join(cell.strip(" *") for cell in cells.split("|")[:3])

    triton, ours, mosec = row("Triton"), row("Gatehouse"), row("mosec")
    assert (
        f"| Triton's Python backend: {triton} µs of CPU for 1 / 50 / 500 rows, binary | {ours} µs"
        in README
    )
    assert f"1 / 50 / 500 candidates, binary: {ours} µs of CPU, mosec {mosec} µs |" in README


def test_make_targets_exist():
    shown = [command for command in INLINE if command.startswith("make ")]
    for command in commands("make") + shown:
        run(["make", "--dry-run", *command.split()[1:]], REPOSITORY)


def test_commands_that_show_a_figure_exist():
    modules = [re.match(r"python -m (tests\.bench\.\w+)", command) for command in INLINE]
    found = [match[1] for match in modules if match]
    assert found
    for name in found:
        assert (REPOSITORY / name.replace(".", "/")).with_suffix(".py").is_file()
    for command in INLINE:
        for file in re.findall(r"pytest (\S+\.py)", command):
            assert (REPOSITORY / file).is_file()


@pytest.mark.slow
def test_gatehouse_commands_run(store, tmp_path):
    shutil.copytree(store.folder, tmp_path / "store")
    add_version(tmp_path / "store", "feed", 1, name="feed")
    shutil.rmtree(tmp_path / "store" / "tiny")
    active = load(next(Store(tmp_path / "store").artifacts()), torch.device("cpu"))
    (tmp_path / "request.json").write_bytes(
        orjson.dumps(example_request(active), option=orjson.OPT_SERIALIZE_NUMPY)
    )
    matrix_file(tmp_path).rename(tmp_path / "ctr.pt")
    (tmp_path / "build").mkdir()
    worlds.write(tmp_path / "build" / "log.parquet", worlds.columns(worlds.log()))
    for command in commands("gatehouse"):
        if command.split()[1] in ("versions", "rollback", "activate", "prune"):
            continue  # they change versions: the test of these commands is below
        if command.split()[1] in ("bench", "plan", "items", "users"):
            # They need a server, or files of tables: their own tests run them. Here, the options.
            run([sys.executable, "-m", "app", *command.split()[1:], "--help"], tmp_path)
            continue
        output = run([sys.executable, "-m", "app", *command.split()[1:]], tmp_path)
        assert re.search(r"\bok\b|published ctr/1|rank score|judged on|held-out", output)


@pytest.mark.slow
def test_python_commands_run():
    for command in commands("python"):
        arguments = command.split()[1:]
        named = [argument for argument in arguments if argument.endswith(".toml")]
        assert all((REPOSITORY / file).is_file() for file in named)
        if "show" not in arguments:  # training takes minutes: only the options are parsed
            arguments.append("--help")
        run([sys.executable, *arguments], REPOSITORY)


def test_extras_that_are_installed_exist():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for command in commands("pip"):
        (extra,) = re.findall(r"install -e '\.\[(\w+)\]'$", command)
        assert extra in project["optional-dependencies"]


def test_docker_commands_name_files_that_exist():
    for command in commands("docker"):
        for name in re.findall(r"-f (\S+)", command):
            assert (REPOSITORY / name).is_file()
    assert (REPOSITORY / "Dockerfile").is_file()


@pytest.mark.slow
def test_commands_that_change_versions_run_as_documented(store, tmp_path):
    (block,) = (
        block for block in blocks(OPERATIONS, "sh") if block.startswith("gatehouse versions")
    )
    for version in range(1, 8):
        folder = tmp_path / "store" / "feed" / str(version)
        shutil.copytree(store.folder / "tiny" / "1", folder)
        manifest = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(
            json.dumps(manifest | {"name": "feed", "version": version})
        )
    for line in block.splitlines():
        command = shlex.split(line.partition(" --wait")[0], comments=True)
        assert command[0] == "gatehouse"
        run([sys.executable, "-m", "app", *command[1:]], tmp_path)
    folders = {path.name for path in (tmp_path / "store" / "feed").iterdir()}
    assert folders == {"3", "4", "5", "6", "7", "traffic.toml"}


def settings_rows() -> list[tuple[str, str, str]]:
    """Return variable, default and description of each setting, as the table has them."""
    pattern = r"^\| `(GATEHOUSE_\w+)` \| (.*?) \| (.*?) \|$"
    rows = re.findall(pattern, OPERATIONS, flags=re.MULTILINE)
    return [(name, default.strip(), text.replace("`", "")) for name, default, text in rows]


def test_settings_table_equals_the_settings():
    assert settings_rows() == [
        (
            f"GATEHOUSE_{name.upper()}",
            "" if field.default is None else str(field.default),
            field.description,
        )
        for name, field in Settings.model_fields.items()
    ]


@pytest.mark.slow
def test_settings_table_equals_the_help_of_serve():
    help_ = " ".join(run([sys.executable, "-m", "app", "serve", "--help"], REPOSITORY).split())
    help_ = help_.replace("- ", "-")  # argparse wraps lines at hyphens
    for name, default, text in settings_rows():
        if name != "GATEHOUSE_KEYS":  # a variable only
            stated = f"default: {default}; " if default else ""
            assert f"{text} ({stated}{name})".replace("- ", "-") in help_


def test_every_variable_that_is_named_is_a_setting():
    settings = {f"GATEHOUSE_{name.upper()}" for name in Settings.model_fields}
    for document in DOCUMENTS:
        if document.name == "CHANGELOG.md":  # names those that there were
            continue
        named = set(re.findall(r"\bGATEHOUSE_[A-Z_]*[A-Z]", document.read_text(encoding="utf-8")))
        assert named <= settings | {"GATEHOUSE_KEY"}, document  # that one is read by clients


def test_files_and_names_in_the_life_of_a_request_exist():
    code = "\n".join(path.read_text() for path in (REPOSITORY / "app").rglob("*.py"))
    names = re.findall(r"`([^`\n]+)`", MAP) + re.findall(r"[\w/]+/\w+\.py", MAP)
    for name in names:
        if re.fullmatch(r"[\w/]+(\.py|/)", name):
            assert (REPOSITORY / "app" / name).exists() or (REPOSITORY / name).exists(), name
        elif match := re.fullmatch(r"([A-Z]\w+)\.(\w+)", name):
            owner = re.search(rf"^class {match[1]}\b.*?(?=^\S|\Z)", code, flags=re.S | re.M)
            assert owner, name
            assert re.search(rf"    (async )?def {match[2]}\(", owner[0]), name
        elif re.fullmatch(r"[A-Z][a-z]+[A-Za-z]*", name):
            assert re.search(rf"^class {name}\b", code, flags=re.M), name
        elif re.fullmatch(r"[a-z]+(_[a-z]+)+", name):
            assert re.search(rf"\b{name}\b", code), name


def test_map_names_every_layer():
    layers = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
    declared = next(
        contract["layers"] for contract in layers["contracts"] if contract["type"] == "layers"
    )
    names = [name for layer in declared for name in layer.split(" | ") if name != "__main__"]
    rows = re.findall(r"^\| (`[^|]+`) \|", MAP.split("## The life")[0], flags=re.M)
    listed = [re.sub(r"/$|\.py$", "", name) for row in rows for name in re.findall("`(.*?)`", row)]
    assert listed == names


def test_map_lists_every_file_of_its_layer():
    rows = re.findall(r"^\| (\w+) \| (.+) \|$", MAP.split("## Every file")[1], flags=re.M)
    listed = {layer: set(re.findall(r"\w+", files)) for layer, files in rows}
    found: dict[str, set[str]] = {}
    for path in (REPOSITORY / "app").glob("*/**/*.py"):
        if path.stem != "__init__":
            layer = path.relative_to(REPOSITORY / "app").parts[0]
            found.setdefault(layer, set()).add(path.stem)
    assert found.keys() <= listed.keys()
    for layer, names in found.items():
        assert names <= listed[layer], f"app/README.md lacks files of {layer}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        file, _, heading = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, target


def test_shell_blocks_are_valid_shell():
    for command in COMMANDS:
        run(["sh", "-n", "-c", command], REPOSITORY)
