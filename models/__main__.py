"""Train, compare and inspect ranking networks; write the tables that other commands read."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from app.artifacts.store import Store
from app.errors import ArtifactInvalid, ExitCode, did_you_mean
from models import data
from models.compare import compare, correlation, plots, tables, timing
from models.networks import build as networks, show
from models.training import experiment, prediction_log, train
from models.training.checkpoint import CheckpointInvalid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_STORE = Path("store")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the nearest command or option."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )

    def error(self, message: str) -> NoReturn:
        """Print one line with what is wrong, and exit with status 2."""
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}\nhelp: {self.prog} --help\n")

    def refuse_unknown_options(self, arguments: Sequence[str]) -> None:
        """Report an unknown option before argparse reports that a required one is missing."""
        known = [option for action in self._actions for option in action.option_strings]
        for option in (
            argument.partition("=")[0] for argument in arguments if argument.startswith("-")
        ):
            if option not in known:
                self.error(f"unknown option {option}{did_you_mean(option, known)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    try:
        arguments.command(arguments)
    except (experiment.ExperimentInvalid, data.DataInvalid, CheckpointInvalid) as error:
        print(error, file=sys.stderr)
        return ExitCode.USAGE
    except train.Interrupted as error:
        print(f"{error}; continue with the same command and --resume", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except (train.Diverged, ArtifactInvalid, OSError) as error:
        print(error, file=sys.stderr)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        print(f"interrupted; {arguments.interrupted}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; an unknown command or option is reported with the nearest one."""
    parser, commands = _parsers()
    name = argv[0] if argv else "--help"
    if name in commands:
        commands[name].refuse_unknown_options(argv[1:])
    elif name not in ("-h", "--help"):
        known = ", ".join(commands)
        parser.error(f"unknown command {name} (commands: {known}){did_you_mean(name, commands)}")
    return parser.parse_args([name, *argv[1:]])


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of the program, and those of its commands by name."""
    parser = _Parser(
        prog="python -m models",
        description=__doc__,
        epilog="Help of a command: python -m models COMMAND --help. Guide: models/README.md.",
    )
    subparsers = parser.add_subparsers(
        required=True, metavar="COMMAND", title="commands", parser_class=_Parser
    )
    commands: dict[str, _Parser] = {}
    for command in COMMANDS:
        commands[command.name] = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"Example: python -m models {command.name} {command.example}",
        )
        commands[command.name].set_defaults(command=command.run, interrupted=command.interrupted)
        command.add_arguments(commands[command.name])
    return parser, commands


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        choices=data.DATASETS,
        help="census-income: UCI Census-Income (KDD), 299,285 rows, 9 MB compressed; "
        "movielens-100k: GroupLens MovieLens, 100,000 ratings, 5 MB",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: data/NAME)"
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="PATH",
        help="folder or archive (zip, tar) with the raw files (default: download them)",
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="the experiment, a TOML file"
    )


def _add_schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, metavar="TABLE", help="a Parquet or text file")


def _add_tables(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/tables"),
        metavar="DIR",
        help="folder of the files, one of items and one of users (default: %(default)s)",
    )
    for what, usual in (("item", ""), ("user", ", or the user of the schema")):
        parser.add_argument(
            f"--{what}-key",
            metavar="FEATURE",
            help=f"id feature that identifies {what}s (default: the only one{usual})",
        )


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the experiment, a TOML file")


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--store",
        type=Path,
        default=DEFAULT_STORE,
        metavar="DIR",
        help="folder of artifacts; created if absent (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run that was interrupted"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print one line per epoch, no progress bar"
    )


def _add_log(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--store",
        type=Path,
        default=DEFAULT_STORE,
        metavar="DIR",
        help="folder of artifacts; the newest version of the model scores (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/log.parquet"),
        metavar="FILE",
        help="the Parquet file to write (default: %(default)s)",
    )
    parser.add_argument(
        "--validation",
        action="store_true",
        help="include the validation requests, which training used for early stopping",
    )


def _add_series(parser: argparse.ArgumentParser, configs: Sequence[Path]) -> None:
    """Add the arguments of a command that trains a series of runs."""
    parser.add_argument(
        "configs",
        type=Path,
        nargs="*",
        default=configs,
        metavar="CONFIG",
        help=f"experiments, TOML files (default: {', '.join(path.stem for path in configs)})",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help=f"runs per network, {compare.FEWEST_SEEDS} or more (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build") / parser.prog.split()[-1],
        metavar="DIR",
        help="folder for runs, tables and plots; runs that it already contains are not repeated "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print one line per run, no progress bar"
    )


def _train(arguments: argparse.Namespace) -> None:
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


def _log(arguments: argparse.Namespace) -> None:
    planned = experiment.read(arguments.config)
    store, path = Store(arguments.store), arguments.out
    written = prediction_log.write(planned, store, path, validation=arguments.validation)
    print(
        f"{path}: {written.requests:,} requests, {written.rows:,} rows, scored by {written.model}"
    )


def _fetch(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.out or Path("data") / arguments.dataset
    for table, rows in data.fetch(arguments.dataset, folder, arguments.source).items():
        print(f"{folder / table}.parquet: {rows:,} rows")
    print(f"{folder / 'schema.toml'}: the schema, for schema_file in [data]")


def _schema(arguments: argparse.Namespace) -> None:
    print(data.draft_schema(arguments.table), end="")


def _vocabulary(arguments: argparse.Namespace) -> None:
    for path, size in data.make_vocabularies(experiment.read(arguments.config).data).items():
        print(f"{path}: {size}")


def _tables(arguments: argparse.Namespace) -> None:
    planned = experiment.read(arguments.config)
    keys = {"items": arguments.item_key, "users": arguments.user_key}
    for path, rows in data.write_tables(planned.data, arguments.out, keys).items():
        print(f"{path}: {rows:,} rows, for gatehouse {path.stem} publish")


def _show(arguments: argparse.Namespace) -> None:
    shown = experiment.read(arguments.config)
    network = networks.build(shown.network, shown.features, shown.tasks, seed=shown.training.seed)
    Console().print(show.render(network))


def _compare(arguments: argparse.Namespace) -> None:
    entries = compare.read(arguments.configs)
    console = Console(stderr=True)
    folder: Path = arguments.out
    comparison = compare.run(entries, _seeds(arguments), folder, console, quiet=arguments.quiet)
    times = timing.forward_times(
        {entry.name: entry.experiment for entry in entries},
        data.generate(entries[0].experiment.data).test,
    )
    _write(folder / "compare.md", tables.markdown(comparison, times))
    _plot(folder / "gains.png", lambda: plots.gains(comparison))


def _sweep(arguments: argparse.Namespace) -> None:
    entries = compare.read(arguments.configs)
    console = Console(stderr=True)
    folder: Path = arguments.out
    swept = correlation.run(entries, _seeds(arguments), folder, console, quiet=arguments.quiet)
    _write(folder / "sweep.md", correlation.markdown(swept))
    _plot(folder / "correlation.png", lambda: plots.correlation(swept))


def _seeds(arguments: argparse.Namespace) -> int:
    seeds: int = arguments.seeds
    if seeds < compare.FEWEST_SEEDS:
        raise experiment.ExperimentInvalid(
            f"--seeds: must be {compare.FEWEST_SEEDS} or more for a standard deviation, not {seeds}"
        )
    return seeds


def _write(path: Path, text: str) -> None:
    """Write a text and print it."""
    path.write_text(text, encoding="utf-8")
    print(text)


def _plot(path: Path, draw: Callable[[], "Figure"]) -> None:
    """Draw and save a plot; without matplotlib, print why there is none."""
    try:
        plots.save(draw(), path)
    except plots.PlotsUnavailable as error:
        print(error, file=sys.stderr)
    else:
        print(f"plot: {path}", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class _Command:
    """One command: its help, its arguments, what runs it, and what Ctrl-C leaves."""

    name: str
    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    interrupted: str = "nothing was written"


SERIES_INTERRUPTED = "finished runs are kept; the same command continues"
COMMANDS = (
    _Command(
        "train",
        "train the network of an experiment and publish it as a new version",
        "--config models/configs/demo.toml --store store",
        _add_train,
        _train,
        "nothing was published",
    ),
    _Command(
        "log",
        "score held-out requests and write scores and labels, for gatehouse tune",
        "--config models/configs/demo.toml --out build/log.parquet",
        _add_log,
        _log,
    ),
    _Command(
        "fetch",
        "download a public data set and convert it to tables with a schema",
        "census-income --out data/census-income",
        _add_fetch,
        _fetch,
    ),
    _Command(
        "schema",
        "print a draft of the schema of a table, to be edited",
        "clips.csv > clips.schema.toml",
        _add_schema,
        _schema,
    ),
    _Command(
        "vocabulary",
        "write the vocabularies of an experiment's table that do not exist yet",
        "--config clips.toml",
        _add_config,
        _vocabulary,
    ),
    _Command(
        "tables",
        "write the items and users of an experiment's data, for gatehouse items publish",
        "--config clips.toml --out build/tables",
        _add_tables,
        _tables,
        "the files are not complete",
    ),
    _Command(
        "show",
        "print the network of an experiment: parts, shapes, parameters, operations",
        "models/configs/demo.toml",
        _add_show,
        _show,
    ),
    _Command(
        "compare",
        "train several networks on one data set and print tables of their metrics",
        "--seeds 5 --out build/compare",
        partial(_add_series, configs=compare.CONFIGS),
        _compare,
        SERIES_INTERRUPTED,
    ),
    _Command(
        "sweep",
        "train several networks on tasks with increasing correlation",
        "--seeds 3 --out build/sweep",
        partial(_add_series, configs=correlation.CONFIGS),
        _sweep,
        SERIES_INTERRUPTED,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
