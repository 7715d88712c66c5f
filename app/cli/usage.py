"""How a command line says what is wrong with it: one line on standard error, exit code 2.

No value is repeated that could be a secret: names and rules only.
"""

import argparse
import sys
from typing import NoReturn

from pydantic import ValidationError

EXIT_OK, EXIT_WRONG, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class WrongUsage(ValueError):
    """A command cannot be followed as it stands; the message is one line."""


class Parser(argparse.ArgumentParser):
    """Argparse that leaves it to `main` to say what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print.

        Raises:
            WrongUsage: always.
        """
        raise WrongUsage(without_values(message))


def without_values(message: str) -> str:
    """Keep of unrecognised arguments the flags' names only: the rest could be a secret."""
    what, colon, arguments = message.partition("unrecognized arguments: ")
    if not colon:
        return message
    flags = [each.partition("=")[0] for each in arguments.split() if each.startswith("--")]
    return f"{what}no flag {', '.join(flags)}" if flags else f"{what}only flags are taken"


def rules_broken(error: ValidationError) -> str:
    """Name the settings that are wrong and the rules they break."""
    return "; ".join(": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors())


def complain(message: str) -> None:
    """Write one line to standard error, whatever white space the message has."""
    sys.stderr.write(f"gatehouse: {' '.join(message.split())}\n")
