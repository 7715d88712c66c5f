"""`gatehouse shadow`: let a version score live requests without answering them."""

import argparse
import time

from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage
from app.cli.traffic_changes import (
    active_besides,
    add_model,
    add_waiting,
    check_version,
    chosen,
    nudge_and_wait,
    number_of,
    require_version,
    traffic_of,
)
from app.errors import ConfigurationInvalid
from app.lifecycle.traffic import TRAFFIC, Traffic

_DESCRIPTION = """\
Write a shadow into <store>/<model>/traffic.toml. Each server loads the version, and lets it score a
share of the requests after they are answered, while lanes are idle. /metrics and /v1/models/MODEL
show how its scores and its order differ from those of the active version. While the traffic file
says "latest", the command names the newest other version as the active one."""
_EPILOG = """\
exit codes: 0 done; 1 the server has not followed in time; 2 wrong usage or files

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
    began = time.monotonic()
    if not options.end:
        require_version(options, "shadow")
    versions = chosen(options)
    traffic = traffic_of(versions)
    folder = versions[0].folder.parent
    version = None
    if options.end:
        traffic = traffic.model_copy(update={"shadow": None})
    else:
        version = number_of(options.version)
        check_version(versions, version)
        document = traffic.model_dump(by_alias=True, exclude_none=True)
        document["active"] = active_besides(versions, traffic, version)
        document["shadow"] = {"version": version, "share": options.share}
        try:
            traffic = Traffic.of(document)
        except ConfigurationInvalid as error:
            raise WrongUsage(str(error)) from None
    traffic.write(folder)
    Output().print_line(f"{folder / TRAFFIC}: active = {traffic.active}, shadow = {version}")
    return nudge_and_wait(versions[0].model, traffic.active, options, began, shadow=version)
