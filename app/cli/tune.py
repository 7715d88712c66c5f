"""`gatehouse tune`: the weights of a policy that best reach a goal, found on logged requests."""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.tune_flags import tune_parser
from app.cli.tune_table import gain_table, weight_table
from app.cli.tuning_arguments import Scene, check_names, read_scene, refused
from app.cli.usage import EXIT_OK, WrongUsage, complain
from app.cli.written import finish
from app.ranking.ranker import Ranker
from app.tuning.goal import Goal, Mix, Ndcg
from app.tuning.log import Log
from app.tuning.log_file import LogInvalid
from app.tuning.search import Trial, tune_policy
from app.tuning.trade_off import PlotUnavailable, TradeOff, save_plot


def tune(flags: Sequence[str]) -> int:
    """Search for weights, judge them on held-out requests, and write them where that is better.

    Raises:
        WrongUsage: a flag or a file cannot be used.
    """
    told = tune_parser().parse_args(flags)
    try:
        scene = read_scene(told)
    except LogInvalid as error:
        return refused(error)
    ranker, goal = _ranker(scene, told.policy), _goal(told, scene.fit)
    fit, held_out = (each.corrected(told.position_bias) for each in (scene.fit, scene.held_out))
    with _searching(told.tries) as tell:
        found = tune_policy(
            *(fit, held_out, ranker, goal),
            tries=told.tries,
            within=told.within,
            seed=told.seed,
            on_trial=tell,
        )
    console = Console()
    console.print(weight_table(found.before, found.after))
    console.print(gain_table(found.gains, f"on {scene.held_out.requests:,} held-out requests"))
    reached = found.gains[str(goal)].after
    if isinstance(goal, Mix) and reached < 1:
        console.print(f"Not every target is reached: the least comes to {reached:.1%} of its own.")
    if told.plot is not None:
        title = f"{scene.manifest.name}, {found.before.name}, tuned for {goal}"
        _plot(told.plot, found.trade_off(), title)
    if found.after == found.before or not (found.is_sure or told.anyway):
        console.print("No change is worth making: no gain is sure on held-out requests.")
        return EXIT_OK
    name = told.name or found.after.name
    scene.file.set_policy(found.after.model_copy(update={"name": name}))
    return finish(console, scene.file, scene.manifest.traits, dry_run=told.dry_run)


def _ranker(scene: Scene, name: str | None) -> Ranker:
    """Return the policy that is to be tuned, compiled."""
    rankers = scene.file.rankers(scene.manifest.traits)
    if name is not None and name not in rankers.by_name:
        known = ", ".join(sorted(rankers.by_name))
        raise WrongUsage(f"--policy: there is no policy of this name; there are {known}")
    ranker = rankers.default if name is None else rankers.by_name[name]
    if ranker.policy.multiplier is not None:
        raise WrongUsage("a policy with a multiplier cannot be tuned: a log does not hold features")
    return ranker


def _goal(told: argparse.Namespace, log: Log) -> Goal:
    """Return what the flags ask for."""
    flag, outcomes = ("--ndcg", told.ndcg) if told.ndcg else ("--mix", told.mix)
    check_names(flag, outcomes, list(log.outcomes))
    for name in outcomes:
        if (log.outcomes[name] < 0).any():
            raise WrongUsage(f"{flag}: outcome {name} is below 0 in some rows")
    if told.position_bias and log.positions is None:
        raise WrongUsage("--position-bias: the log has no column position")
    return Ndcg(outcomes, told.at) if told.ndcg else Mix(outcomes, told.at)


@contextmanager
def _searching(tries: int) -> Iterator[Callable[[Trial], None]]:
    """Show a progress bar on a terminal; yield what it is told each try by."""
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

    def tell(each: Trial) -> None:
        nonlocal best
        best = max(best, each.value)
        progress.update(bar, advance=1, best=best)

    with progress:
        yield tell


def _plot(path: Path, shown: TradeOff, title: str) -> None:
    """Plot the trade-off; where that is not possible, say so, since the tables are there."""
    try:
        save_plot(shown, title, path)
    except PlotUnavailable as error:
        complain(str(error))
    else:
        Console().print(f"plotted {escape(str(path))}", highlight=False, soft_wrap=True)
