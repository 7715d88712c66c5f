"""`gatehouse rollback`: return to the version of a model that was active before."""

import argparse

from app.cli.option_values import version_number
from app.cli.parser import Parser, WrongUsage
from app.cli.running_server import add_waiting
from app.cli.stored_versions import add_model, check_version, versions_of_model
from app.cli.traffic_changes import active_besides, active_of, apply, traffic_of

_DESCRIPTION = """\
Write the previous version into <store>/<model>/traffic.toml as the active one: the version that the
last `gatehouse activate` replaced, else the one below the active version in the store. If there is
a canary, running or promoted, it is removed instead, and the version before it serves all
requests. Servers keep the previous version loaded (`keep`), so they return to it by one assignment,
within their poll interval (GATEHOUSE_STORE_POLL_S) or at once on SIGHUP. Newer versions are not
activated any more until `gatehouse activate MODEL latest`."""
_EPILOG = """\
exit codes: 0 done; 1 the server has not applied the change in time; 2 wrong usage or files, or
there is no previous version

examples:
  gatehouse rollback feed
  gatehouse rollback feed --to 5 --wait http://127.0.0.1:8000
  gatehouse rollback feed --hup "$(pidof -s gatehouse)"
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_model(parser)
    parser.add_argument(
        "--to", type=version_number, metavar="VERSION", help="return to this version instead"
    )
    add_waiting(parser)


def run(options: argparse.Namespace) -> int:
    """Write the traffic file of a model; return the exit code."""
    versions = versions_of_model(options)
    traffic = traffic_of(versions)
    active = active_of(versions, traffic)
    below = [artifact.version for artifact in versions if artifact.version < active]
    target: int | None = options.to
    if target is None and traffic.canary is not None:
        target = active_besides(versions, traffic, traffic.canary.version)
    if target is None and traffic.active != "latest":
        target = traffic.previous
    if target is None:
        if not below:
            raise WrongUsage(
                f"{versions[0].model} has no version below {active}, which should be active"
            )
        target = below[-1]
    check_version(versions, target)
    changes = {"active": target, "previous": None, "canary": None}
    return apply(versions, traffic.model_copy(update=changes), options)
