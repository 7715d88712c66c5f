"""The `gatehouse` command: parses, calls, prints.

Torch takes seconds to import. It is imported where it is needed, so that help and a wrong flag
answer at once, and so that a signal finds a handler before: the first process of a container is
deaf to signals that it has none for.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from app.settings import Settings

USAGE = """usage: gatehouse COMMAND [OPTION ...]

  serve         serve the newest good version of every model in the store
  check STORE   verify every artifact in a store and print a table

`gatehouse serve --help` lists the settings, each with its unit and default.
"""

EXIT_OK, EXIT_WRONG, EXIT_USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 1 where something is wrong, 2 for wrong usage."""
    match list(sys.argv[1:] if arguments is None else arguments):
        case ["serve", *flags]:
            return serve(flags)
        case ["check", store] if not store.startswith("-"):
            return check(Path(store))
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


def serve(flags: Sequence[str]) -> int:
    """Read the settings and serve until a signal."""
    source = CliSettingsSource[Settings](
        Settings,
        cli_prog_name="gatehouse serve",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        cli_show_env_vars=True,
    )
    try:
        settings = CliApp.run(Settings, cli_args=list(flags), cli_settings_source=source)
    except SettingsError as error:
        return _usage_error(_without_values(str(error).removeprefix("error parsing CLI: ")))
    except ValidationError as error:
        # Only names and rules: a value could be a secret.
        rules = [": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors()]
        return _usage_error("; ".join(rules))
    signal.signal(signal.SIGTERM, _stop_before_start)
    from app.main import run

    return run(settings)


def check(folder: Path) -> int:
    """Load every artifact, run its golden examples, and print what came of it."""
    import torch
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from app.artifacts.loader import load
    from app.artifacts.store import Store
    from app.errors import ArtifactInvalid

    table = Table("artifact", "network", "tasks", "verdict")
    artifacts = list(Store(folder).artifacts())
    wrong = 0
    for artifact in artifacts:
        try:
            manifest = load(artifact, torch.device("cpu")).manifest
        except ArtifactInvalid as error:
            wrong += 1
            table.add_row(str(artifact), "", "", f"[red]{escape(str(error))}")
        else:
            tasks = ", ".join(manifest.task_names)
            table.add_row(str(artifact), escape(manifest.architecture), tasks, "[green]good")
    Console().print(table if artifacts else escape(f"no artifacts in {folder}"))
    return EXIT_WRONG if wrong or not artifacts else EXIT_OK


def _stop_before_start(_signal: int, _frame: object) -> None:
    """Nothing was accepted yet, so there is nothing to drain."""
    sys.exit(EXIT_OK)


def _without_values(message: str) -> str:
    """Keep of unrecognised arguments the flags' names only: the rest could be a secret."""
    what, colon, arguments = message.partition("unrecognized arguments: ")
    if not colon:
        return message
    flags = [each.partition("=")[0] for each in arguments.split() if each.startswith("--")]
    return f"{what}no flag {', '.join(flags)}" if flags else f"{what}only flags are taken"


def _usage_error(message: str) -> int:
    print("gatehouse:", " ".join(message.split()), file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
