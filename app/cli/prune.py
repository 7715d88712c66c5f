"""`gatehouse prune`: remove old versions of a model from a store."""

import argparse
import shutil
import tempfile
from pathlib import Path

from app.artifacts.store import Artifact
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage
from app.cli.signals import importing
from app.cli.traffic_changes import add_model, chosen, traffic_of
from app.errors import ArtifactInvalid, ExitCode

_DESCRIPTION = """\
Remove the versions of a model except the newest N. The versions that traffic.toml names are never
removed; while it says "latest", neither is the newest version that can be loaded."""
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
    versions = chosen(options)
    kept = {each.version for each in versions[-options.keep :]} | _named(versions)
    for artifact in versions:
        if artifact.version in kept:
            continue
        if not options.dry_run:
            _remove(artifact.folder)
        verb = "would remove" if options.dry_run else "removed"
        Output().print_line(f"{verb} {artifact}")
    return ExitCode.OK


def _named(versions: list[Artifact]) -> set[int]:
    """Return the versions that servers need, now or after a restart."""
    traffic = traffic_of(versions)
    named = set() if traffic.previous is None else {traffic.previous}
    named |= {each.version for each in (traffic.canary, traffic.shadow) if each is not None}
    if traffic.active != "latest":
        return named | {traffic.active}
    with importing():
        import torch

        from app.artifacts.loader import load
    for artifact in reversed(versions):
        try:
            load(artifact, torch.device("cpu"))
        except (ArtifactInvalid, OSError):
            continue
        return named | {artifact.version}
    return named


def _remove(folder: Path) -> None:
    """Remove a version: readers of the store see all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pruned-") as temporary:
        moved = Path(temporary) / folder.name
        folder.rename(moved)
        shutil.rmtree(moved)
