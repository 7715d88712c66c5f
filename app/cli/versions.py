"""`gatehouse versions`: the versions in a store, and what each does in traffic."""

import argparse
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from app.artifacts.artifact_files import read_manifest
from app.artifacts.store import Artifact, Store, by_model
from app.artifacts.tables.listing import missing_table
from app.cli.option_values import server_url
from app.cli.output import Output
from app.cli.parser import Parser, complain
from app.cli.running_server import ask
from app.cli.settings_options import existing_store, store_of
from app.cli.stored_versions import add_model, versions_of_model
from app.cli.traffic_changes import active_of, traffic_of
from app.errors import ArtifactInvalid, ExitCode

_DESCRIPTION = """\
Print a table of the versions in a store: role, time of creation, size, evaluation and problems. The
role is the one that traffic.toml asks for; with --url, the one that a running server gives it."""
_EPILOG = """\
exit codes: 0 success; 1 no response from the server, or no versions; 2 wrong usage or files

examples:
  gatehouse versions
  gatehouse versions feed --url http://127.0.0.1:8000
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_model(parser)
    parser.add_argument(
        "--url", type=server_url, metavar="URL", help="ask this server for the roles"
    )


def run(options: argparse.Namespace) -> int:
    """Print the table; return the exit code."""
    if options.model is None:
        artifacts = list(Store(existing_store(store_of(options))).artifacts())
    else:
        artifacts = versions_of_model(options)
    if not artifacts:
        complain(f'store "{store_of(options)}" has no artifacts')
        return ExitCode.FAILED
    live = None
    if options.url is not None:
        try:
            live = _live(options.url)
        except OSError as error:
            complain(f"{options.url}: {error}")
            return ExitCode.FAILED
    table = Table("model", "version", "role", "created", "size", "evaluation", "problem")
    for versions in by_model(artifacts):
        roles = _wanted(versions) if live is None else live
        for artifact in versions:
            role, problem = roles.get(str(artifact), ("", ""))
            table.add_row(*_row(artifact, role, problem, is_live=live is not None))
    Output().print(table)
    return ExitCode.OK


def _row(artifact: Artifact, role: str, problem: str, *, is_live: bool) -> list[str]:
    size = f"{_size_of(artifact.folder) / 1e6:.1f} MB"
    try:
        manifest = read_manifest(artifact)
    except (ArtifactInvalid, OSError) as error:
        return [artifact.model, str(artifact.version), role, "", size, "", escape(str(error))]
    evaluation = "; ".join(
        f"{task} {metric} {value:.4g}"
        for task, metrics in manifest.evaluation.items()
        for metric, value in list(metrics.items())[:1]
        if value is not None
    )
    if not is_live:
        with suppress(OSError):
            problem = missing_table(artifact.folder.parent, manifest)
    created = f"{manifest.created:%Y-%m-%d %H:%M}"
    numbers = [artifact.model, str(artifact.version), role, created, size]
    return [*numbers, escape(evaluation), escape(problem)]


def _wanted(versions: list[Artifact]) -> Mapping[str, tuple[str, str]]:
    """Return the role that the traffic file asks for, by version."""
    traffic = traffic_of(versions)
    active = active_of(versions, traffic)
    name = versions[0].model
    roles = {f"{name}/{active}": ("active", "")}
    if traffic.canary is not None:
        roles.setdefault(f"{name}/{traffic.canary.version}", ("canary", ""))
    if traffic.shadow is not None:
        roles.setdefault(f"{name}/{traffic.shadow.version}", ("shadow", ""))
    if traffic.active != "latest" and traffic.previous is not None:
        roles.setdefault(f"{name}/{traffic.previous}", ("previous", ""))
    return roles


def _live(server: str) -> Mapping[str, tuple[str, str]]:
    """Return the role that a server gives each version, and what is wrong with it.

    Raises:
        OSError: it does not answer.
    """
    listed = ask(f"{server}/v1/models")
    roles = {
        f"{card['name']}/{version['version']}": (version["role"], version["problem"] or "")
        for card in listed["models"]
        for version in card["versions"]
    }
    for refused in listed["refused"]:
        roles[f"{refused['model']}/{refused['version']}"] = ("refused", refused["reason"])
    return roles


def _size_of(folder: Path) -> int:
    """Return how many bytes the files in a folder have."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
