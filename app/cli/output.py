"""Standard output of the commands: on a terminal, in a pipe, into a file."""

import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

from rich.console import Console

_WIDEST = 1000  # characters: a table that is not for a terminal is as wide as it needs to be


class Output(Console):
    """A console whose tables are cut only where a terminal is too narrow.

    In a pipe its width would be a guess, and whoever reads the pipe wants whole cells.
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  (rich's own)
        """Take the arguments of `rich.console.Console`."""
        super().__init__(**settings)
        if not self.is_terminal:
            self.width = max(self.width, _WIDEST)

    def on_broken_pipe(self) -> NoReturn:
        """Leave it to `main` to end the command.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError

    def print_line(self, text: str) -> None:
        """Write a line as it is: no markup, no colours, no wrapping."""
        self.print(text, markup=False, highlight=False, soft_wrap=True)


def write_bytes(content: bytes) -> None:
    """Write a line of bytes to standard output."""
    sys.stdout.buffer.write(content + b"\n")


def escape_what_cannot_be_encoded() -> None:
    """Let standard output write characters that its encoding does not have as escapes."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def discard() -> None:
    """Send what is still buffered to nowhere, so that the interpreter's exit writes nothing."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
