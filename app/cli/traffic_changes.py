"""What the commands share that change which versions of a model serve."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from app.artifacts.store import Artifact
from app.cli.output import Output
from app.cli.parser import WrongUsage
from app.cli.running_server import nudge_and_wait
from app.cli.stored_versions import check_version, number_of, versions_of_model
from app.errors import ConfigurationInvalid
from app.lifecycle.traffic import TRAFFIC, Traffic


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
        others = [artifact.version for artifact in versions if artifact.version != version]
        if not others:
            raise WrongUsage(f"{versions[0].model} has no other version to compare it with")
        return others[-1]
    if traffic.active == version:
        raise WrongUsage(f"version {version} is the active one")
    return traffic.active


def apply(versions: Sequence[Artifact], traffic: Traffic, options: argparse.Namespace) -> int:
    """Write a traffic file, nudge and wait as the options say; return the exit code."""
    began = time.monotonic()
    model, folder = versions[0].model, versions[0].folder.parent
    traffic.write(folder)
    Output().print_line(f"{folder / TRAFFIC}: active = {traffic.active}, keep = {traffic.keep}")
    tried = [role.version for role in (traffic.canary, traffic.shadow) if role is not None]
    candidates = [artifact.version for artifact in versions if artifact.version not in tried]
    trial = {"canary": None} if traffic.canary is None else {}
    return nudge_and_wait(model, traffic.active, options, began, candidates=candidates, trial=trial)


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
    versions = versions_of_model(options)
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
