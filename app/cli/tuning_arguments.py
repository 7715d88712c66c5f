"""What a fit or a search works on: a model of the store, its log, and the policies file."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.artifacts.manifest import Manifest
from app.artifacts.store import Store
from app.cli.usage import EXIT_USAGE, Parser, WrongUsage, complain
from app.errors import ArtifactInvalid
from app.tuning.log import Log
from app.tuning.log_file import LogInvalid, read_log
from app.tuning.policy_editor import PolicyEditor

FEWEST_REQUESTS = 50


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is.

    Attributes:
        manifest: of the model's newest version.
        file: the policies file.
        fit: the requests that are learnt from.
        held_out: the requests that are judged by.
    """

    manifest: Manifest
    file: PolicyEditor
    fit: Log
    held_out: Log


def read_scene(told: argparse.Namespace) -> Scene:
    """Read what the flags of `add_scene` name.

    Raises:
        LogInvalid: the log breaks rules.
        WrongUsage: something is not there, or the log has too few requests.
    """
    manifest = _manifest(Store(told.store), told.model)
    file = PolicyEditor(told.policies)
    log = read_log(told.log, {task.name: task.kind for task in manifest.tasks})
    fit, held_out = log.split(told.held_out)
    for part, requests in (("to fit", fit.requests), ("held out", held_out.requests)):
        if requests < FEWEST_REQUESTS:
            raise WrongUsage(
                f"{told.log}: {requests} requests {part}; there must be {FEWEST_REQUESTS} or more"
            )
    return Scene(manifest, file, fit, held_out)


def refused(error: LogInvalid) -> int:
    """Say what is wrong with a log; return the exit code."""
    for problem in error.problems:
        complain(problem)
    return EXIT_USAGE


def _manifest(store: Store, model: str | None) -> Manifest:
    from app.artifacts.loader import read_manifest  # and with it torch: help need not wait for it

    artifacts = [each for each in store.artifacts() if model in (None, each.model)]
    if not artifacts:
        named = f"no model {model}" if model else "no artifacts"
        raise WrongUsage(f"{store.folder}: there is {named}")
    names = sorted({each.model for each in artifacts})
    if len(names) > 1:
        raise WrongUsage(f"{store.folder}: name one with --model: {', '.join(names)}")
    try:
        return read_manifest(artifacts[-1])
    except ArtifactInvalid as error:
        raise WrongUsage(f"{artifacts[-1].folder}: {error}") from None


def add_scene(parser: Parser) -> None:
    """Add the flags that `read_scene` reads."""
    parser.add_argument(
        "log",
        type=Path,
        metavar="LOG",
        help="a table as .parquet, .csv or .jsonl, one row a candidate that was shown: request_id, "
        "score_<task> as the service answered it, outcome_<name> (0 or 1, seconds, a number; empty "
        "where undefined), and position, from 1, if it is known",
    )
    parser.add_argument(
        "--store",
        type=Path,
        default=Path(os.environ.get("GATEHOUSE_STORE") or "store"),
        metavar="DIR",
        help="folder of artifacts (default: GATEHOUSE_STORE, else store)",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="whose log it is; not needed where the store has only one"
    )
    parser.add_argument(
        "--policies",
        type=Path,
        default=Path(os.environ.get("GATEHOUSE_POLICIES") or "policies.toml"),
        metavar="FILE",
        help="the policies file that is read and changed; made where there is none, comments in it "
        "are kept (default: GATEHOUSE_POLICIES, else policies.toml)",
    )
    parser.add_argument(
        "--held-out",
        type=share,
        default=0.3,
        metavar="SHARE",
        help="of the requests, to judge by, by a hash of their ids (default: %(default)s)",
    )
    parser.add_argument(
        "--anyway", action="store_true", help="write even where no gain is sure on held-out rows"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be written")


def share(text: str) -> float:
    """Read a number between 0 and 1."""
    number = positive(text)
    if not number < 1:
        raise argparse.ArgumentTypeError("must be below 1")
    return number


def positive(text: str) -> float:
    """Read a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return number


def factor(text: str) -> float:
    """Read a number from 1."""
    number = positive(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def whole(text: str) -> int:
    """Read a whole number from 1."""
    if not (text.isdecimal() and 0 < int(text) < 10**6):
        raise argparse.ArgumentTypeError("must be a whole number, 1 or more")
    return int(text)


def by_name(text: str) -> dict[str, float]:
    """Read `click=1,like=4`."""
    return {name: positive(number) for name, number in pairs(text).items()}


def pairs(text: str) -> dict[str, str]:
    """Read `click=platt,dwell=scale`."""
    found: dict[str, str] = {}
    for each in text.split(","):
        name, equals, value = each.strip().partition("=")
        if not (name and equals and value) or name in found:
            raise argparse.ArgumentTypeError("must be NAME=VALUE,NAME=VALUE, each name once")
        found[name] = value
    return found


def check_names(flag: str, names: Mapping[str, object], known: Sequence[str]) -> None:
    """Refuse what the log does not have.

    Raises:
        WrongUsage: naming what there is.
    """
    if strangers := sorted(set(names) - set(known)):
        raise WrongUsage(
            f"{flag}: the log has no outcome {strangers[0]}; it has {', '.join(known)}"
        )
