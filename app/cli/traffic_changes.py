"""What the commands share that change which versions of a model serve."""

import argparse
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote

from app.artifacts.store import Artifact, Store
from app.artifacts.tables.listing import ListedTable
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain
from app.cli.settings_options import add_store, existing_store, store_of
from app.errors import ConfigurationInvalid, ExitCode, did_you_mean
from app.lifecycle.traffic import TRAFFIC, Traffic

_ASK_EVERY_S = 0.02
_ASK_ABOUT_TABLES_EVERY_S = 0.2  # the list of all models is some work for a server
_ASK_TIMEOUT_S = 5.0


def add_model(parser: Parser) -> None:
    """Add the argument MODEL, `--store`, and the options of waiting for a server."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="name of the model (default: the only one)"
    )
    add_store(parser)


def add_waiting(parser: Parser) -> None:
    """Add `--wait`, `--timeout` and `--hup`."""
    parser.add_argument(
        "--wait",
        type=server_url,
        metavar="URL",
        help="wait until the server at URL has applied the change",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for the server (default: 60)",
    )
    parser.add_argument(
        "--hup",
        type=int,
        metavar="PID",
        help="send SIGHUP to the server's process, so that it polls the store now",
    )


def server_url(text: str) -> str:
    """Convert the URL of a server."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("must begin with http:// or https://")
    return text.rstrip("/")


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return number


