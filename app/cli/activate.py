"""`gatehouse activate`: choose the active version of a model."""

import argparse

from app.cli.option_values import version_number
from app.cli.parser import Parser, WrongUsage
from app.cli.running_server import add_waiting
from app.cli.stored_versions import add_model, check_version, versions_of_model
from app.cli.traffic_changes import active_of, apply, require_version, traffic_of
from app.lifecycle.traffic import MAX_KEEP

_DESCRIPTION = """\
Write the version that should be active into <store>/<model>/traffic.toml. Servers apply it within
their poll interval (GATEHOUSE_STORE_POLL_S), or at once on SIGHUP. A version that they keep loaded
is activated by one assignment; another one is loaded first. If there is a canary, running or
promoted, it is removed."""
_EPILOG = """\
exit codes: 0 done; 1 the server has not applied the change in time; 2 wrong usage or files

examples:
  gatehouse activate feed 7
  gatehouse activate feed latest --keep 2
  gatehouse activate feed 7 --wait http://127.0.0.1:8000
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_model(parser)
    parser.add_argument(
        "version", nargs="?", metavar="VERSION", help='a version number, or "latest"'
    )
    parser.add_argument(
        "--keep", type=int, metavar="N", help="how many previous versions stay loaded"
    )
    add_waiting(parser)


def run(options: argparse.Namespace) -> int:
    """Write the traffic file of a model; return the exit code."""
    require_version(options, "activate")
    versions = versions_of_model(options)
    traffic = traffic_of(versions)
    changes: dict[str, object] = {"active": "latest", "previous": None}
    if options.version != "latest":
        try:
            version = version_number(options.version)
        except argparse.ArgumentTypeError as error:
            raise WrongUsage(f'VERSION {options.version}: {error}, or "latest"') from None
        check_version(versions, version)
        former = active_of(versions, traffic)
        previous = traffic.previous if former == version else former
        changes = {"active": version, "previous": previous}
    changes["canary"] = None
    if options.keep is not None:
        if not 0 <= options.keep <= MAX_KEEP:
            raise WrongUsage(f"--keep must be a number between 0 and {MAX_KEEP}")
        changes["keep"] = options.keep
    return apply(versions, traffic.model_copy(update=changes), options)
