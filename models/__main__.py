"""`python -m models train | log | vocabulary | show | compare | sweep`: parses, calls, prints."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from app.artifacts.store import Store
from app.errors import ArtifactInvalid, ExitCode
from models import data
from models.compare import compare, correlation, plots, tables, timing
from models.networks import build as networks, show
from models.training import experiment, prediction_log as logged, train
from models.training.checkpoint import CheckpointInvalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (experiment.ExperimentInvalid, data.DataInvalid, CheckpointInvalid) as error:
        print(error, file=sys.stderr)
        return ExitCode.USAGE
    except train.Interrupted as error:
        print(f"{error}; the same command with --resume goes on", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except (train.Diverged, ArtifactInvalid, OSError) as error:
        print(error, file=sys.stderr)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        print(f"interrupted; {arguments.kept}", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shows = commands.add_parser(
        "show", help="print an experiment's network: parts, shapes, parameters, operations"
    )
    shows.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
    shows.set_defaults(command=_show, kept="nothing was printed")
    lists = commands.add_parser(
        "vocabulary", help="make the vocabularies of an experiment's table that are not there yet"
    )
    lists.add_argument("--config", type=Path, required=True, metavar="FILE", help="a TOML file")
    lists.set_defaults(command=_vocabulary, kept="nothing was written")
    trains = commands.add_parser(
        "train", help="train an experiment's network and publish it as a new version"
    )
    trains.add_argument("--config", type=Path, required=True, metavar="FILE", help="a TOML file")
    trains.add_argument(
        "--store",
        type=Path,
        default=Path("store"),
        metavar="DIR",
        help="the folder of artifacts; made if absent (default: %(default)s)",
    )
    trains.add_argument(
        "--resume", action="store_true", help="go on with the run that was interrupted"
    )
    trains.add_argument("--quiet", action="store_true", help="a line an epoch, no progress bar")
    trains.set_defaults(command=_train, kept="nothing was published")
    _add_log(commands.add_parser("log", help="score held-out rows; write scores and outcomes"))
    _add_series(
        commands.add_parser("compare", help="train several networks on one data set; tabulate"),
        command=_compare,
        configs=compare.CONFIGS,
    )
    _add_series(
        commands.add_parser("sweep", help="train several networks on tasks more and less alike"),
        command=_sweep,
        configs=correlation.CONFIGS,
    )
    return parser


def _add_log(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command that writes a log for `gatehouse tune`."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a TOML file")
    parser.add_argument(
        "--store",
        type=Path,
        default=Path("store"),
        metavar="DIR",
        help="the folder of artifacts; its newest version scores (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/log.parquet"),
        metavar="FILE",
        help="the table (default: %(default)s)",
    )
    parser.add_argument(
        "--validation",
        action="store_true",
        help="take the validation requests too, which decided no more than when training stopped",
    )
    parser.set_defaults(command=_log, kept="nothing was written")


def _add_series(
    parser: argparse.ArgumentParser,
    *,
    command: Callable[[argparse.Namespace], int],
    configs: Sequence[Path],
) -> None:
    """The arguments of a command that trains a series of runs."""
    parser.add_argument(
        "configs",
        type=Path,
        nargs="*",
        default=configs,
        metavar="CONFIG",
        help=f"TOML files (default: {', '.join(each.stem for each in configs)})",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs of each (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build") / parser.prog.split()[-1],
        metavar="DIR",
        help="where runs, table and plot are kept; runs that it has are not made again "
        "(default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="a line a run, no progress bar")
    parser.set_defaults(command=command, kept="runs that were over are kept")


def _train(arguments: argparse.Namespace) -> int:
    console = Console()
    planned = experiment.read(arguments.config)
    store: Path = arguments.store
    artifact = train.run(
        planned,
        Store(store),
        quiet=arguments.quiet,
        console=console,
        checkpoint=store / ".checkpoints" / f"{planned.name}.safetensors",
        resume=arguments.resume,
    )
    console.print(f"published [bold]{artifact}[/]: {artifact.folder}", soft_wrap=True)
    return 0


def _log(arguments: argparse.Namespace) -> int:
    planned = experiment.read(arguments.config)
    store, path = Store(arguments.store), arguments.out
    written = logged.write(planned, store, path, validation=arguments.validation)
    print(
        f"{path}: {written.requests:,} requests, {written.rows:,} rows, scored by {written.model}"
    )
    return 0


def _vocabulary(arguments: argparse.Namespace) -> int:
    for path, ids in data.make_vocabularies(experiment.read(arguments.config).data).items():
        print(f"{path}: {ids:,} ids")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    shown = experiment.read(arguments.config)
    network = networks.build(shown.network, shown.features, shown.tasks, seed=shown.training.seed)
    Console().print(show.render(network))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    entries = compare.read(arguments.configs)
    console = Console(stderr=True)
    folder: Path = arguments.out
    comparison = compare.run(entries, _seeds(arguments), folder, console, quiet=arguments.quiet)
    times = timing.forward_times(
        {entry.name: entry.experiment for entry in entries},
        data.generate(entries[0].experiment.data).test,
    )
    _write(folder / "compare.md", tables.markdown(comparison, times))
    return _plot(folder / "gains.png", lambda: plots.gains(comparison))


def _sweep(arguments: argparse.Namespace) -> int:
    entries = compare.read(arguments.configs)
    console = Console(stderr=True)
    folder: Path = arguments.out
    swept = correlation.run(entries, _seeds(arguments), folder, console, quiet=arguments.quiet)
    _write(folder / "sweep.md", correlation.markdown(swept))
    return _plot(folder / "correlation.png", lambda: plots.correlation(swept))


def _seeds(arguments: argparse.Namespace) -> int:
    seeds: int = arguments.seeds
    if seeds < compare.FEWEST_SEEDS:
        raise experiment.ExperimentInvalid(
            f"--seeds: must be {compare.FEWEST_SEEDS} or more, or there is no deviation"
        )
    return seeds


def _write(path: Path, text: str) -> None:
    """Write a text, and print it."""
    path.write_text(text, encoding="utf-8")
    print(text)


def _plot(path: Path, draw: Callable[[], "Figure"]) -> int:
    """Draw a plot; where that is not possible, say so, since the table is there all the same."""
    try:
        plots.save(draw(), path)
    except plots.PlotsUnavailable as error:
        print(error, file=sys.stderr)
    else:
        print(f"plotted: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
