"""`gatehouse publish`: copy a version's folder into a store, as the next version."""

import argparse
import time
from pathlib import Path

from app.artifacts.store import Store
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, not_empty
from app.cli.running_server import add_waiting, nudge_and_wait
from app.cli.settings_options import add_store, store_of
from app.cli.signals import importing
from app.cli.traffic_changes import traffic_of
from app.errors import ArtifactInvalid

_DESCRIPTION = """\
Copy the folder of a version (model.json and the files that it lists) into a store, as the version
above the newest one. The copy is loaded and its golden examples are run before it gets its name:
servers see a whole, valid version or none. Several publishers may run at once."""
_EPILOG = """\
exit codes: 0 published; 1 the server has not applied the change in time; 2 the folder is not a
valid version

example:
  gatehouse publish build/feed/1 --store /srv/store --wait http://127.0.0.1:8000
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.add_argument(
        "folder", type=not_empty(Path), metavar="FOLDER", help="folder of the version to copy"
    )
    add_store(parser)
    add_waiting(parser)


def run(options: argparse.Namespace) -> int:
    """Publish the folder; return the exit code."""
    with importing():
        from app.artifacts.publish import publish_copy
    began = time.monotonic()
    try:
        artifact = publish_copy(Store(store_of(options)), options.folder)
    except ArtifactInvalid as error:
        raise WrongUsage(f"{options.folder}: {error}") from None
    Output().print_line(f"published {artifact}")
    if options.wait is None and options.hup is None:
        return 0
    traffic = traffic_of([artifact])
    wanted = artifact.version if traffic.active == "latest" else traffic.active
    return nudge_and_wait(artifact.model, traffic.active, options, began, version=wanted)
