"""`gatehouse versions`, `activate`, `rollback`, `publish` and `prune` on a store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import httpx
import pytest

from app.artifacts.inputs import DenseInput
from app.artifacts.store import Store
from app.cli.main import main
from app.errors import ExitCode
from tests import REPOSITORY
from tests.support.artifacts import add_version, corrupt
from tests.support.builders import INPUTS, published
from tests.support.server import patient_environment, running_server


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with the versions 1, 2 and 3 of `feed`; it is the default one."""
    store = tmp_path / "store"
    for _ in range(3):
        published(store)
    monkeypatch.setenv("GATEHOUSE_STORE", str(store))
    return store


def traffic(store):
    return tomllib.loads((store / "feed" / "traffic.toml").read_text())


def test_activate_names_a_version_and_remembers_the_former_one(store, capsys):
    assert main(["activate", "feed", "1"]) == ExitCode.OK
    assert traffic(store) == {"active": 1, "keep": 1, "previous": 3}
    assert main(["activate", "2", "--keep", "2"]) == ExitCode.OK  # the only model
    assert traffic(store) == {"active": 2, "keep": 2, "previous": 1}
    assert main(["activate", "feed", "latest"]) == ExitCode.OK
    assert traffic(store) == {"active": "latest", "keep": 2}
    assert "traffic.toml: active = latest, keep = 2" in capsys.readouterr().out
    assert [path.name for path in (store / "feed").iterdir() if path.name.startswith(".")] == []


