"""The structure of the code: imports between layers, and names of modules."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPOSITORY

MODULES = sorted(
    path for package in ("app", "models") for path in (REPOSITORY / package).rglob("*.py")
)
VAGUE = {"utils", "core", "common", "helpers", "manager", "base", "misc"}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path):
    for name in ("app", "models"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


PLANTED = {
    "HTTP in the engine": ("app/engine/queue.py", "import fastapi", "Only the front knows HTTP"),
    "the engine in ranking": (
        "app/ranking/formulas.py",
        "import app.engine.lanes",
        "Layers point down",
    ),
    "models in the service": (
        "app/artifacts/store.py",
        "import models.networks.config",
        "Serving never imports model code",
    ),
    "settings in the engine": (
        "app/engine/lanes.py",
        "import app.settings",
        "Settings are read in the composition root only",
    ),
    "the service in models": (
        "models/training/train.py",
        "import app.main",
        "Training knows the artifact",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("module", "line", "contract"), PLANTED.values(), ids=PLANTED)
def test_planted_import_breaks_a_contract(copy, module, line, contract):
    path = copy / module
    path.write_text(path.read_text() + f"\n{line}\n")
    report = lint_imports(copy)
    assert report.returncode != 0
    assert re.search(rf"{contract}.* BROKEN", report.stdout)


@pytest.mark.slow
def test_imports_follow_the_contracts(copy):
    report = lint_imports(copy)
    assert report.returncode == 0, report.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_module_names_are_not_vague(path):
    assert path.stem not in VAGUE


def test_torchscript_is_loaded_in_one_module_and_nothing_is_unpickled():
    sources = {path.relative_to(REPOSITORY).as_posix(): path.read_text() for path in MODULES}
    loaders = [name for name, text in sources.items() if re.search(r"torch\.jit\.load\(", text)]
    assert loaders == ["app/artifacts/loader.py"]
    forbidden = re.compile(r"\bimport pickle\b|\btorch\.load\(|\bjoblib|\beval\(\w|\bexec\(")
    assert [name for name, text in sources.items() if forbidden.search(text)] == []
