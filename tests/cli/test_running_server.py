"""`--wait`: a change counts as applied only when every process of the server has applied it."""

import json
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from app.cli.main import main
from app.errors import ExitCode
from tests.support.artifacts import add_version
from tests.support.builders import published
from tests.support.fixed_responses import responding
from tests.support.server import Server, running_server
from tests.support.waiting import wait_until


def showing(documents: Mapping[str, Any]) -> AbstractContextManager[str]:
    """A server with these JSON documents by path, and 404 for other paths."""

    def respond(path: str) -> tuple[int, bytes]:
        return 200 if path in documents else 404, json.dumps(documents.get(path)).encode()

    return responding(respond)


def serving(version: int, process: int = 0) -> dict[str, Any]:
    """What a process shows in which a version of `feed` is active, as traffic.toml says."""
    traffic: dict[str, Any] = {"active": version, "canary": None, "shadow": None, "problems": []}
    card = {"name": "feed", "version": version, "traffic": traffic, "tables": []}
    return {
        "process": process,
        "responds": True,
        "models": [card],
        "refused": [],
        "refused_tables": [],
    }


def silent(process: int) -> dict[str, Any]:
    return {
        "process": process,
        "responds": False,
        "models": [],
        "refused": [],
        "refused_tables": [],
    }


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with the versions 1 and 2 of `feed`; it is the default one."""
    for _ in range(2):
        published(tmp_path / "store")
    monkeypatch.setenv("GATEHOUSE_STORE", str(tmp_path / "store"))


ACTIVATE_1 = ("activate", "feed", "1", "--timeout", "0.5", "--wait")


@pytest.mark.parametrize(
    ("other", "state"),
    [
        (serving(2, 1), "version 2 is active"),
        (silent(1), "does not respond"),
        (serving(1, 1) | {"models": []}, 'model "feed" is not active'),
    ],
)
@pytest.mark.usefixtures("store")
def test_one_process_that_has_not_applied_a_change_is_waited_for(capsys, other, state):
    processes = {"process": 0, "processes": [serving(1), other]}
    with showing({"/v1/processes": processes, "/v1/models": serving(1)}) as url:
        assert main([*ACTIVATE_1, url]) == ExitCode.FAILED
    assert capsys.readouterr().err == (
        f"gatehouse: {url} has not applied the change within 0.5 s: "
        f"process 0: version 1 of feed is active; process 1: {state}\n"
    )


@pytest.mark.usefixtures("store")
def test_all_processes_have_applied_a_change(capsys):
    with showing({"/v1/processes": {"processes": [serving(1), serving(1, 1)]}}) as url:
        assert main([*ACTIVATE_1, url]) == ExitCode.OK
    assert f"{url}: version 1 of feed is active in all 2 processes (" in capsys.readouterr().out


@pytest.mark.usefixtures("store")
def test_a_server_of_an_earlier_release_counts_as_one_process(capsys):
    with showing({"/v1/models": serving(1)}) as url:
        assert main([*ACTIVATE_1, url]) == ExitCode.OK
    assert f"{url}: version 1 of feed is active (" in capsys.readouterr().out


@pytest.mark.usefixtures("store")
def test_activate_latest_waits_for_the_newest_version_that_is_not_refused(capsys):
    process = serving(1)
    process["models"][0]["traffic"]["active"] = "latest"
    latest = ("activate", "feed", "latest", "--timeout", "0.5", "--wait")
    with showing({"/v1/processes": {"processes": [process]}}) as url:
        assert main([*latest, url]) == ExitCode.FAILED
        assert "has not applied the change within 0.5 s: version 1 is" in capsys.readouterr().err
        process["refused"] = [{"model": "feed", "version": 2, "reason": "damaged"}]
        assert main([*latest, url]) == ExitCode.OK


@pytest.mark.usefixtures("store")
def test_activate_waits_for_the_end_of_a_canary(capsys):
    process = serving(1)
    process["models"][0]["traffic"]["canary"] = {"version": 2}
    with showing({"/v1/processes": {"processes": [process]}}) as url:
        assert main([*ACTIVATE_1, url]) == ExitCode.FAILED
        assert "has not applied the change within 0.5 s: version 1 is" in capsys.readouterr().err
        process["models"][0]["traffic"]["canary"] = None
        assert main([*ACTIVATE_1, url]) == ExitCode.OK


def processes(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{url}/v1/processes").json()["processes"]
    return found


def versions(url: str) -> list[int]:
    """The version of the only model that each process has active."""
    return [card["version"] for process in processes(url) for card in process["models"]]


def wait_until_all_serve(server: Server, count: int) -> None:
    wait_until(lambda: len(versions(server.url)) == count, "all processes serve", patience_s=60)


@pytest.mark.slow
def test_wait_ends_when_both_processes_have_applied_a_rollback(tmp_path, tiny, capsys):
    store = tmp_path / "store"
    shutil.copytree(tiny.folder, store / "tiny" / "1")
    add_version(store, "tiny", 2)
    flags = ("--processes", "2", "--metrics-port", "0", "--store-poll-s", "60", "--lanes", "1")
    with running_server(store, tmp_path / "log", *flags) as server:
        wait_until_all_serve(server, 2)
        states = processes(server.url)
        assert [(state["process"], state["responds"]) for state in states] == [(0, True), (1, True)]
        wait = ["--store", str(store), "--wait", server.url]
        # One process polls now, the other one in a minute.
        one_polls = [*wait, "--hup", str(server.children()[0]), "--timeout", "3"]
        assert main(["rollback", "tiny", *one_polls]) == ExitCode.FAILED
        assert sorted(versions(server.url)) == [1, 2]
        out, err = capsys.readouterr()
        assert server.url not in out
        assert ": version 1 of tiny is active" in err
        assert ": version 2 is active" in err

        all_poll = [*wait, "--hup", str(server.process.pid)]
        assert main(["activate", "tiny", "1", *all_poll]) == ExitCode.OK
        assert "version 1 of tiny is active in all 2 processes (" in capsys.readouterr().out
        assert versions(server.url) == [1, 1]

        os.kill(server.children()[0], signal.SIGKILL)  # the one that is started loads the newest
        assert main(["activate", "tiny", "2", *all_poll]) == ExitCode.OK
        assert "version 2 of tiny is active in all 2 processes (" in capsys.readouterr().out
        assert versions(server.url) == [2, 2]