def test_rollback_returns_to_the_version_before(store):
    assert main(["rollback", "feed"]) == ExitCode.OK
    assert traffic(store) == {"active": 2, "keep": 1}
    assert main(["rollback"]) == ExitCode.OK
    assert traffic(store) == {"active": 1, "keep": 1}
    assert main(["activate", "feed", "3"]) == ExitCode.OK
    assert main(["rollback", "feed"]) == ExitCode.OK  # to the version that 3 replaced
    assert traffic(store)["active"] == 1
    assert main(["rollback", "feed", "--to", "2"]) == ExitCode.OK
    assert traffic(store)["active"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["activate", "feed", "7"], "feed has no version 7 (versions: 1, 2, 3)"),
        (["activate", "feed", "x"], 'must be a version number, such as 7, or "latest"'),
        (["activate", "fed", "1"], 'has no model "fed"; did you mean "feed"? (models: feed)'),
        (["activate"], "missing VERSION"),
        (["activate", "feed", "1", "--keep", "99"], "--keep must be a number between 0 and 16"),
        (["activate", "feed", "1", "--wait", "host"], "must begin with http:// or https://"),
        (["rollback", "feed", "--to", "9"], "feed has no version 9"),
        (["canary", "feed"], "missing VERSION; see gatehouse canary --help"),
        (["canary", "feed", "3", "--share", "2"], "canary.share: must be at most 1"),
        (["canary", "feed", "3", "--for", "soon"], "canary.for: must be a number and s, m, h or d"),
        (["shadow", "feed", "3", "--share", "0"], "shadow.share: must be greater than 0"),
        (["shadow"], "missing VERSION"),
        (
            ["canary", "feed", "3", "--key", "agee"],
            'feature "agee"; did you mean "age"? (known: age',
        ),
        (["canary", "feed", "9" * 5000], ": must be a version number"),
        (["canary", "feed", "9"], "feed has no version 9 (versions: 1, 2, 3)"),
        (["prune", "feed", "--keep", "0"], "--keep must be 1 or more"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(store, capsys, arguments, message):
    assert main(arguments) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (store / "feed" / "traffic.toml").exists()


@pytest.mark.parametrize(
    ("command", "active"),
    [(["rollback"], 2), (["rollback", "--to", "1"], 1), (["activate", "3"], 3)],
)
def test_rollback_and_activate_remove_a_canary(store, command, active):
    assert main(["activate", "2"]) == ExitCode.OK
    assert main(["canary", "feed", "3"]) == ExitCode.OK
    assert main([command[0], "feed", *command[1:]]) == ExitCode.OK
    assert traffic(store)["active"] == active
    assert "canary" not in traffic(store)


def test_rollback_of_a_canary_beside_the_latest_version_returns_to_the_one_before(store):
    document = 'active = "latest"\n[canary]\nversion = 3\nshare = 0.5\nfor = "1h"\n'
    (store / "feed" / "traffic.toml").write_text(document)
    assert main(["rollback", "feed"]) == ExitCode.OK
    assert traffic(store) == {"active": 2, "keep": 1}


def test_commands_keep_what_they_do_not_change(store):
    gates = {"requests": 50, "error_ratio": 0.0, "kendall_tau": 0.8}
    text = "active = 2\naccept_incompatible = true\n[replay]\nrequests = 50\nkendall_tau = 0.8\n"
    (store / "feed" / "traffic.toml").write_text(text)
    for command in (["activate", "1"], ["canary", "3"], ["canary", "--end"], ["rollback"]):
        assert main([command[0], "feed", *command[1:]]) == ExitCode.OK
        assert traffic(store)["accept_incompatible"] is True
        assert traffic(store)["replay"] == gates


def test_a_rollback_below_the_first_version_is_refused(store, capsys):
    main(["activate", "feed", "1"])
    (store / "feed" / "traffic.toml").write_text("active = 1")
    assert main(["rollback", "feed"]) == ExitCode.USAGE
    assert "feed has no version below 1" in capsys.readouterr().err


def test_a_wrong_traffic_file_is_not_overwritten(store, capsys):
    (store / "feed" / "traffic.toml").write_text("aktive = 1")
    assert main(["rollback", "feed"]) == ExitCode.USAGE
    assert 'unknown key "aktive"; did you mean "active"?' in capsys.readouterr().err
    assert traffic(store) == {"aktive": 1}


def test_canary_is_written_with_its_gates_and_ended(store, capsys):
    command = ["canary", "feed", "3", "--share", "0.1", "--for", "2h", "--p99-ratio", "1.2"]
    assert main(command) == ExitCode.OK
    assert traffic(store) == {
        "active": 2,  # the newest other version
        "keep": 1,
        "canary": {"version": 3, "share": 0.1, "for": "2h", "gates": {"p99_ratio": 1.2}},
    }
    main(["versions"])
    assert " canary " in capsys.readouterr().out
    assert main(["prune", "--keep", "1"]) == ExitCode.OK
    assert Store(store).versions("feed") == [2, 3]
    assert main(["canary", "feed", "--end"]) == ExitCode.OK
    assert traffic(store) == {"active": 2, "keep": 1}


def test_shadow_is_written_and_ended(store, capsys):
    assert main(["shadow", "feed", "3", "--share", "0.5"]) == ExitCode.OK
    assert traffic(store) == {"active": 2, "keep": 1, "shadow": {"version": 3, "share": 0.5}}
    main(["versions"])
    assert " shadow " in capsys.readouterr().out
    assert main(["shadow", "--end"]) == ExitCode.OK
    assert traffic(store) == {"active": 2, "keep": 1}


def test_versions_lists_roles_sizes_and_problems(store, capsys):
    main(["activate", "feed", "2"])
    (store / "feed" / "1" / "model.json").write_text("{}")
    capsys.readouterr()
    assert main(["versions", "feed"]) == ExitCode.OK
    first, second, third = [line for line in capsys.readouterr().out.splitlines() if "feed" in line]
    assert "model.json: " in first
    assert " active " in second
    assert " MB " in second
    assert " previous " in third


def test_publish_copies_a_folder_as_the_next_version(store, tmp_path, capsys):
    folder = tmp_path / "built"
    shutil.copytree(store / "feed" / "1", folder)
    (folder / "notes.txt").write_text("not listed in the manifest")
    assert main(["publish", str(folder)]) == ExitCode.OK
    assert "published feed/4" in capsys.readouterr().out
    assert main(["check", str(store)]) == ExitCode.OK
    assert not (store / "feed" / "4" / "notes.txt").exists()
    created = [
        json.loads((p / "model.json").read_text())["created"]
        for p in (folder, store / "feed" / "4")
    ]
    assert created[0] == created[1]


def test_publish_refuses_a_damaged_folder_and_leaves_nothing(store, tmp_path, capsys):
    folder = tmp_path / "built"
    shutil.copytree(store / "feed" / "1", folder)
    corrupt(folder / "model.ts")
    assert main(["publish", str(folder)]) == ExitCode.USAGE
    assert "model.ts: its SHA-256 differs" in capsys.readouterr().err
    assert main(["publish", str(tmp_path)]) == ExitCode.USAGE
    assert "model.json: is missing" in capsys.readouterr().err
    assert Store(store).versions("feed") == [1, 2, 3]
    assert [path.name for path in (store / "feed").iterdir() if path.name.startswith(".")] == []


def test_publishers_at_once_get_different_versions(store, tmp_path):
    from app.artifacts.publish import publish_copy

    folder = tmp_path / "built"
    shutil.copytree(store / "feed" / "1", folder)
    artifacts = []
    threads = [
        threading.Thread(target=lambda: artifacts.append(publish_copy(Store(store), folder)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(artifact.version for artifact in artifacts) == [4, 5, 6, 7]


def test_a_publisher_that_is_killed_leaves_no_version(store, tmp_path):
    folder = tmp_path / "built"
    shutil.copytree(store / "feed" / "1", folder)
    program = (
        "import os, signal\n"
        "from app.artifacts import publish\n"
        "publish.load = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from app.cli.main import main\n"
        f"main(['publish', {str(folder)!r}])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**patient_environment(), "GATEHOUSE_STORE": str(store)},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert any(path.name.startswith(".publishing-") for path in (store / "feed").iterdir())
    assert Store(store).scan().ignored == {}
    assert Store(store).versions("feed") == [1, 2, 3]
    assert main(["publish", str(folder)]) == ExitCode.OK
    assert Store(store).versions("feed") == [1, 2, 3, 4]


def test_prune_keeps_the_newest_and_those_that_traffic_names(store, capsys):
    for _ in range(3):
        published(store)
    main(["activate", "feed", "2"])  # version 6 was active
    assert main(["prune", "feed", "--keep", "2", "--dry-run"]) == ExitCode.OK
    assert "would remove feed/1" in capsys.readouterr().out
    assert Store(store).versions("feed") == [1, 2, 3, 4, 5, 6]
    assert main(["prune", "feed", "--keep", "2"]) == ExitCode.OK
    assert Store(store).versions("feed") == [2, 5, 6]
    assert main(["rollback", "feed"]) == ExitCode.OK
    assert traffic(store)["active"] == 6


def test_prune_removes_what_a_killed_prune_has_left(store, tmp_path, monkeypatch):
    killed = tmp_path / "killed"
    rename = Path.rename

    def copying(path, target):
        renamed = rename(path, target)
        shutil.copytree(store, killed)  # what would stay if the process were killed now
        return renamed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", copying)
        assert main(["prune", "--keep", "2"]) == ExitCode.OK
    folder = killed / "feed"
    (left_over,) = (path for path in folder.iterdir() if path.name.startswith("."))
    assert list(left_over.rglob("model.ts"))
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (left_over, *left_over.rglob("*")):
        os.utime(path, (two_days_ago, two_days_ago))
    assert main(["prune", "--keep", "1", "--store", str(killed)]) == ExitCode.OK
    assert [path.name for path in folder.iterdir()] == ["3"]


@pytest.mark.parametrize("command", [["prune"], ["items", "prune"]])
def test_prune_removes_what_earlier_builds_left_whatever_it_keeps(store, command):
    two_days_ago = time.time() - 2 * 24 * 3600
    old, recent = (store / "feed" / f".pruned-{name}" for name in ("old", "recent"))
    for left_over in (old, recent):
        shutil.copytree(store / "feed" / "1", left_over / "1")
    for path in (old, *old.rglob("*")):
        os.utime(path, (two_days_ago, two_days_ago))
    assert Store(store).scan().ignored == {}
    assert Store(store).versions("feed") == [1, 2, 3]
    assert main([*command, "--keep", "3", "--dry-run"]) == ExitCode.OK
    assert old.exists()
    assert main([*command, "--keep", "3"]) == ExitCode.OK
    assert [old.exists(), recent.exists()] == [False, True]
    assert Store(store).versions("feed") == [1, 2, 3]


def test_prune_keeps_the_newest_version_that_can_be_loaded(store):
    for version in (2, 3):
        corrupt(store / "feed" / str(version) / "model.ts")
    assert main(["prune", "--keep", "1"]) == ExitCode.OK
    assert Store(store).versions("feed") == [1, 3]


def test_prune_keeps_the_version_that_serves_while_a_newer_one_is_refused(store):
    published(store, inputs=(*INPUTS, DenseInput(name="mood", side="user")))
    assert main(["prune", "--keep", "1"]) == ExitCode.OK
    assert Store(store).versions("feed") == [3, 4]
    (store / "feed" / "traffic.toml").write_text("accept_incompatible = 4")
    assert main(["prune", "--keep", "1"]) == ExitCode.OK
    assert Store(store).versions("feed") == [4]


def test_prune_does_not_leave_a_refused_version_as_the_oldest(store):
    published(store, inputs=(*INPUTS, DenseInput(name="mood", side="user")))
    for _ in range(2):
        published(store)
    assert main(["prune", "--keep", "3"]) == ExitCode.OK
    assert Store(store).versions("feed") == [3, 5, 6]


def test_a_running_server_follows_a_rollback_and_keeps_to_it_after_a_restart(
    tmp_path, tiny, capsys
):
    store = tmp_path / "store"
    shutil.copytree(tiny.folder, store / "tiny" / "1")
    add_version(store, "tiny", 2)
    flags = ("--store-poll-s", "60", "--lanes", "1")
    with running_server(store, tmp_path / "log", *flags) as server:
        nudge = ["--store", str(store), "--wait", server.url, "--hup", str(server.process.pid)]
        assert main(["activate", "tiny", "1", *nudge]) == ExitCode.OK
        assert main(["activate", "tiny", "2", *nudge]) == ExitCode.OK
        began = time.monotonic()
        assert main(["rollback", "tiny", *nudge]) == ExitCode.OK
        assert time.monotonic() - began < 30  # the poll is not waited for
        assert "version 1 of tiny is active" in capsys.readouterr().out
        card = httpx.get(f"{server.url}/v1/models/tiny").json()
        assert [(entry["version"], entry["role"]) for entry in card["versions"]] == [
            (2, "previous"),
            (1, "active"),
        ]
        capsys.readouterr()
        command = ["versions", "tiny", "--store", str(store), "--url", server.url]
        assert main(command) == ExitCode.OK
        assert " previous " in capsys.readouterr().out
        for role in ("canary", "shadow"):  # a server that has not applied it yet is waited for
            assert main([role, "tiny", "2", *nudge]) == ExitCode.OK
            card = httpx.get(f"{server.url}/v1/models/tiny").json()
            assert card["traffic"][role]["version"] == 2
            assert main([role, "tiny", "--end", *nudge]) == ExitCode.OK
            card = httpx.get(f"{server.url}/v1/models/tiny").json()
            assert card["traffic"][role] is None
            assert {entry["role"] for entry in card["versions"]} == {"active", "previous"}
        late = ["--wait", server.url, "--timeout", "0.3", "--store", str(store)]
        assert main(["activate", "tiny", "latest", *late]) == ExitCode.FAILED
        message = "has not applied the change within 0.3 s: version 1 is active"
        assert message in capsys.readouterr().err
        assert main(["activate", "tiny", "1", "--store", str(store)]) == ExitCode.OK
        os.kill(server.process.pid, signal.SIGKILL)
    with running_server(store, tmp_path / "log", *flags) as server:
        assert httpx.get(f"{server.url}/v1/models/tiny").json()["version"] == 1
