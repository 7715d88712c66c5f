"""A store as it really is: copied file by file, behind links, with wrong clocks, read-only."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.artifacts.loader import load
from app.artifacts.publish import publish_copy
from app.artifacts.store import Store
from app.cli.main import main
from app.errors import ExitCode
from app.lifecycle.traffic import Traffic
from app.main import gatehouse
from app.settings import Settings
from tests import REPOSITORY
from tests.support.builders import CPU, published
from tests.support.server import running_server

FILES = ("model.json", "model.ts", "golden.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A store with version 1 of `feed`."""
    published(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def made(folder, tmp_path):
    """The folder of version 2, outside the store."""
    target = tmp_path / "made"
    shutil.copytree(folder / "feed" / "1", target)
    document = json.loads((target / "model.json").read_text())
    (target / "model.json").write_text(json.dumps(document | {"version": 2}))
    return target


def serving(folder):
    return gatehouse(Settings(store=folder, lanes=1, request_timeout_ms=30_000))


def active(parts):
    return [str(model) for model in parts.service.registry.active_models()]


@pytest.mark.parametrize("order", [*itertools.permutations(FILES)], ids=" ".join)
@pytest.mark.parametrize("how", ["cp -r", "rsync"])
async def test_copy_in_any_order_is_served_when_it_is_complete(folder, made, order, how):
    target = folder / "feed" / "2"
    target.mkdir()
    async with serving(folder) as parts:
        await parts.deployment.refresh()
        for name in order:
            content = (made / name).read_bytes()
            assert active(parts) == ["feed/1"]
            # rsync writes under another name; cp lets readers see a part of the file.
            written = target / (f".{name}.Xy12" if how == "rsync" else name)
            written.write_bytes(content[: len(content) // 2])
            await parts.deployment.refresh()
            assert active(parts) == ["feed/1"]
            written.write_bytes(content)
            written.rename(target / name)
            await parts.deployment.refresh()
        assert active(parts) == ["feed/2"]
        assert parts.service.registry.refused == {}
        assert parts.metrics.registry.get_sample_value(
            "gatehouse_model_swaps_total", {"model": "feed", "result": "refused"}
        ) in (None, 0)


async def test_volume_that_is_replaced_behind_links_is_followed(folder, made, tmp_path):
    """As Kubernetes mounts a ConfigMap, and git-sync a repository."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    shutil.copytree(folder, mounted / "..2026_01")
    shutil.copytree(folder, mounted / "..2026_02")
    shutil.copytree(made, mounted / "..2026_02" / "feed" / "2")
    (mounted / "..data").symlink_to("..2026_01")
    (mounted / "feed").symlink_to("..data/feed")
    async with serving(mounted) as parts:
        await parts.deployment.refresh()
        assert active(parts) == ["feed/1"]
        (mounted / "..next").symlink_to("..2026_02")
        (mounted / "..next").rename(mounted / "..data")
        shutil.rmtree(mounted / "..2026_01")
        await parts.deployment.refresh()
        assert active(parts) == ["feed/2"]
        assert parts.service.registry.damaged == {}  # version 1 has another inode, and is intact


@pytest.mark.parametrize("seconds", [0, 4_000_000_000], ids=["1970", "2096"])
async def test_times_of_files_and_manifests_do_not_matter(folder, made, seconds):
    document = json.loads((made / "model.json").read_text())
    document["created"] = "1970-01-01T00:00:00Z" if seconds == 0 else "2096-01-01T00:00:00Z"
    (made / "model.json").write_text(json.dumps(document))
    async with serving(folder) as parts:
        await parts.deployment.refresh()
        shutil.copytree(made, folder / "feed" / ".2")
        for path in (folder / "feed" / ".2", *(folder / "feed" / ".2").iterdir()):
            os.utime(path, (seconds, seconds))
        (folder / "feed" / ".2").rename(folder / "feed" / "2")
        await parts.deployment.refresh()
        assert active(parts) == ["feed/2"]
        traffic = folder / "feed" / "traffic.toml"
        for version in (1, 2):  # the same size and the same time
            traffic.write_text(f"active = {version}\n")
            os.utime(traffic, (seconds, seconds))
            await parts.deployment.refresh()
            assert active(parts) == [f"feed/{version}"]


async def test_server_writes_nothing_into_its_store(folder, made):
    def listing():
        paths = sorted(folder.rglob("*"))
        return [(path, path.lstat().st_mtime_ns, path.lstat().st_ino) for path in paths]

    (folder / "feed" / "traffic.toml").write_text("active = 1\n[shadow]\nversion = 2\nshare = 1.0")
    shutil.copytree(made, folder / "feed" / "2")
    before = listing()
    async with serving(folder) as parts:
        for _ in range(3):
            await parts.deployment.refresh()
        assert active(parts) == ["feed/1"]
    assert listing() == before


@contextmanager
def read_only(folder):
    """Take away the right to write, also from root: it becomes another user for a while."""
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.parametrize("command", ["rollback", "publish"])
def test_command_on_a_store_that_is_read_only_says_so(folder, made, command, capsys):
    publish_copy(Store(folder), made)
    with tempfile.TemporaryDirectory() as temporary:  # other users cannot look into tmp_path
        Path(temporary).chmod(0o755)
        store, copy = Path(temporary) / "store", Path(temporary) / "made"
        shutil.copytree(folder, store)
        shutil.copytree(made, copy)
        arguments = {"rollback": ["feed"], "publish": [str(copy)]}[command]
        assert main(["versions", "--store", str(store)]) == ExitCode.OK  # imports what it needs
        with read_only(store / "feed"):
            code = main([command, *arguments, "--store", str(store)])
        assert code == ExitCode.FAILED
        error = capsys.readouterr().err
        assert "Permission denied" in error
        assert error.count("\n") == 1
        assert not [path for path in (store / "feed").iterdir() if path.name.startswith(".")]


_KILL_WRITERS = """
import os, random, sys, time
from pathlib import Path
import torch
from app.artifacts.publish import publish_copy
from app.artifacts.store import Store
from app.lifecycle.traffic import Traffic

torch.set_num_threads(1)
store, made = Path(sys.argv[1]), Path(sys.argv[2])
for number in range(16):
    pid = os.fork()
    if pid == 0:
        while True:
            publish_copy(Store(store), made)
            for active in (1, 2, "latest") * 10:
                Traffic(active=active).write(store / "feed")
    time.sleep(random.uniform(0, 0.15))
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    Traffic.read(store / "feed")  # the old or the new one
"""


@pytest.mark.slow
def test_killed_publishers_and_commands_leave_whole_versions_and_a_whole_traffic_file(folder, made):
    arguments = [sys.executable, "-c", _KILL_WRITERS, str(folder), str(made)]
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert run.returncode == 0, run.stderr
    assert Traffic.read(folder / "feed").active in (1, 2, "latest")
    artifacts = list(Store(folder).artifacts())
    assert [artifact.version for artifact in artifacts] == [*range(1, len(artifacts) + 1)]
    for artifact in artifacts:
        load(artifact, CPU)
    assert publish_copy(Store(folder), made).version == len(artifacts) + 1


@pytest.mark.slow
def test_server_that_was_killed_starts_with_what_the_traffic_file_says(folder, made, tmp_path):
    publish_copy(Store(folder), made)
    serves = 1
    Traffic(active=serves).write(folder / "feed")
    for wanted in (2, 1, None):  # a version to be loaded, then a rollback
        flags = ("--lanes", "1", "--store-poll-s", "60")
        with running_server(folder, tmp_path / "log", *flags) as server:
            card = httpx.get(f"{server.url}/v1/models/feed").json()
            assert (card["version"], card["traffic"]["problems"]) == (serves, [])
            if wanted is not None:
                serves = wanted
                Traffic(active=wanted).write(folder / "feed")
                server.process.send_signal(signal.SIGHUP)
                time.sleep(0.02)  # in the middle of it
                server.process.kill()
