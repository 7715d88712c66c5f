"""The store: complete artifacts, in order, and nothing else that lies about."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.artifacts.store import MANIFEST, Artifact, Store


def complete(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / MANIFEST).touch()
    return folder


def names(store: Store) -> list[str]:
    return [str(artifact) for artifact in store.artifacts()]


def test_artifacts_come_by_model_then_by_version_as_a_number(tmp_path):
    for name in ("search/2", "feed/10", "feed/9", "feed/1"):
        complete(tmp_path / name)
    assert names(Store(tmp_path)) == ["feed/1", "feed/9", "feed/10", "search/2"]
    assert Store(tmp_path).versions("feed") == [1, 9, 10]
    assert Store(tmp_path).versions("nobody") == []


def test_an_artifact_knows_its_folder(tmp_path):
    folder = complete(tmp_path / "feed" / "3")
    assert list(Store(tmp_path).artifacts()) == [Artifact("feed", 3, folder)]


def test_a_store_that_does_not_exist_is_empty(tmp_path):
    assert names(Store(tmp_path / "none")) == []


def test_a_file_in_place_of_the_store_or_a_model_or_a_version_is_passed_over(tmp_path):
    (tmp_path / "file").touch()
    assert names(Store(tmp_path / "file")) == []
    complete(tmp_path / "feed" / "1")
    (tmp_path / "feed" / "2").touch()
    assert names(Store(tmp_path)) == ["feed/1"]


def test_a_version_without_a_manifest_is_not_complete(tmp_path):
    (tmp_path / "feed" / "1").mkdir(parents=True)
    (tmp_path / "feed" / "1" / "model.ts").touch()
    (tmp_path / "feed" / "2" / MANIFEST).mkdir(parents=True)
    assert names(Store(tmp_path)) == []


@pytest.mark.parametrize(
    "name",
    [
        "feed/.publishing-x",
        "feed/.publishing-x/artifact",
        "feed/latest",
        "feed/0",
        "feed/01",
        "feed/-1",
        "feed/1.5",
        "feed/1 ",
        "feed/1\n",
        "feed/\N{SUPERSCRIPT TWO}",
        "feed/\N{ARABIC-INDIC DIGIT ONE}",
        "feed/1234567890",
        ".hidden/1",
        "-feed/1",
        "my feed/1",
        f"{'x' * 65}/1",
    ],
)
def test_a_folder_of_another_name_is_passed_over(tmp_path, name):
    complete(tmp_path / "feed" / "7")
    complete(tmp_path / name)
    assert names(Store(tmp_path)) == ["feed/7"]


def test_an_artifact_may_be_a_link_to_a_folder(tmp_path):
    real = complete(tmp_path / "elsewhere" / "x")
    (tmp_path / "store" / "feed").mkdir(parents=True)
    (tmp_path / "store" / "feed" / "1").symlink_to(real)
    assert names(Store(tmp_path / "store")) == ["feed/1"]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "model.ts").write_bytes(b"longer"),
        lambda folder: (folder / "model.ts").unlink(),
        lambda folder: (folder / "golden.safetensors").touch(),
        lambda folder: os.utime(folder / "model.ts", ns=(0, 1)),
    ],
    ids=["size", "removed", "added", "touched"],
)
def test_a_fingerprint_changes_with_the_files(tmp_path, change: Callable[[Path], object]):
    folder = complete(tmp_path / "feed" / "1")
    (folder / "model.ts").write_bytes(b"short")
    (artifact,) = Store(tmp_path).artifacts()
    before = artifact.fingerprint()
    assert artifact.fingerprint() == before
    change(folder)
    assert artifact.fingerprint() != before


def test_a_version_that_is_gone_has_an_empty_fingerprint(tmp_path):
    assert Artifact("feed", 1, tmp_path / "feed" / "1").fingerprint() == frozenset()
