"""The command line's parser, and its one-line messages about what is wrong."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from app.cli.option_values import UnrepeatableValue
from app.errors import did_you_mean, nearest

_LONGEST_VALUE = 60  # characters of a value that a message repeats
_NUMBER = re.compile(r"-\.?\d.*")


class WrongUsage(ValueError):
    """A command cannot run with these arguments; the message is one line. Exit code 2."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `WrongUsage` and suggests the nearest option."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  (argparse's own)
        """Take the arguments of `argparse.ArgumentParser`."""
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings, allow_abbrev=False)
        self._commands: argparse._SubParsersAction[Parser] | None = None

    def add_command(self, name: str, text: str) -> "Parser":
        """Add a command of this command, and return its parser; `command` is the chosen one."""
        if self._commands is None:
            self._commands = self.add_subparsers(
                title="commands", metavar="COMMAND", dest="command"
            )
        return self._commands.add_parser(name, help=text)

    def of_command(self, arguments: Sequence[str]) -> "Parser":
        """Return the parser of the command that the arguments begin with, else this one.

        Raises:
            WrongUsage: naming an unknown command and the nearest known one.
        """
        if self._commands is None or not arguments or arguments[0].startswith("-"):
            return self
        known: Mapping[str, Parser] = self._commands.choices
        if arguments[0] not in known:
            hint = did_you_mean(arguments[0], known) or f" (commands: {', '.join(known)})"
            raise WrongUsage(f'unknown command "{quoted(arguments[0])}" of {self.prog}{hint}')
        return known[arguments[0]]

    def refuse_unknown_options(self, arguments: Sequence[str]) -> None:
        """Refuse the first unknown option, before argparse complains about what is missing.

        Raises:
            WrongUsage: naming the option and the nearest known one, never its value.
        """
        for argument in arguments:
            option = argument.partition("=")[0]
            if option == "--":
                return
            if not option.startswith("-") or option == "-" or _NUMBER.fullmatch(option):
                continue
            if option not in self._option_string_actions:
                known = [
                    option.lstrip("-")
                    for option, action in self._option_string_actions.items()
                    if action.help != argparse.SUPPRESS
                ]
                meant = nearest(option.lstrip("-"), known)
                hint = f"see {self.prog} --help" if meant is None else f"did you mean --{meant}?"
                raise WrongUsage(f"unknown option {option}; {hint}")

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print.

        Raises:
            WrongUsage: always.
        """
        message = re.sub(r"\bargument (?=-)", "", message)
        message = message.replace(": expected one argument", " expects a value")
        for pattern in (r"the following arguments are required: (.*)", r"(one of .*) is required"):
            if match := re.fullmatch(pattern, message):
                missing = match[1].replace("the arguments ", "")
                raise WrongUsage(f"missing {missing}; see {self.prog} --help")
        raise WrongUsage(message)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:  # noqa: ANN401
        """Convert a value; put it into the message if that fails."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            name = action.option_strings[0] if action.option_strings else action.metavar
            if isinstance(error.__context__, UnrepeatableValue):
                raise WrongUsage(f"{name}: {error.message}") from None
            raise WrongUsage(f"{name} {quoted(arg_string)}: {error.message}") from None


def quoted(value: str) -> str:
    """Return a value as a message repeats it: quoted as in a shell, cut, no control characters."""
    cut = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}…"
    return shlex.quote(cut if cut.isprintable() else cut.encode("unicode_escape").decode())


def not_empty(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return the type of an argument whose value must not be empty."""

    def convert(text: str) -> Any:  # noqa: ANN401
        if not text.strip():
            raise argparse.ArgumentTypeError("must not be empty")
        return kind(text)

    return convert


def complain(message: str) -> None:
    """Write a message to standard error as one line."""
    try:
        sys.stderr.write(f"gatehouse: {' '.join(message.split())}\n")
        sys.stderr.flush()
    except OSError:  # its reader is gone, or its disk is full; the exit code still tells
        from app.cli.output import discard

        discard(sys.stderr)
