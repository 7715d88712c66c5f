"""The lock files match pyproject.toml and are complete, and CI runs pinned actions."""

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import REPOSITORY

PYTHONS = ("3.11", "3.12", "3.13")
TORCH = "requirements-torch.lock"
LOCKS = {
    "runtime": ("requirements.lock", TORCH),
    "development": ("requirements-dev.lock", TORCH),
    "data": ("requirements.lock", "requirements-data.lock", TORCH),
    "otel": ("requirements.lock", "requirements-otel.lock", TORCH),
}


def entries(file: str) -> Iterator[tuple[Requirement, int]]:
    """Yield each requirement of a lock file and the number of its hashes."""
    text = re.sub(r"^#.*\n", "", (REPOSITORY / file).read_text(), flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", text.strip()):
        specification, *hashes = entry.split("\\\n")
        for digest in hashes:
            assert re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}\s*", digest), digest
        yield Requirement(specification), len(hashes)


def locked(files: tuple[str, ...]) -> dict[str, str]:
    """Return the version of each package in lock files."""
    found = [requirement for file in files for requirement, _ in entries(file)]
    return {
        canonicalize_name(requirement.name): str(requirement.specifier)[2:] for requirement in found
    }


def declared(*extras: str) -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize(
    "file", sorted({file for lock in LOCKS.values() for file in lock} - {TORCH})
)
def test_every_locked_package_has_a_version_and_hashes(file):
    for requirement, hashes in entries(file):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes > 0, requirement


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("runtime", ()),
        ("development", ("dev", "plots", "tune", "data", "otel")),
        ("data", ("data",)),
        ("otel", ("otel",)),
    ],
)
def test_locked_versions_satisfy_the_declared_dependencies(lock, extras):
    versions = locked(LOCKS[lock])
    for requirement in declared(*extras):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not locked; run make lock"
        assert requirement.specifier.contains(version), f"{requirement}: locked {version}"


@pytest.mark.parametrize("lock", LOCKS)
def test_development_lock_contains_every_lock(lock):
    assert locked(LOCKS[lock]).items() <= locked(LOCKS["development"]).items()


@pytest.mark.parametrize("extra", ["data", "otel"])
def test_lock_of_an_extra_has_only_what_it_adds(extra):
    added, runtime = locked((f"requirements-{extra}.lock",)), locked(LOCKS["runtime"])
    assert added
    assert not added.keys() & runtime.keys()
    needed = [requirement.name for requirement in declared(extra)[len(declared()) :]]
    while needed:  # what is left over is not needed
        for text in metadata.distribution(needed.pop()).requires or ():
            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            name = canonicalize_name(requirement.name)
            if applies and name in added:
                del added[name]
                needed.append(name)
    assert added.keys() <= {canonicalize_name(requirement.name) for requirement in declared(extra)}


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("python", PYTHONS)
def test_locks_are_complete_for_every_supported_python(lock, python):
    """They are installed with --no-deps, so a missing package would not be noticed."""
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
        "extra": "",
    }
    versions = locked(LOCKS[lock])
    missing = []
    for name in versions.keys() - {"torch"}:  # pip installs torch with its dependencies
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for text in installed.requires or ():
            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate(environment)
            if applies and canonicalize_name(requirement.name) not in versions:
                missing.append(f"{name} needs {requirement}")
    assert missing == []


def test_ci_actions_are_pinned_by_commit():
    workflow = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
    jobs = yaml.safe_load(workflow)["jobs"].values()
    used = [step["uses"] for job in jobs for step in job["steps"] if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action)
        assert re.search(rf"{action}  # v\d+\.\d+\.\d+\n", workflow)
