"""`gatehouse tune`: find the weights of a policy that best reach a goal on logged requests."""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.cli.log_inputs import (
    LogInputs,
    add_log_inputs,
    check_outcomes,
    read_log_inputs,
    report_log,
    write_policies,
)
from app.cli.option_values import count, factor, numbers_by_name, positive
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain
from app.errors import ExitCode, did_you_mean
from app.ranking.policies import PolicyName
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker
from app.tuning.bootstrap import Gain
from app.tuning.goal import Goal, Mix, Ndcg
from app.tuning.log import Log
from app.tuning.log_file import LogInvalid
from app.tuning.search import Trial, tune_policy
from app.tuning.trade_off import PlotUnavailable, TradeOff, save_plot

_DESCRIPTION = """\
Search for the weights of a policy (exponents of a product or weights of an expression) that best
reach a goal on logged requests. The weights are written to the policies file if the gain on
held-out requests is sure: its 95 % bootstrap interval is above 0."""
_EPILOG = """\
A log has only the candidates that were shown, in the order they were shown in: what a policy would
move up from elsewhere is not seen. Of many goals that are tried on one log, one in forty has a sure
gain by luck. Needs the extra: pip install -e '.[tune]'

examples:
  gatehouse tune build/log.parquet --model feed --ndcg click=1,like=4,dwell=0.05
  gatehouse tune build/log.parquet --model feed --mix click=1,like=1.1 --plot trade-off.png
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    add_log_inputs(parser)
    _add_goal(parser)
    _add_search(parser)


def _add_goal(parser: Parser) -> None:
    """Add what is to be reached, and by which policy."""
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--ndcg",
        type=numbers_by_name,
        metavar="OUTCOME=GAIN,…",
        help="maximize NDCG; a candidate's gain is the sum of gain x outcome, such as "
        "click=1,like=4,dwell=0.05 (per click, per like, per second)",
    )
    goal.add_argument(
        "--mix",
        type=numbers_by_name,
        metavar="OUTCOME=TARGET,…",
        help="raise a mix of outcomes among the top candidates; each target is a multiple of the "
        "present value, such as click=1,like=1.1, and the outcome furthest below its target counts",
    )
    parser.add_argument(
        "--at",
        type=count,
        default=10,
        metavar="K",
        help="how many top candidates count (default: %(default)s)",
    )
    parser.add_argument(
        "--policy", metavar="NAME", help="policy to tune (default: the model's default policy)"
    )
    parser.add_argument(
        "--as",
        dest="name",
        type=_policy_name,
        metavar="NAME",
        help="write the result under another name, beside the old policy",
    )


def _add_search(parser: Parser) -> None:
    """Add how weights are searched for, and what is shown of it."""
    parser.add_argument(
        "--within",
        type=factor,
        default=10.0,
        metavar="FACTOR",
        help="most that a weight may grow or shrink, within the policy's bounds; the largest "
        "weight stays, since only ratios matter (default: %(default)g)",
    )
    parser.add_argument(
        "--position-bias",
        type=positive,
        default=0.0,
        metavar="ETA",
        help="weight outcomes by position^ETA, at most 10: position p is looked at with "
        "probability p^-ETA (default: 0, no correction)",
    )
    parser.add_argument(
        "--tries",
        type=count,
        default=300,
        metavar="N",
        help="about how many sets of weights are tried (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=count,
        default=1,
        metavar="N",
        help="seed of the search (default: %(default)s)",
    )
    parser.add_argument(
        "--plot",
        type=_plot_path,
        metavar="FILE",
        help="plot what each outcome costs in the others, as .png or .svg; needs matplotlib",
    )


def _policy_name(text: str) -> str:
    try:
        return TypeAdapter(PolicyName).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError("must be lower-case letters, digits, _ . -") from None


def _plot_path(text: str) -> Path:
    """Convert the path of a plot; refuse one that cannot be written before the search begins."""
    path = Path(text)
    if path.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError("must end in .png or .svg")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError("its folder does not exist")
    return path


def run(options: argparse.Namespace) -> int:
    """Search for weights, judge them on held-out requests, and write them if they are better.

    Raises:
        WrongUsage: an option or a file cannot be used.
    """
    try:
        inputs = read_log_inputs(options)
    except LogInvalid as error:
        return report_log(error)
    ranker, goal = _ranker(inputs, options.policy), _goal(options, inputs.fit)
    fit, held_out = (log.corrected(options.position_bias) for log in (inputs.fit, inputs.held_out))
    with _searching(options.tries) as count_trial:
        tuned = tune_policy(
            *(fit, held_out, ranker, goal),
            tries=options.tries,
            within=options.within,
            seed=options.seed,
            on_trial=count_trial,
        )
    output = Output()
    output.print(_weight_table(tuned.before, tuned.after))
    output.print(_gain_table(tuned.gains, f"on {inputs.held_out.requests:,} held-out requests"))
    reached = tuned.gains[str(goal)].after
    if isinstance(goal, Mix) and reached < 1:
        output.print_line(
            f"Not every target is reached: the furthest is at {reached:.1%} of its target."
        )
    if options.plot is not None:
        title = f"{inputs.manifest.name}, {tuned.before.name}, tuned for {goal}"
        _plot(options.plot, tuned.trade_off(), title)
    if tuned.after == tuned.before or not (tuned.is_sure or options.anyway):
        output.print_line("Nothing is written: no gain is sure on held-out requests.")
        return ExitCode.OK
    name = options.name or tuned.after.name
    inputs.file.set_policy(tuned.after.model_copy(update={"name": name}))
    return write_policies(inputs, output, dry_run=options.dry_run)


def _ranker(inputs: LogInputs, name: str | None) -> Ranker:
    """Return the policy to tune, compiled."""
    policies = inputs.file.policies_for(inputs.manifest.traits)
    if name is not None and name not in policies.by_name:
        known = ", ".join(sorted(policies.by_name))
        hint = did_you_mean(name, policies.by_name)
        raise WrongUsage(f'--policy: there is no policy "{name}"{hint} (known: {known})')
    ranker = policies.default if name is None else policies.by_name[name]
    if ranker.policy.multiplier is not None:
        raise WrongUsage("a policy with a multiplier cannot be tuned: a log has no features")
    return ranker


def _goal(options: argparse.Namespace, log: Log) -> Goal:
    """Return the goal that the options give."""
    option, outcomes = ("--ndcg", options.ndcg) if options.ndcg else ("--mix", options.mix)
    check_outcomes(option, outcomes, list(log.outcomes))
    for name in outcomes:
        if (log.outcomes[name] < 0).any():
            raise WrongUsage(f"{option}: outcome {name} is below 0 in some rows")
    if options.position_bias and log.positions is None:
        raise WrongUsage("--position-bias: the log has no column position")
    return Ndcg(outcomes, options.at) if options.ndcg else Mix(outcomes, options.at)


@contextmanager
def _searching(tries: int) -> Iterator[Callable[[Trial], None]]:
    """Show a progress bar on a terminal; yield a function that is called with each try."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("searching"),
        BarColumn(),
        TextColumn("{task.completed} tries, best {task.fields[best]:.4f}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar = progress.add_task("", total=tries, best=-math.inf)
    best = -math.inf

    def count_trial(trial: Trial) -> None:
        nonlocal best
        best = max(best, trial.value)
        progress.update(bar, advance=1, best=best)

    with progress:
        yield count_trial


def _plot(path: Path, trade_off: TradeOff, title: str) -> None:
    """Plot the trade-off; if that is not possible, say why: the tables are printed already."""
    try:
        save_plot(trade_off, title, path)
    except PlotUnavailable as error:
        complain(str(error))
    else:
        Output().print_line(f"plotted {path}")


def _weight_table(before: Policy, after: Policy) -> Table:
    """Tabulate the weights before and after."""
    table = Table(title=f"{escape(before.name)}: {before.formula}", title_justify="left")
    table.add_column("weight")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for name in {**before.weights, **after.weights}:
        old, new = before.weights.get(name, 0.0), after.weights.get(name, 0.0)
        table.add_row(escape(name), f"{old:g}", f"[bold]{new:g}" if new != old else f"{new:g}")
    return table


def _gain_table(gains: Mapping[str, Gain], title: str) -> Table:
    """Tabulate before and after, and the interval of the change in per cent of before."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("before", "after", "change", "95 % of bootstraps"):
        table.add_column(name, justify="right")
    for name, gain in gains.items():
        scale = 100 / abs(gain.before) if gain.before else float("nan")
        style = "green" if gain.low > 0 else "red" if gain.high < 0 else None
        table.add_row(
            escape(name),
            f"{gain.before:.4f}",
            f"{gain.after:.4f}",
            f"{gain.change * scale:+.2f} %",
            f"{gain.low * scale:+.2f} to {gain.high * scale:+.2f} %",
            style=style,
        )
    return table
