"""The inputs that `tune` and `fit-calibration` share: a model, its log and its policies file.

This module defines their arguments, reads them, and writes the policies file.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.syntax import Syntax

from app.artifacts.artifact_files import read_manifest
from app.artifacts.manifest import Manifest
from app.cli.option_values import share
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain, not_empty
from app.cli.settings_options import add_store, policies_of
from app.cli.signals import importing
from app.cli.stored_versions import versions_of_model
from app.errors import ArtifactInvalid, ExitCode, PoliciesInvalid, did_you_mean
from app.tuning.log import Log
from app.tuning.log_file import LogInvalid, read_log
from app.tuning.policy_editor import PolicyEditor

FEWEST_REQUESTS = 50


@dataclass(frozen=True, slots=True)
class LogInputs:
    """The inputs of a fit or a search.

    Attributes:
        manifest: of the model's newest version.
        file: the policies file.
        fit: the requests to learn from.
        held_out: the requests to judge by.
    """

    manifest: Manifest
    file: PolicyEditor
    fit: Log
    held_out: Log


def add_log_inputs(parser: Parser) -> None:
    """Add the arguments that `read_log_inputs` reads."""
    parser.add_argument(
        "log",
        type=Path,
        metavar="LOG",
        help="table as .parquet, .csv or .jsonl with one row per shown candidate. Columns: "
        "request_id; score_<task> as in the response; outcome_<name>: 0 or 1, seconds, or "
        "a number, empty if undefined; optionally position, from 1",
    )
    add_store(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="model of the log; needed if the store has several"
    )
    parser.add_argument(
        "--policies",
        type=not_empty(Path),
        metavar="FILE",
        help="policies file to read and change; it is created if it does not exist; comments are "
        "kept (default: GATEHOUSE_POLICIES, else policies.toml beside the store, where "
        "gatehouse serve looks for it)",
    )
    parser.add_argument(
        "--held-out",
        type=share,
        default=0.3,
        metavar="SHARE",
        help="share of the requests to judge by, chosen by a hash of their ids "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--anyway",
        action="store_true",
        help="write the result even if its gain on held-out requests is not sure",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be written; write nothing"
    )


def read_log_inputs(options: argparse.Namespace) -> LogInputs:
    """Read the inputs that the arguments of `add_log_inputs` name.

    Raises:
        LogInvalid: the log breaks rules.
        WrongUsage: something is missing, or the log has too few requests.
    """
    manifest = _manifest(options)
    file = PolicyEditor(policies_of(options))
    log = read_log(options.log, {task.name: task.kind for task in manifest.tasks})
    fit, held_out = log.split(options.held_out)
    for part, requests in (("to fit", fit.requests), ("held out", held_out.requests)):
        if requests < FEWEST_REQUESTS:
            raise WrongUsage(
                f"{options.log}: {requests} requests {part}; at least {FEWEST_REQUESTS} are needed"
            )
    return LogInputs(manifest, file, fit, held_out)


def report_log(error: LogInvalid) -> int:
    """Print a line for each problem of a log; return the exit code."""
    for problem in error.problems:
        complain(problem)
    return ExitCode.USAGE


def write_policies(inputs: LogInputs, output: Output, *, dry_run: bool) -> int:
    """Show the changes of the policies file and write them, unless it is a dry run.

    Returns:
        The exit code.

    Raises:
        WrongUsage: the file cannot be written, or a server would refuse it.
    """
    changes = inputs.file.changes()
    if output.is_terminal:
        output.print(Syntax(changes, "diff", background_color="default", word_wrap=True))
    else:
        output.print_line(changes)
    if dry_run:
        output.print_line("Dry run: nothing was written.")
        return ExitCode.OK
    try:
        inputs.file.write(inputs.manifest.traits)
    except PoliciesInvalid as error:
        raise WrongUsage(f"{inputs.file.path}: the result would not be valid: {error}") from None
    output.print_line(f"wrote {inputs.file.path}")
    return ExitCode.OK


def _manifest(options: argparse.Namespace) -> Manifest:
    """Return the manifest of the newest version of a model, or of the store's only model."""
    newest = versions_of_model(options)[-1]
    with importing(), suppress(ImportError):  # a missing library is reported when it is used
        import pyarrow.parquet  # noqa: F401
        import scipy.optimize  # noqa: F401
    try:
        return read_manifest(newest)
    except ArtifactInvalid as error:
        raise WrongUsage(f"{newest.folder}: {error}") from None


def check_outcomes(option: str, names: Mapping[str, object], known: Sequence[str]) -> None:
    """Refuse outcomes that the log does not have.

    Raises:
        WrongUsage: naming those that it has.
    """
    for name in sorted(set(names) - set(known)):
        hint = did_you_mean(name, known)
        raise WrongUsage(
            f'{option}: the log has no outcome "{name}"{hint} (known: {", ".join(known)})'
        )
