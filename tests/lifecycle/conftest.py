"""The store that most tests of this folder start from."""

import shutil

import pytest

from app.artifacts.artifact_files import read_manifest


@pytest.fixture
def folder(tmp_path, tiny):
    """A store of the test's own that holds version 1 of `tiny`."""
    shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
    return tmp_path


@pytest.fixture
def manifest(tiny):
    return read_manifest(tiny)
