"""The `gatehouse` command: parses, calls, prints.

Torch takes seconds to import. It is imported where it is needed, so that help and a wrong flag
answer at once, and so that a signal finds a handler before: the first process of a container is
deaf to signals that it has none for.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.usage import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    EXIT_WRONG,
    Parser,
    WrongUsage,
    complain,
)
from app.errors import TuningError

if TYPE_CHECKING:
    from app.importing.description import ForeignModel

USAGE = """usage: gatehouse COMMAND [OPTION ...]

  serve         serve the newest good version of every model in the store
  check STORE   verify every artifact in a store and print a table
  import FILE   make an artifact of a TorchScript file that was made elsewhere
  rank FILE     answer a request from a file, as the server would
  fit-calibration LOG   make scores mean what they say, by what came of them
  tune LOG      find the weights of a policy that best reach a goal

`gatehouse serve --help` lists the settings, each with its unit and default; the other commands'
--help has their flags.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 1 where something is wrong, 2 for wrong usage."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except (WrongUsage, TuningError) as error:
        return _usage_error(str(error))
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED


def _run(arguments: list[str]) -> int:
    match arguments:
        case ["serve", *flags]:
            from app.cli.serve import serve

            return serve(flags)
        case ["check", store] if not store.startswith("-"):
            return check(Path(store))
        case ["import", *flags]:
            return import_file(flags)
        case ["rank", *flags]:
            from app.cli.rank import rank

            return rank(flags)
        case ["fit-calibration", *flags]:
            from app.cli.fit_calibration import fit_calibration

            return fit_calibration(flags)
        case ["tune", *flags]:
            from app.cli.tune import tune

            return tune(flags)
        case ["-h" | "--help", *_] | ["check", "-h" | "--help"]:
            print(USAGE, end="")
            return EXIT_OK
        case []:
            return _usage_error("a command is missing; try --help")
        case ["check", *_]:
            return _usage_error("check takes one folder")
        case [command, *_]:
            return _usage_error(f"no command {command!r}; try --help")
    raise AssertionError  # every list is matched above


def check(folder: Path) -> int:
    """Load every artifact, run its golden examples, and print what came of it."""
    import torch
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from app.artifacts.loader import load
    from app.artifacts.store import Store, StoreListing
    from app.errors import ArtifactInvalid

    table = Table("artifact", "network", "tasks", "verdict")
    try:
        listing = Store(folder).scan()
    except (FileNotFoundError, NotADirectoryError):
        listing = StoreListing()
    except OSError as error:
        complain(f'the store "{folder}": {error.strerror}')
        return EXIT_WRONG
    artifacts, wrong = listing.artifacts, len(listing.ignored)
    for place, reason in listing.ignored.items():
        table.add_row(escape(place), "", "", f"[red]{escape(reason)}")
    for artifact in artifacts:
        try:
            manifest = load(artifact, torch.device("cpu")).manifest
        except (ArtifactInvalid, OSError) as error:
            wrong += 1
            table.add_row(str(artifact), "", "", f"[red]{escape(str(error))}")
        else:
            tasks = ", ".join(manifest.task_names)
            table.add_row(str(artifact), escape(manifest.architecture), tasks, "[green]good")
    Console().print(table if artifacts or wrong else escape(f"no artifacts in {folder}"))
    return EXIT_WRONG if wrong or not artifacts else EXIT_OK


def import_file(flags: Sequence[str]) -> int:
    """Try a foreign TorchScript file, and publish it where it can serve."""
    from app.importing.description import ForeignInvalid

    try:
        told = _import_parser().parse_args(flags)
        content = told.file.read_bytes()
        model = _described(told)
    except ForeignInvalid as error:
        return _usage_error(str(error))
    except OSError as error:
        return _usage_error(f"{error.filename}: {error.strerror}")

    from app.artifacts.publish import publish
    from app.artifacts.store import Store
    from app.errors import ArtifactInvalid
    from app.importing.trial import examine

    try:
        trial = examine(content, model)
        vocabularies = {
            name: (told.config.parent / name).read_bytes()
            for name in sorted(trial.description.vocabulary_files)
        }
        artifact = publish(
            Store(told.store), trial.description, content, trial.requests, vocabularies
        )
    except ArtifactInvalid as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    else:
        print(f"published {artifact}: {artifact.folder}")
        return EXIT_OK
    complain(f"{told.file} cannot be imported: {reason}")
    return EXIT_WRONG


def _described(told: argparse.Namespace) -> "ForeignModel":
    from app.importing.description import from_flags, read

    by_flags = (told.name, told.columns, told.user, told.tasks)
    if told.config is not None:
        if any(by_flags):
            raise WrongUsage("--config says all that --name, --columns, --user, --tasks say")
        return read(told.config)
    if not (told.name and told.columns and told.tasks):
        raise WrongUsage("import needs --config, or --name, --columns and --tasks")
    return from_flags(*by_flags)


def _import_parser() -> argparse.ArgumentParser:
    from app.cli.import_guide import GUIDE

    parser = Parser(
        prog="gatehouse import",
        description="Make an artifact of a TorchScript file that was made elsewhere.",
        epilog=GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what torch.jit.save wrote")
    parser.add_argument("--config", type=Path, metavar="TOML", help="describes the module")
    parser.add_argument(
        "--store", type=Path, default=Path("store"), help="folder of artifacts (default: store)"
    )
    parser.add_argument("--name", help="the model's name in the store")
    for flag, what in (
        ("--columns", "columns of the matrix, from left to right"),
        ("--user", "those of them that are the user's"),
        ("--tasks", "tasks, each with what the module gives"),
    ):
        parser.add_argument(flag, type=_names, default=[], metavar="A,B", help=what)
    return parser


def _names(text: str) -> list[str]:
    return [each.strip() for each in text.split(",")]


def _usage_error(message: str) -> int:
    complain(message)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
