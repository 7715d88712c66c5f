"""The `gatehouse` command: finds the command's module, parses, calls, turns errors into exit codes.

Torch takes seconds to import. Commands import it after their arguments are parsed, so that help
and a wrong option are answered at once, and so that a signal finds a handler: the first process of
a container ignores signals that it has no handler for.
"""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol

from app.cli.parser import Parser, WrongUsage, complain
from app.cli.signals import ending_the_process, ignoring, importing
from app.errors import ExitCode, TuningError, did_you_mean

COMMANDS: Mapping[str, str] = {
    "serve": "serve the newest valid version of every model in the store",
    "check": "verify every artifact in the store and print a table",
    "versions": "show the versions in the store and their roles",
    "activate": "choose the active version of a model",
    "rollback": "return to the previous version of a model",
    "canary": "let a version serve a share of the traffic for a while",
    "shadow": "let a version score requests without sending the responses",
    "replay": "score recorded traffic with two versions and compare them",
    "publish": "copy a version's folder into the store, as the next version",
    "prune": "remove old versions of a model from the store",
    "items": "publish and show tables of item features that live in the service",
    "users": "publish and show tables of user features that live in the service",
    "import": "make an artifact from a TorchScript file",
    "rank": "score and rank requests from a file, as the server would",
    "bench": "measure a server under load, or find the highest rate that it serves",
    "plan": "compute how many replicas an objective needs, and what they cost",
    "fit-calibration": "fit calibrated scores on logged outcomes",
    "tune": "search for the weights of a policy that best reach a goal",
}

_DESCRIPTION = "Online ranking: one user, many candidates, a score per task and one rank score."
_EPILOG = """\
Each command has its own help, with defaults and an example: gatehouse serve --help

Training is a program of its own: python -m models --help

exit codes: 0 success; 1 the command ran and found a failure; 2 wrong usage, settings or files;
130 interrupted by Ctrl-C; 141 the reader of the output went away
"""
_CALLERS = ("bench", "plan")
"""Commands that call a server, with the API key in GATEHOUSE_KEY: no other command reads it."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Command(Protocol):
    """The interface of each command's module."""

    def add_arguments(self, parser: Parser) -> None:
        """Describe the command and add its arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Run the command and return its exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    _open_closed_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["serve"]:
            # Until the server has handlers of its own: nothing is accepted yet, nothing to drain,
            # and every file that SIGHUP asks to read again will be read.
            ends = ending_the_process(ExitCode.OK, signal.SIGTERM, signal.SIGINT)
            with ends, ignoring(signal.SIGHUP):
                code = _run(given)
        else:
            code = _run(given)
        sys.stdout.flush()
    except (WrongUsage, TuningError) as error:
        complain(str(error))
        return ExitCode.USAGE
    except KeyboardInterrupt:
        complain("interrupted")
        return ExitCode.INTERRUPTED
    except OSError as error:
        return _failed(error)
    return code


def _open_closed_streams() -> None:
    """Let standard streams that were closed before the start lead to nowhere.

    Otherwise Python has None in their place, and the next file or connection gets their number.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        nowhere = os.open(os.devnull, os.O_RDWR)
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(nowhere, descriptor)
        setattr(sys, name, os.fdopen(nowhere, "r" if name == "stdin" else "w"))


def _failed(error: OSError) -> int:
    """Report that a file or the output cannot be read or written; return the exit code.

    Raises:
        OSError: it is another error.
    """
    from app.cli.output import discard

    if error.filename is not None:
        complain(f"{error.filename}: {error.strerror}")
        return ExitCode.FAILED
    if isinstance(error, BrokenPipeError):
        discard(sys.stdout)
        return ExitCode.PIPE_CLOSED
    if error.errno in _FULL:
        discard(sys.stdout)
        complain(f"cannot write the output: {error.strerror}")
        return ExitCode.FAILED
    raise error


def _run(given: Sequence[str]) -> int:
    """Parse and run; `--help` and `--version` end here, too."""
    name = given[0] if given and not given[0].startswith("-") else None
    if name is not None and name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f" (commands: {', '.join(COMMANDS)})"
        raise WrongUsage(f'unknown command "{name}"{hint}')
    with importing():
        command = None if name is None else _command(name)
    parser, chosen = _parsers(name)
    if command is not None:
        command.add_arguments(chosen)
        chosen = chosen.of_command(given[1:])
    chosen.refuse_unknown_options(given)
    try:
        options, rest = parser.parse_known_args(given)
    except SystemExit as end:  # argparse has printed help or the version
        return ExitCode.FAILED if end.code else ExitCode.OK
    if command is None:
        raise WrongUsage("missing COMMAND; see gatehouse --help")
    if rest:  # they are not shown: one of them could be a secret
        raise WrongUsage(f"too many arguments; see {chosen.prog} --help")
    if name != "serve":  # serve logs them
        from app.settings import variable_warnings

        known = {"GATEHOUSE_KEY"} if name in _CALLERS else set()
        for line in variable_warnings({n: v for n, v in os.environ.items() if n not in known}):
            complain(f"warning: {line}")
    return command.run(options)


def _parsers(name: str | None) -> tuple[Parser, Parser]:
    """Return the parser of all commands, and the one of the command, still without arguments."""
    parser = Parser(prog="gatehouse", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    of_command = {
        command: commands.add_parser(command, help=summary) for command, summary in COMMANDS.items()
    }
    return parser, parser if name is None else of_command[name]


class _ShowVersion(argparse.Action):
    """Reads the version only if it is requested: that takes longer than the rest of this module."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and exit."""
        from importlib.metadata import version

        sys.stdout.write(f"gatehouse {version('gatehouse')}\n")
        parser.exit()


def _command(name: str) -> Command:
    """Import a command's module, and no other command's libraries."""
    if name in ("items", "users"):
        from app.cli.table_commands import TableCommands

        return TableCommands("items" if name == "items" else "users")
    module = "import_" if name == "import" else name.replace("-", "_")
    command: Command = import_module(f"app.cli.{module}")
    return command


if __name__ == "__main__":
    sys.exit(main())
