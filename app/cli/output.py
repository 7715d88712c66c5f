"""Standard output of the commands: on a terminal, in a pipe, into a file.

Also how messages show counts and names.
"""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from rich.console import Console

_WIDEST = 1000  # characters; a table that is not for a terminal is as wide as it needs to be
_MOST_NAMES = 20  # that a message lists


class Output(Console):
    """A console that cuts the cells of a table only to fit a terminal.

    In a pipe or a file the width is not known, and a reader needs whole cells.
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  (rich's own)
        """Take the arguments of `rich.console.Console`."""
        super().__init__(**settings)
        if not self.is_terminal:
            self.width = max(self.width, _WIDEST)

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error, so that `main` ends the command.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError

    def print_line(self, text: str) -> None:
        """Write a line as it is: no markup, no colours, no wrapping."""
        self.print(text, markup=False, highlight=False, soft_wrap=True)


def counted(number: float, what: str) -> str:
    """Return `1 row` or `2 rows`."""
    return f"{number:,.12g} {what}{'' if number == 1 else 's'}"


def joined_names(names: Iterable[str]) -> str:
    """Return names as a message lists them, at most twenty."""
    every = list(names)
    more = f" and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else ""
    return (", ".join(every[:_MOST_NAMES]) or "none") + more


def write_bytes(content: bytes) -> None:
    """Write a line of bytes to standard output."""
    sys.stdout.buffer.write(content + b"\n")


def escape_unencodable() -> None:
    """Write characters that the encoding of standard output lacks as escapes."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Discard buffered output, so that the interpreter writes nothing when it exits."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