def version_number(text: str) -> int:
    """Convert a version."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 16 and int(text) >= 1):
        raise argparse.ArgumentTypeError("must be a version number, such as 7")
    return int(text)


def require_version(options: argparse.Namespace, command: str) -> None:
    """Take the only argument, as in `activate 7`, as the version of the only model.

    Raises:
        WrongUsage: there is no argument.
    """
    is_model = options.model is not None and not options.model[:1].isdecimal()
    if options.version is None and (not is_model or options.model == "latest"):
        options.model, options.version = None, options.model
    if options.version is None:
        raise WrongUsage(f"missing VERSION; see gatehouse {command} --help")


def chosen(options: argparse.Namespace) -> list[Artifact]:
    """Return the complete versions of the model that the options choose, ascending.

    Raises:
        WrongUsage: there is no such store or model, or there are several and none is named.
    """
    store = Store(existing_store(store_of(options)))
    artifacts = list(store.artifacts())
    names = sorted({each.model for each in artifacts})
    known = f"(models: {', '.join(names) or 'none'})"
    name: str | None = options.model
    if name is None:
        if len(names) != 1:
            raise WrongUsage(f'name a model: store "{store.folder}" has {len(names)} {known}')
        (name,) = names
    elif name not in names:
        hint = did_you_mean(name, names)
        raise WrongUsage(f'store "{store.folder}" has no model "{name}"{hint} {known}')
    return [each for each in artifacts if each.model == name]


def traffic_of(versions: Sequence[Artifact]) -> Traffic:
    """Return what the traffic file of a model says.

    Raises:
        WrongUsage: it cannot be used.
    """
    folder = versions[0].folder.parent
    try:
        return Traffic.read(folder)
    except ConfigurationInvalid as error:
        raise WrongUsage(f"{folder / TRAFFIC}: {error}") from None


def active_of(versions: Sequence[Artifact], traffic: Traffic) -> int:
    """Return the version that should be active: the newest one for "latest"."""
    return versions[-1].version if traffic.active == "latest" else traffic.active


def active_besides(versions: Sequence[Artifact], traffic: Traffic, version: int) -> int:
    """Return the version that should be active while `version` is on trial.

    Raises:
        WrongUsage: there is none.
    """
    if traffic.active == "latest":
        others = [each.version for each in versions if each.version != version]
        if not others:
            raise WrongUsage(f"{versions[0].model} has no other version to compare it with")
        return others[-1]
    if traffic.active == version:
        raise WrongUsage(f"version {version} is the active one")
    return traffic.active


def number_of(text: str) -> int:
    """Return the number of a VERSION.

    Raises:
        WrongUsage: it is not a number.
    """
    try:
        return version_number(text)
    except argparse.ArgumentTypeError as error:
        raise WrongUsage(f"VERSION {text}: {error}") from None


def check_version(versions: Sequence[Artifact], version: int) -> None:
    """Refuse a version that the store does not have.

    Raises:
        WrongUsage: naming those that it has.
    """
    numbers = [each.version for each in versions]
    if version not in numbers:
        known = ", ".join(map(str, numbers[-20:]))
        raise WrongUsage(f"{versions[0].model} has no version {version} (versions: {known})")


def apply(versions: Sequence[Artifact], traffic: Traffic, options: argparse.Namespace) -> int:
    """Write a traffic file, nudge and wait as the options say; return the exit code."""
    began = time.monotonic()
    model, folder = versions[0].model, versions[0].folder.parent
    traffic.write(folder)
    Output().print_line(f"{folder / TRAFFIC}: active = {traffic.active}, keep = {traffic.keep}")
    return nudge_and_wait(model, traffic.active, options, began)


def put_on_trial(
    options: argparse.Namespace,
    role: Literal["canary", "shadow"],
    section: Callable[[Sequence[Artifact], int], Mapping[str, object]],
) -> int:
    """Give a version a role beside the active one, or with `--end` take it away.

    Args:
        options: of the command.
        role: also the section of the traffic file.
        section: returns what the section says besides the version, from the model's versions and
            the version on trial.

    Returns:
        The exit code.

    Raises:
        WrongUsage: an argument or a file is wrong.
    """
    began = time.monotonic()
    if not options.end:
        require_version(options, role)
    versions = chosen(options)
    traffic = traffic_of(versions)
    version = None
    if options.end:
        traffic = traffic.model_copy(update={role: None})
    else:
        version = number_of(options.version)
        check_version(versions, version)
        document = traffic.model_dump(by_alias=True, exclude_none=True)
        document["active"] = active_besides(versions, traffic, version)
        document[role] = {"version": version, **section(versions, version)}
        try:
            traffic = Traffic.of(document)
        except ConfigurationInvalid as error:
            raise WrongUsage(str(error)) from None
    folder = versions[0].folder.parent
    traffic.write(folder)
    Output().print_line(f"{folder / TRAFFIC}: active = {traffic.active}, {role} = {version}")
    trial: dict[str, int | None] = {role: version}
    return nudge_and_wait(versions[0].model, traffic.active, options, began, trial=trial)


def nudge_and_wait(
    model: str,
    active: int | str,
    options: argparse.Namespace,
    began: float,
    *,
    version: int | None = None,
    trial: Mapping[str, int | None] = MappingProxyType({}),
) -> int:
    """Send SIGHUP and wait until a server has applied a change, if asked to; return the exit code.

    Args:
        model: name of the model.
        active: what its traffic file says.
        options: of the command.
        began: when the change was made (`time.monotonic`, s).
        version: the version that must be active; any, if it is None and `active` is "latest".
        trial: the version that must have the role `canary` or `shadow`; None if none may have it.
    """
    if version is None and active != "latest":
        version = int(active)

    def look(url: str) -> _Sight:
        card = ask(f"{url}/v1/models/{quote(model)}")
        traffic = card["traffic"]
        is_applied = traffic["active"] == active and all(
            (traffic[role] or {"version": None})["version"] == wanted
            for role, wanted in trial.items()
        )
        if is_applied and version in (None, card["version"]):
            return _Sight(f"version {card['version']} of {model} is active", has_applied=True)
        return _Sight("; ".join([f"version {card['version']} is active", *traffic["problems"]]))

    return _wait(options, began, look, _ASK_EVERY_S)


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
    places = [f"{kind}/{listed.version}"]
    places += [f"{places[0]}.{number}" for number in listed.deltas]

    def look(url: str) -> _Sight:
        found = ask(f"{url}/v1/models")
        tables = [
            each["version"]
            for card in found["models"]
            for each in card["tables"]
            if card["name"] == model and each["table"] == kind
        ]
        if tables:
            version, _, delta = tables[0].partition(".")
            if (int(version), int(delta or 0)) >= wanted:
                return _Sight(f"{model} serves from {kind}/{tables[0]}", has_applied=True)
        reasons = [
            f"{each['table']}: {each['reason']}"
            for each in found["refused_tables"]
            if each["model"] == model and each["table"] in places
        ]
        if reasons:
            return _Sight(f"refuses {'; '.join(reasons)}", has_refused=True)
        if tables:
            return _Sight(f"{model} serves from {kind}/{tables[0]}")
        if any(card["name"] == model for card in found["models"]):
            return _Sight(f"{model} has no table of {kind}")
        return _Sight(f'model "{model}" is not active')

    return _wait(options, began, look, _ASK_ABOUT_TABLES_EVERY_S)


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a server does now: it has applied a change, has refused it, or neither yet."""

    state: str
    has_applied: bool = False
    has_refused: bool = False


def _wait(
    options: argparse.Namespace, began: float, look: Callable[[str], _Sight], every_s: float
) -> int:
    """Send SIGHUP and wait until a server has applied a change, if asked to; return the exit code.

    Args:
        options: of the command.
        began: when the change was made (`time.monotonic`, s).
        look: asks the server at a URL; may raise OSError.
        every_s: how often.
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
            sight = look(options.wait)
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
        time.sleep(every_s)
    complain(f"{options.wait} has not applied the change within {options.timeout:g} s: {state}")
    return ExitCode.FAILED


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
        raise OSError(f"status {error.code}") from None
    except ValueError as error:
        raise OSError(f"not JSON: {error}") from None


def size_of(folder: Path) -> int:
    """Return how many bytes the files in a folder have."""
    return sum(each.stat().st_size for each in folder.iterdir() if each.is_file())
