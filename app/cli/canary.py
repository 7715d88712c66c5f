"""`gatehouse canary`: let a version serve a share of the traffic, before it becomes active."""

import argparse
from collections.abc import Sequence

from app.artifacts.artifact_files import read_manifest
from app.artifacts.store import Artifact
from app.cli.parser import Parser, WrongUsage
from app.cli.running_server import add_waiting
from app.cli.stored_versions import add_model
from app.cli.traffic_changes import put_on_trial
from app.errors import ArtifactInvalid, did_you_mean

_DESCRIPTION = """\
Write a canary into <store>/<model>/traffic.toml. Each server loads the version, and sends it a
share of the requests, chosen by a stable hash: of the header x-routing-key, else of the user's id,
else of the request id. When its time is over it becomes active, unless a gate fails: then it gets
no more traffic. Each server decides for itself and logs the figures. Afterwards `gatehouse
activate` keeps the new version, and `gatehouse rollback` returns to the one before. While the
traffic file says "latest", the command names the newest other version as the active one."""
_EPILOG = """\
exit codes: 0 done; 1 the server has not applied the change in time; 2 wrong usage or files

examples:
  gatehouse canary feed 8 --share 0.05 --for 30m --error-ratio 0.001 --p99-ratio 1.2
  gatehouse canary feed --end
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_model(parser)
    parser.add_argument("version", nargs="?", metavar="VERSION", help="the version to try")
    parser.add_argument(
        "--share", type=float, default=0.05, help="share of the requests (default: 0.05)"
    )
    parser.add_argument(
        "--for",
        dest="duration",
        default="30m",
        metavar="TIME",
        help='how long, as a number and s, m, h or d (default: "30m")',
    )
    parser.add_argument(
        "--key", metavar="FEATURE", help="user feature to hash (default: the one with the most ids)"
    )
    parser.add_argument(
        "--error-ratio",
        type=float,
        metavar="X",
        help="gate: failed share of the canary, less that of the active version, at most X",
    )
    parser.add_argument(
        "--p99-ratio",
        type=float,
        metavar="X",
        help="gate: p99 of the latency, at most X times that of the active version",
    )
    parser.add_argument(
        "--kendall-tau",
        type=float,
        metavar="X",
        help="gate: mean agreement of the orders of the two versions, at least X (-1 to 1)",
    )
    parser.add_argument("--end", action="store_true", help="end the canary")
    add_waiting(parser)


def run(options: argparse.Namespace) -> int:
    """Write the traffic file of a model; return the exit code."""

    def section(versions: Sequence[Artifact], version: int) -> dict[str, object]:
        gates = {
            "error_ratio": options.error_ratio,
            "p99_ratio": options.p99_ratio,
            "kendall_tau": options.kendall_tau,
        }
        canary: dict[str, object] = {
            "share": options.share,
            "for": options.duration,
            "gates": {name: value for name, value in gates.items() if value is not None},
        }
        if options.key is not None:
            _check_key(versions, version, options.key)
            canary["key"] = options.key
        return canary

    return put_on_trial(options, "canary", section)


def _check_key(versions: Sequence[Artifact], version: int, key: str) -> None:
    """Refuse a key that is no user feature of the version.

    Raises:
        WrongUsage: naming those that it has.
    """
    artifact = next(artifact for artifact in versions if artifact.version == version)
    try:
        known = sorted(read_manifest(artifact).user_names)
    except (ArtifactInvalid, OSError) as error:
        raise WrongUsage(f"{artifact}: {error}") from None
    if key not in known:
        hint = did_you_mean(key, known)
        raise WrongUsage(f'--key: unknown user feature "{key}"{hint} (known: {", ".join(known)})')
