"""`gatehouse fit-calibration`: make scores mean what they say, as a policies file."""

import argparse
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.tuning_arguments import Scene, add_scene, check_names, pairs, read_scene, refused
from app.cli.usage import EXIT_OK, Parser, WrongUsage
from app.cli.written import finish
from app.tuning.calibrate import FITS, METHODS, CalibrationResult, FitFailed, calibrate
from app.tuning.log_file import LogInvalid


def fit_calibration(flags: Sequence[str]) -> int:
    """Fit every task's calibration; write those that are better for sure.

    Raises:
        WrongUsage: a flag or a file cannot be used.
    """
    told = _parser().parse_args(flags)
    try:
        scene = read_scene(told)
    except LogInvalid as error:
        return refused(error)
    methods = _methods(told.methods, scene)
    console = Console()
    table = _table(scene)
    written = 0
    for task, method in methods.items():
        try:
            outcome = _calibrate(scene, task, method)
        except FitFailed as error:
            table.add_row(escape(task), "-", f"[yellow]left as it is: {escape(str(error))}")
            continue
        better = outcome.gain.is_sure
        table.add_row(*_cells(task, outcome, "better" if better else "no sure gain"))
        if better or told.anyway:
            scene.file.set_calibration(scene.manifest.name, task, outcome.calibration)
            written += 1
    console.print(table)
    if not written:
        console.print("No change is worth making: no task is calibrated better for sure.")
        return EXIT_OK
    return finish(console, scene.file, scene.manifest.traits, dry_run=told.dry_run)


def _calibrate(scene: Scene, task: str, method: str | None) -> CalibrationResult:
    ranker = scene.file.rankers(scene.manifest.traits).default
    kinds = {each.name: each.kind for each in scene.manifest.tasks}
    present = ranker.calibrations[ranker.tasks.index(task)]
    return calibrate(scene.fit, scene.held_out, task, kinds[task], present, method)


def _methods(asked: Mapping[str, str], scene: Scene) -> dict[str, str | None]:
    """Return the tasks to be calibrated, each with its method or None.

    Raises:
        WrongUsage: a task or a method is unknown, or one does not fit the other.
    """
    kinds = {
        task.name: task.kind for task in scene.manifest.tasks if task.name in scene.fit.outcomes
    }
    if not kinds:
        raise WrongUsage("the log has no outcome of a task of the model")
    check_names("--methods", asked, list(kinds))
    for task, method in asked.items():
        known = ("auto", "none", *METHODS[kinds[task]])
        if method not in known:
            raise WrongUsage(f"--methods: {task} takes one of {', '.join(known)}")
    return {
        task: asked[task] if asked.get(task) in FITS else None
        for task in kinds
        if asked.get(task) != "none"
    }


def _table(scene: Scene) -> Table:
    table = Table(
        title=f"{escape(scene.manifest.name)}: fitted on {scene.fit.requests:,} requests, judged "
        f"on {scene.held_out.requests:,} others",
        title_justify="left",
        caption="loss: log loss, or squared error of numbers; error: expected calibration error, "
        "or mean absolute error; ratio: predicted / observed",
        caption_justify="left",
    )
    for name in ("task", "method", "rows", "loss", "error", "ratio", "loss falls by (95 %)", ""):
        table.add_column(name, justify="left" if name in ("task", "method", "") else "right")
    return table


def _cells(task: str, outcome: CalibrationResult, verdict: str) -> list[str]:
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
        verdict,
    ]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gatehouse fit-calibration",
        description="Fit each task's calibration on logged scores and outcomes, and write those "
        "that lower the loss on held-out requests for sure (95 % bootstrap interval above 0).",
        epilog="Outcomes count as they were seen: a bias by position is not corrected here.",
        allow_abbrev=False,
    )
    add_scene(parser)
    parser.add_argument(
        "--methods",
        type=pairs,
        default={},
        metavar="TASK=METHOD,…",
        help="platt (0 or 1), scale (numbers), isotonic, none (leave the task as it is), or auto: "
        "what cross-validates best (default: auto for every task with outcomes)",
    )
    return parser
