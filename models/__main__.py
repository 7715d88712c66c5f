"""`python -m models train | vocabulary | show`: parses, calls, prints."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from app.artifacts.store import Store
from app.errors import ArtifactInvalid
from models import data, experiment, networks, show, train

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (experiment.ExperimentInvalid, data.DataInvalid) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except (train.Diverged, ArtifactInvalid, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted; nothing was published", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shows = commands.add_parser(
        "show", help="print an experiment's network: parts, shapes, parameters, operations"
    )
    shows.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
    shows.set_defaults(command=_show)
    lists = commands.add_parser(
        "vocabulary", help="make the vocabularies of an experiment's table that are not there yet"
    )
    lists.add_argument("--config", type=Path, required=True, metavar="FILE", help="a TOML file")
    lists.set_defaults(command=_vocabulary)
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
    trains.add_argument("--quiet", action="store_true", help="a line an epoch, no progress bar")
    trains.set_defaults(command=_train)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    console = Console()
    artifact = train.run(
        experiment.read(arguments.config),
        Store(arguments.store),
        quiet=arguments.quiet,
        console=console,
    )
    console.print(f"published [bold]{artifact}[/]: {artifact.folder}", soft_wrap=True)
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


if __name__ == "__main__":
    sys.exit(main())
