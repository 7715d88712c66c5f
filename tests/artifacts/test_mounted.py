"""What is mounted as a model becomes a store: a version, a model's folder, or a store already."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from app.artifacts.loader import load
from app.artifacts.mounted import store_of_mount
from app.artifacts.store import Artifact, Store
from app.errors import ArtifactInvalid


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def served(tmp_path: Path, mount: Path):
    """Return what is served of the mount, as `model/version` each."""

    def create() -> Path:
        folder = tmp_path / "links"
        folder.mkdir()
        return folder

    def of(model_name: str | None = None) -> list[Artifact]:
        return list(Store(store_of_mount(mount, model_name, create)).artifacts())

    return of


def copy(artifact: Artifact, target: Path, **changes: object) -> None:
    shutil.copytree(artifact.folder, target)
    if changes:
        manifest = json.loads((target / "model.json").read_text())
        (target / "model.json").write_text(json.dumps(manifest | changes))


def test_store_is_served_as_it_is(mount, served, tiny):
    copy(tiny, mount / "tiny" / "1")
    copy(tiny, mount / "other" / "3", name="other", version=3)
    assert [str(artifact) for artifact in served()] == ["other/3", "tiny/1"]
    assert [artifact.folder.parents[1] for artifact in served("tiny")] == [mount, mount]


def test_version_beside_models_does_not_hide_them(mount, served, tiny):
    copy(tiny, mount / "tiny" / "1")
    copy(tiny, mount / "stray")
    assert [str(artifact) for artifact in served()] == ["tiny/1"]


@pytest.mark.parametrize("place", [".", "tiny", "any name"])
@pytest.mark.parametrize("model_name", [None, "tiny", "ranking-service"])
def test_one_version_is_served_under_the_name_that_is_asked_for(
    mount, served, tiny, place, model_name
):
    mount.rmdir()
    copy(tiny, mount / place, version=7)
    [artifact] = served(model_name)
    assert str(artifact) == f"{model_name or 'tiny'}/7"
    assert load(artifact, torch.device("cpu")).label == str(artifact)


def test_folder_of_a_model_is_followed(mount, served, tiny):
    copy(tiny, mount / "1")
    [first] = served()
    copy(tiny, mount / "2", version=2)
    store = Store(first.folder.parents[1])
    assert [str(artifact) for artifact in store.artifacts()] == ["tiny/1", "tiny/2"]


def test_versions_of_a_model_are_served_under_another_name(mount, served, tiny):
    copy(tiny, mount / "1")
    copy(tiny, mount / "2", version=2)
    artifacts = served("feed")
    assert [str(artifact) for artifact in artifacts] == ["feed/1", "feed/2"]
    assert load(artifacts[1], torch.device("cpu")).manifest.name == "feed"


def test_empty_or_missing_folder_is_a_store_that_waits(mount, served, tmp_path):
    assert served("feed") == []
    mount.rmdir()
    assert store_of_mount(mount, "feed", lambda: tmp_path) == mount


def test_store_without_the_model_of_that_name_is_refused(mount, served, tiny):
    copy(tiny, mount / "tiny" / "1")
    with pytest.raises(ArtifactInvalid) as caught:
        served("tinny")
    expected = 'the store has no model "tinny"; did you mean "tiny"? (models: tiny)'
    assert str(caught.value) == expected


def test_versions_of_two_models_in_one_folder_are_refused(mount, served, tiny):
    copy(tiny, mount / "1")
    copy(tiny, mount / "2", name="other", version=2)
    with pytest.raises(ArtifactInvalid, match="has versions of other, tiny; a store of several"):
        served()


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ("{", "model.json: is not JSON"),
        ("[]", "model.json: must be a JSON object"),
        ('{"version": 1}', "model.json: name: not a model name"),
        ('{"name": "../x", "version": 1}', "model.json: name: not a model name"),
        ('{"name": "x", "version": "1"}', "model.json: version: must be an integer"),
        ('{"name": "x", "version": 0}', "model.json: version: must be an integer"),
        ("[" * 100_000, "model.json: is not JSON"),
    ],
)
def test_manifest_without_name_and_version_is_refused(mount, served, manifest, problem):
    (mount / "model.json").write_text(manifest)
    with pytest.raises(ArtifactInvalid, match=problem):
        served()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65])
def test_name_that_is_no_model_name_is_refused(served, name):
    with pytest.raises(ArtifactInvalid, match="not a model name"):
        served(name)
