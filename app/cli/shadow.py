"""`gatehouse shadow`: let a version score live requests without sending the responses."""

import argparse

from app.cli.parser import Parser
from app.cli.running_server import add_waiting
from app.cli.stored_versions import add_model
from app.cli.traffic_changes import put_on_trial

_DESCRIPTION = """\
Write a shadow into <store>/<model>/traffic.toml. Each server loads the version, and lets it score a
share of the requests after their responses, while lanes are idle. /metrics and /v1/models/MODEL
show how its scores and its order differ from those of the active version. While the traffic file
says "latest", the command names the newest other version as the active one."""
_EPILOG = """\
exit codes: 0 done; 1 the server has not applied the change in time; 2 wrong usage or files

examples:
  gatehouse shadow feed 8 --share 0.1
  gatehouse shadow feed --end
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_model(parser)
    parser.add_argument("version", nargs="?", metavar="VERSION", help="the version to compare")
    parser.add_argument(
        "--share", type=float, default=0.1, help="share of the requests (default: 0.1)"
    )
    parser.add_argument("--end", action="store_true", help="end the shadow")
    add_waiting(parser)


def run(options: argparse.Namespace) -> int:
    """Write the traffic file of a model; return the exit code."""
    return put_on_trial(options, "shadow", lambda *_: {"share": options.share})
