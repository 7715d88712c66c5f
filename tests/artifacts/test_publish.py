"""Publishing adds a complete version, or changes nothing."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from app.artifacts.artifact_files import read_manifest
from app.artifacts.loader import load
from app.artifacts.publish import publish
from app.artifacts.store import GOLDEN, MANIFEST, PROGRAM, Store
from app.errors import ArtifactInvalid
from tests.support.builders import CPU, Company, Request, batch, description, published, scripted


class Raises(nn.Module):
    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        return user["height"][row_to_request] + candidate["item"]


class Narrow(nn.Module):
    """[B, 1], though two tasks are described."""

    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        return user["age"][row_to_request] + candidate["quality"][:, :1]


class NotANumber(nn.Module):
    def forward(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        return torch.log(candidate["quality"] - 100 - 0 * user["age"][row_to_request])


def test_a_published_version_can_be_loaded(tmp_path):
    artifact = published(tmp_path)
    assert list(Store(tmp_path).artifacts()) == [artifact]
    model = load(artifact, CPU)
    assert str(model) == str(artifact) == "feed/1"
    assert model.manifest.torch_version == torch.__version__
    assert dict(description()).items() <= dict(model.manifest).items()


def test_the_manifest_states_size_and_hash_of_each_file(tmp_path):
    artifact = published(tmp_path)
    assert {path.name for path in artifact.folder.iterdir()} == {MANIFEST, PROGRAM, GOLDEN}
    for name, digest in read_manifest(artifact).files.items():
        content = (artifact.folder / name).read_bytes()
        assert digest.size == len(content)
        assert digest.sha256 == hashlib.sha256(content).hexdigest()


def test_each_model_counts_its_own_versions(tmp_path):
    versions = [published(tmp_path, name=name).version for name in ("a", "a", "b", "a")]
    assert versions == [1, 2, 1, 3]


def test_the_next_version_follows_the_largest_one(tmp_path):
    (tmp_path / "feed" / "41").mkdir(parents=True)
    (tmp_path / "feed" / "41" / MANIFEST).touch()
    assert published(tmp_path).version == 42


@pytest.mark.parametrize("fragment", ["model.ts", "notes/readme.txt"])
def test_an_incomplete_version_keeps_its_number(tmp_path, fragment):
    path = tmp_path / "feed" / "1" / fragment
    path.parent.mkdir(parents=True)
    path.touch()
    assert published(tmp_path).version == 2
    assert path.exists()
    assert published(tmp_path).version == 3


def test_a_file_with_a_version_s_name_keeps_its_number(tmp_path):
    (tmp_path / "feed").mkdir()
    (tmp_path / "feed" / "1").touch()
    assert published(tmp_path).version == 2


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Raises, "golden requests: the program failed"),
        (Narrow, "task dwell: the module returned .* column 1"),
        (NotANumber, "differs by nan"),
        (Company, "request 0 alone: raw output of task .* differs by"),
    ],
)
def test_a_module_that_cannot_serve_leaves_the_store_empty(tmp_path, module, reason):
    with pytest.raises(ArtifactInvalid, match=reason):
        published(tmp_path, module())
    assert list(tmp_path.iterdir()) == []


def test_a_publish_that_fails_while_writing_changes_nothing(tmp_path, monkeypatch):
    published(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    full = OSError(28, "No space left on device")

    def fail(_: int) -> None:
        raise full

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        published(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_publishers_at_the_same_time_get_different_versions(tmp_path):
    publishers = 6
    module, requests = scripted(Request()), batch()
    start = threading.Barrier(publishers)

    def one(_: int) -> int:
        start.wait()
        return publish(Store(tmp_path), description(), module, requests).version

    with ThreadPoolExecutor(publishers) as pool:
        versions = list(pool.map(one, range(publishers)))
    assert sorted(versions) == list(range(1, publishers + 1))
    for artifact in Store(tmp_path).artifacts():
        assert load(artifact, CPU).manifest.version == artifact.version
    assert len(list((tmp_path / "feed").iterdir())) == publishers


def test_publish_removes_what_a_killed_prune_of_an_earlier_build_left_behind(tmp_path):
    artifact = published(tmp_path)
    pruned = tmp_path / "feed" / ".pruned-x"
    pruned.mkdir()
    artifact.folder.rename(pruned / "1")
    assert published(tmp_path).version == 1
    assert (pruned / "1").exists()
    yesterday = time.time() - 25 * 3600
    for path in (pruned, *pruned.rglob("*")):
        os.utime(path, (yesterday, yesterday))
    assert published(tmp_path).version == 2
    assert not pruned.exists()


def test_golden_requests_may_include_one_without_candidates(tmp_path):
    requests = batch(sizes=(2, 0, 1))
    artifact = publish(Store(tmp_path), description(), scripted(Request()), requests)
    assert load(artifact, CPU).golden.batch.row_to_request.tolist() == [0, 0, 2]


@pytest.mark.parametrize("file", [None, "artifact/model.ts"])
def test_what_a_killed_publisher_left_behind_is_removed_a_day_later(tmp_path, file):
    published(tmp_path)
    old, recent = (tmp_path / "feed" / f".publishing-{name}" for name in ("old", "recent"))
    for left in (old, recent):
        (left / "artifact").mkdir(parents=True)
        if file is not None:
            (left / file).write_bytes(b"half of it")
    yesterday = time.time() - 25 * 3600
    for path in (old, *old.rglob("*")):
        os.utime(path, (yesterday, yesterday))
    assert published(tmp_path).version == 2
    assert not old.exists()
    assert recent.exists()
