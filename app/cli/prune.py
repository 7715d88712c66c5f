"""`gatehouse prune`: remove old versions of a model from a store."""

import argparse
from functools import cache
from pathlib import Path

from app.artifacts.store import Artifact
from app.artifacts.tables.listing import missing_table
from app.artifacts.tables.table import opening_problem
from app.artifacts.unnamed_folder import remove_left_over, unnamed_folder
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage
from app.cli.signals import importing
from app.cli.stored_versions import add_model, versions_of_model
from app.cli.traffic_changes import traffic_of
from app.errors import ArtifactInvalid, ExitCode
from app.lifecycle.traffic import Traffic

_DESCRIPTION = """\
Remove the versions of a model except the newest N. The versions that traffic.toml names are never
removed. While it says "latest", neither is the newest version that a server can load, that has a
table of each kind where the store has tables, and that is not refused as incompatible; versions
refused as incompatible below that one do not count, and are removed."""
_EPILOG = """\
exit codes: 0 done; 2 wrong usage or files

examples:
  gatehouse prune feed --keep 5 --dry-run
  gatehouse prune feed --keep 5
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_model(parser)
    parser.add_argument(
        "--keep", type=int, required=True, metavar="N", help="how many versions to keep"
    )
    parser.add_argument("--dry-run", action="store_true", help="remove nothing, only say what")


def run(options: argparse.Namespace) -> int:
    """Remove versions; return the exit code."""
    if options.keep < 1:
        raise WrongUsage("--keep must be 1 or more")
    versions = versions_of_model(options)
    if not options.dry_run:
        remove_left_over(versions[0].folder.parent)
    kept = _kept(versions, options.keep)
    for artifact in versions:
        if artifact.version in kept:
            continue
        if not options.dry_run:
            _remove(artifact.folder)
        verb = "would remove" if options.dry_run else "removed"
        Output().print_line(f"{verb} {artifact}")
    return ExitCode.OK


def _kept(versions: list[Artifact], newest: int) -> set[int]:
    """Return the versions that stay: the newest ones, and what servers need, now or at a start."""
    traffic = traffic_of(versions)
    kept = set() if traffic.previous is None else {traffic.previous}
    kept |= {trial.version for trial in (traffic.canary, traffic.shadow) if trial is not None}
    if traffic.active != "latest":
        return kept | {traffic.active} | {artifact.version for artifact in versions[-newest:]}
    refused = _incompatible(versions, traffic)
    serving = _newest_good([artifact for artifact in versions if artifact.version not in refused])
    # A server that starts takes the oldest version for good: it must not be one that was refused.
    counted = [
        artifact
        for artifact in versions
        if artifact.version > serving or artifact.version not in refused
    ]
    return kept | {serving} | {artifact.version for artifact in counted[-newest:]}


def _incompatible(versions: list[Artifact], traffic: Traffic) -> set[int]:
    """Return the versions that servers refuse, as far as their files show it."""
    with importing():
        from app.api.examples import example_request
        from app.lifecycle.policies import Policies
        from app.scoring.version_examiner import VersionExaminer
    examiner = VersionExaminer(Policies(), example_request, None)
    return {model.artifact.version for model in examiner.incompatible(versions, traffic)}


def _newest_good(versions: list[Artifact]) -> int:
    """Return the newest version that can be loaded and has its tables; 0 for none."""
    with importing():
        import torch

        from app.artifacts.loader import load
    problem_of = cache(opening_problem)
    for artifact in reversed(versions):
        try:
            manifest = load(artifact, torch.device("cpu")).manifest
        except (ArtifactInvalid, OSError):
            continue
        if not missing_table(artifact.folder.parent, manifest, problem_of):
            return artifact.version
    return 0


def _remove(folder: Path) -> None:
    """Remove a version: readers of the store see all of it or nothing."""
    with unnamed_folder(folder.parent) as temporary:
        folder.rename(temporary / folder.name)
