"""Ask a running server, and wait until all of its processes have applied a change of the store."""

import argparse
import http.client
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from app.artifacts.tables.listing import ListedTable
from app.cli.option_values import process_id, seconds, server_url
from app.cli.output import Output
from app.cli.parser import Parser, complain
from app.errors import ExitCode

_ASK_EVERY_S = 0.1
_ASK_TIMEOUT_S = 5.0


def add_waiting(parser: Parser) -> None:
    """Add `--wait`, `--timeout` and `--hup`."""
    parser.add_argument(
        "--wait",
        type=server_url,
        metavar="URL",
        help="wait until every process of the server at URL has applied the change",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for the server (default: 60)",
    )
    parser.add_argument(
        "--hup",
        type=process_id,
        metavar="PID",
        help="send SIGHUP to the server's process, so that it polls the store now; with several "
        "processes, to the parent, which passes it on to all",
    )


def nudge_and_wait(
    model: str,
    active: int | str,
    options: argparse.Namespace,
    began: float,
    *,
    version: int | None = None,
    candidates: Sequence[int] = (),
    trial: Mapping[str, int | None] = MappingProxyType({}),
) -> int:
    """Send SIGHUP and wait until a server has applied a change, if asked to; return the exit code.

    Args:
        model: name of the model.
        active: what its traffic file says.
        options: of the command.
        began: when the change was made (`time.monotonic`, s).
        version: the version that must be active; if it is None and `active` is "latest", the newest
            of `candidates` that the server does not refuse.
        candidates: the versions that "latest" may mean.
        trial: the version that must have the role `canary` or `shadow`; None if none may have it.
    """
    if version is None and active != "latest":
        version = int(active)

    def look(process: Any) -> _Sight:  # noqa: ANN401  (JSON)
        card = next((card for card in process["models"] if card["name"] == model), None)
        if card is None:
            return _Sight(f'model "{model}" is not active')
        traffic = card["traffic"]
        is_applied = traffic["active"] == active and all(
            (traffic[role] or {"version": None})["version"] == wanted
            for role, wanted in trial.items()
        )
        refused = {entry["version"] for entry in process["refused"] if entry["model"] == model}
        newest = max((number for number in candidates if number not in refused), default=0)
        is_wanted = card["version"] >= newest if version is None else card["version"] == version
        if is_applied and is_wanted:
            return _Sight(f"version {card['version']} of {model} is active", has_applied=True)
        return _Sight("; ".join([f"version {card['version']} is active", *traffic["problems"]]))

    return _wait(options, began, look)


def nudge_and_wait_for_table(
    model: str, listed: ListedTable, options: argparse.Namespace, began: float
) -> int:
    """Send SIGHUP and wait until a server serves from a table, if asked to; return the exit code.

    A newer table or delta will do. If the server refuses the table or a delta, waiting ends.

    Args:
        model: its name.
        listed: the table, and the deltas that must be applied.
        options: of the command.
        began: when it was published (`time.monotonic`, s).
    """
    kind, wanted = listed.kind, (listed.version, max(listed.deltas, default=0))
    names = [listed.label]
    names += [f"{names[0]}.{number}" for number in listed.deltas]

    def look(process: Any) -> _Sight:  # noqa: ANN401  (JSON)
        tables = [
            served["version"]
            for card in process["models"]
            for served in card["tables"]
            if card["name"] == model and served["table"] == kind
        ]
        if tables:
            version, _, delta = tables[0].partition(".")
            if (int(version), int(delta or 0)) >= wanted:
                return _Sight(f"{model} serves from {kind}/{tables[0]}", has_applied=True)
        reasons = [
            f"{refused['table']}: {refused['reason']}"
            for refused in process["refused_tables"]
            if refused["model"] == model and refused["table"] in names
        ]
        if reasons:
            return _Sight(f"refuses {'; '.join(reasons)}", has_refused=True)
        if tables:
            return _Sight(f"{model} serves from {kind}/{tables[0]}")
        if any(card["name"] == model for card in process["models"]):
            return _Sight(f"{model} has no table of {kind}")
        return _Sight(f'model "{model}" is not active')

    return _wait(options, began, look)


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a process or a server does now: has applied a change, has refused it, or neither yet."""

    state: str
    has_applied: bool = False
    has_refused: bool = False


_Look = Callable[[Any], _Sight]
"""Finds out what a process does from what `/v1/processes` says about it, a JSON object."""


def _wait(options: argparse.Namespace, began: float, look: _Look) -> int:
    """Send SIGHUP and wait until a server has applied a change, if asked to; return the exit code.

    Args:
        options: of the command.
        began: when the change was made (`time.monotonic`, s).
        look: at one process of the server.
    """
    if options.hup is not None:
        try:
            os.kill(options.hup, signal.SIGHUP)
        except OSError as error:
            complain(f"--hup {options.hup}: {error.strerror}")
            return ExitCode.FAILED
    if options.wait is None:
        return ExitCode.OK
    state = "no response"
    while time.monotonic() < began + options.timeout:
        try:
            sight = _look_at_all(_processes(options.wait), look)
        except OSError as error:
            state = f"no response: {error}"
        else:
            state = sight.state
            if sight.has_applied:
                waited_s = time.monotonic() - began
                Output().print_line(f"{options.wait}: {state} ({waited_s:.2f} s)")
                return ExitCode.OK
            if sight.has_refused:
                complain(f"{options.wait} {state}")
                return ExitCode.FAILED
        time.sleep(_ASK_EVERY_S)
    complain(f"{options.wait} has not applied the change within {options.timeout:g} s: {state}")
    return ExitCode.FAILED


def _processes(url: str) -> Sequence[Any]:
    """Return what each process of the server at a URL serves, as JSON objects.

    A server of an earlier release does not know `/v1/processes`: the process that answers then
    counts as the only one.

    Raises:
        OSError: there is no response, or it is an error.
    """
    try:
        processes: Sequence[Any] = ask(f"{url}/v1/processes")["processes"]
    except ErrorStatus as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return [ask(f"{url}/v1/models")]
    return processes


def _look_at_all(processes: Sequence[Any], look: _Look) -> _Sight:
    """Return what a server does: it has applied a change once every process has.

    One that does not respond may still serve what was before, or load it from what it has read.
    """
    if len(processes) == 1:
        return look(processes[0])
    sights = {
        process["process"]: look(process) if process["responds"] else _Sight("does not respond")
        for process in processes
    }
    states = {sight.state for sight in sights.values()}
    has_applied = all(sight.has_applied for sight in sights.values())
    if has_applied and len(states) == 1:
        return _Sight(f"{states.pop()} in all {len(sights)} processes", has_applied=True)
    refusing = {number: sight for number, sight in sights.items() if sight.has_refused}
    shown = refusing or sights
    state = "; ".join(f"process {number}: {sight.state}" for number, sight in shown.items())
    return _Sight(state, has_applied=has_applied, has_refused=bool(refusing))


class ErrorStatus(OSError):
    """A response with an error status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def ask(url: str, key: str | None = None) -> Any:  # noqa: ANN401  (JSON)
    """Return the JSON document at a URL, which is asked for with an API key if one is given.

    Raises:
        OSError: there is no response, or it is an error.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_ASK_TIMEOUT_S) as response:  # noqa: S310
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        error.close()
        raise ErrorStatus(error.code) from None
    except http.client.HTTPException as error:  # the server was killed while it responded, say
        raise OSError(f"not HTTP, or cut short: {error!r}") from None
    except ValueError as error:
        raise OSError(f"not JSON: {error}") from None
