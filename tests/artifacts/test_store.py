"""The store lists complete artifacts in order, and says why other folders are ignored."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.artifacts.store import MANIFEST, NOT_A_MODEL, NOT_A_VERSION, Artifact, Store


def complete(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / MANIFEST).touch()
    return folder


def names(store: Store) -> list[str]:
    return [str(artifact) for artifact in store.artifacts()]


def test_artifacts_are_sorted_by_model_then_by_version_as_a_number(tmp_path):
    for name in ("search/2", "feed/10", "feed/9", "feed/1"):
        complete(tmp_path / name)
    assert names(Store(tmp_path)) == ["feed/1", "feed/9", "feed/10", "search/2"]
    assert Store(tmp_path).versions("feed") == [1, 9, 10]
    assert Store(tmp_path).versions("nobody") == []


def test_artifact_has_its_folder(tmp_path):
    folder = complete(tmp_path / "feed" / "3")
    assert list(Store(tmp_path).artifacts()) == [Artifact("feed", 3, folder)]


def test_a_store_that_does_not_exist_is_empty(tmp_path):
    assert names(Store(tmp_path / "none")) == []


def test_a_file_in_place_of_a_folder_is_ignored(tmp_path):
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
        ".hidden/1",
    ],
)
def test_a_folder_that_is_being_written_is_ignored_without_a_reason(tmp_path, name):
    complete(tmp_path / "feed" / "7")
    complete(tmp_path / name)
    assert names(Store(tmp_path)) == ["feed/7"]
    assert Store(tmp_path).scan().ignored == {}


@pytest.mark.parametrize(
    "version",
    [
        *("latest", "v2", "0", "01", "-1", "1.5", "1 ", "1\n", "1_0", "+1", "1e3"),
        *("\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT ONE}"),
        *("9007199254740992", "12345678901234567890"),
    ],
)
def test_a_folder_that_is_not_named_as_a_version_is_ignored_with_a_reason(tmp_path, version):
    complete(tmp_path / "feed" / "7")
    complete(tmp_path / "feed" / version)
    assert names(Store(tmp_path)) == ["feed/7"]
    assert Store(tmp_path).scan().ignored == {
        "feed/"
        + version.replace("\n", "\\n"): "not a version: a whole number from 1 to 9007199254740991, "
        "without zeros before it"
    }


@pytest.mark.parametrize("model", ["-feed", "_feed", "my feed", "fééd", "x" * 65])
def test_a_folder_that_is_not_named_as_a_model_is_ignored_with_a_reason(tmp_path, model):
    complete(tmp_path / "feed" / "7")
    complete(tmp_path / model / "1")
    (tmp_path / "lost+found").mkdir()  # nothing in it could be served
    assert names(Store(tmp_path)) == ["feed/7"]
    (reason,) = Store(tmp_path).scan().ignored.values()
    assert reason.startswith("not a model name: ")


@pytest.mark.parametrize("version", [1700000000, 20261125120000, 2**53 - 1])
def test_large_version_such_as_a_unix_time_is_accepted(tmp_path, version):
    complete(tmp_path / "feed" / "2")
    complete(tmp_path / "feed" / str(version))
    assert names(Store(tmp_path)) == ["feed/2", f"feed/{version}"]


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def version_without_access(path: Path) -> None:
    path.mkdir()
    link_to_itself(path / MANIFEST)


def test_what_cannot_be_read_is_ignored_with_a_reason_and_costs_the_others_nothing(tmp_path):
    complete(tmp_path / "feed" / "1")
    complete(tmp_path / "search" / "1")
    link_to_itself(tmp_path / "other")
    link_to_itself(tmp_path / "feed" / "2")
    version_without_access(tmp_path / "search" / "2")
    listing = Store(tmp_path).scan()
    assert [str(artifact) for artifact in listing.artifacts] == ["feed/1", "search/1"]
    assert listing.ignored == dict.fromkeys(
        ("other", "feed/2", "search/2"), "cannot be read: Too many levels of symbolic links"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"a\nb", "a\\nb"),
        (b"a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\u202eb".encode(), "a\\u202eb"),
        ("\u00e9".encode(), "\u00e9"),
        (b"a b", "a b"),
    ],
)
def test_a_name_of_any_bytes_is_shown_in_printable_characters(tmp_path, name, shown):
    complete(tmp_path / os.fsdecode(name) / "1")
    complete(tmp_path / "feed" / os.fsdecode(name))
    assert Store(tmp_path).scan().ignored == {shown: NOT_A_MODEL, f"feed/{shown}": NOT_A_VERSION}


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_manifest_that_is_not_a_regular_file_is_reported(tmp_path, make):
    complete(tmp_path / "feed" / "1")
    (tmp_path / "feed" / "2").mkdir()
    make(tmp_path / "feed" / "2" / MANIFEST)
    listing = Store(tmp_path).scan()
    assert [str(artifact) for artifact in listing.artifacts] == ["feed/1"]
    assert listing.ignored == {"feed/2": "model.json is not a regular file"}


def test_unreadable_model_folder_does_not_affect_the_others(tmp_path, monkeypatch):
    """As root, mode bits bind nobody: the system call is made to fail."""
    complete(tmp_path / "feed" / "1")
    complete(tmp_path / "secret" / "1")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if path == tmp_path / "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = Store(tmp_path).scan()
    assert [str(artifact) for artifact in listing.artifacts] == ["feed/1"]
    assert listing.ignored == {"secret": "cannot be read: Permission denied"}


def test_a_store_that_cannot_be_read_is_an_error(tmp_path):
    link_to_itself(tmp_path / "loop")
    with pytest.raises(OSError, match="Too many levels"):
        Store(tmp_path / "loop").scan()
    with pytest.raises(FileNotFoundError):
        Store(tmp_path / "none").scan()


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


@pytest.mark.parametrize("is_same_file", [True, False])
def test_a_fingerprint_changes_when_size_and_time_stay_the_same(tmp_path, is_same_file):
    file = complete(tmp_path / "feed" / "1") / "model.ts"
    file.write_bytes(b"short")
    (artifact,) = Store(tmp_path).artifacts()
    before, status = artifact.fingerprint(), file.stat()
    time.sleep(0.02)  # the kernel's clock of files ticks every few milliseconds
    if not is_same_file:
        file.unlink()
    file.write_bytes(b"SHORT")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (5, status.st_mtime_ns)
    assert artifact.fingerprint() != before


def test_a_version_that_is_gone_has_an_empty_fingerprint(tmp_path):
    assert Artifact("feed", 1, tmp_path / "feed" / "1").fingerprint() == frozenset()
