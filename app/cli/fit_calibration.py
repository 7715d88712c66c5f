"""`gatehouse fit-calibration`: calibrate each task's score on logged outcomes."""

import argparse
from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from app.cli.log_inputs import (
    LogInputs,
    add_log_inputs,
    check_outcomes,
    read_log_inputs,
    report_log,
    write_policies,
)
from app.cli.option_values import pairs
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage
from app.errors import ExitCode
from app.tuning.calibrate import FITS, METHODS, CalibrationResult, FitFailed, calibrate
from app.tuning.log_file import LogInvalid

_DESCRIPTION = """\
Fit each task's calibration on logged scores and outcomes. A calibration is written to the policies
file if it surely lowers the loss on held-out requests: the 95 % bootstrap interval is above 0."""
_EPILOG = """\
Outcomes count as they were logged: position bias is not corrected here. Needs the extra:
pip install -e '.[tune]'

example:
  gatehouse fit-calibration build/log.parquet --model feed --methods click=platt,dwell=scale
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_log_inputs(parser)
    parser.add_argument(
        "--methods",
        type=pairs,
        default={},
        metavar="TASK=METHOD,…",
        help="platt (tasks of 0 or 1), scale (numbers), isotonic, none (leave the task as it is), "
        "or auto: what cross-validates best (default: auto for every task with outcomes)",
    )


def run(options: argparse.Namespace) -> int:
    """Fit every task's calibration; write those whose gain is sure.

    Raises:
        WrongUsage: an option or a file cannot be used.
    """
    try:
        inputs = read_log_inputs(options)
    except LogInvalid as error:
        return report_log(error)
    methods = _methods(options.methods, inputs)
    output = Output()
    table = _table(inputs)
    written = 0
    for task, method in methods.items():
        try:
            outcome = _calibrate(inputs, task, method)
        except FitFailed as error:
            table.add_row(escape(task), "-", f"[yellow]not changed: {escape(str(error))}")
            continue
        better = outcome.gain.is_sure
        table.add_row(*_cells(task, outcome, "better" if better else "no sure gain"))
        if better or options.anyway:
            inputs.file.set_calibration(inputs.manifest.name, task, outcome.calibration)
            written += 1
    output.print(table)
    if not written:
        output.print_line("Nothing is written: no task is surely better calibrated.")
        return ExitCode.OK
    return write_policies(inputs, output, dry_run=options.dry_run)


def _calibrate(inputs: LogInputs, task: str, method: str | None) -> CalibrationResult:
    ranker = inputs.file.policies_for(inputs.manifest.traits).default
    kinds = {task.name: task.kind for task in inputs.manifest.tasks}
    present = ranker.calibrations[ranker.tasks.index(task)]
    return calibrate(inputs.fit, inputs.held_out, task, kinds[task], present, method)


def _methods(asked: Mapping[str, str], inputs: LogInputs) -> dict[str, str | None]:
    """Return the tasks to calibrate, each with its method; None means auto.

    Raises:
        WrongUsage: a task or a method is unknown, or one does not fit the other.
    """
    kinds = {
        task.name: task.kind for task in inputs.manifest.tasks if task.name in inputs.fit.outcomes
    }
    if not kinds:
        raise WrongUsage("the log has no outcome of a task of the model")
    check_outcomes("--methods", asked, list(kinds))
    for task, method in asked.items():
        known = ("auto", "none", *METHODS[kinds[task]])
        if method not in known:
            raise WrongUsage(f"--methods: {task} takes one of {', '.join(known)}")
    return {
        task: asked[task] if asked.get(task) in FITS else None
        for task in kinds
        if asked.get(task) != "none"
    }


def _table(inputs: LogInputs) -> Table:
    table = Table(
        title=f"{escape(inputs.manifest.name)}: fitted on {inputs.fit.requests:,} requests, judged "
        f"on {inputs.held_out.requests:,} others",
        title_justify="left",
        caption="loss: log loss, or squared error of numbers; error: expected calibration error, "
        "or mean absolute error; ratio: predicted / observed",
        caption_justify="left",
    )
    for name in ("task", "method", "rows", "loss", "error", "ratio", "loss falls by (95 %)", ""):
        table.add_column(name, justify="left" if name in ("task", "method", "") else "right")
    return table


def _cells(task: str, outcome: CalibrationResult, status: str) -> list[str]:
    before, after, gain = outcome.before, outcome.after, outcome.gain
    percent = 100 / abs(gain.before)
    return [
        escape(task),
        outcome.calibration.method,
        f"{outcome.rows:,}",
        f"{before.loss:.4g} → {after.loss:.4g}",
        f"{before.error:.3f} → {after.error:.3f}",
        f"{before.ratio:.2f} → {after.ratio:.2f}",
        f"{percent * gain.change:.2f} % ({percent * gain.low:.2f} to {percent * gain.high:.2f})",
        status,
    ]
