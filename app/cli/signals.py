"""Signals while a command imports its libraries.

Torch and NumPy take a second or two to import. If a signal handler raised an exception meanwhile,
it could be lost in a C extension, or leave a module half imported. So a signal ends the process at
once; there is nothing to undo yet.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import ExitCode


@contextmanager
def ending_the_process(
    code: ExitCode, *signals: signal.Signals, message: bytes = b""
) -> Iterator[None]:
    """End the process with this code at a signal while the block runs."""

    def end(_signal: int, _frame: object) -> None:
        os.write(2, message)
        os._exit(code)

    if threading.current_thread() is not threading.main_thread():  # others cannot set handlers
        yield
        return
    before = {number: signal.signal(number, end) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignoring(ignored: signal.Signals) -> Iterator[None]:
    """Ignore a signal as long as the block runs and sets no handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(ignored, before)


@contextmanager
def importing() -> Iterator[None]:
    """Let Ctrl-C end a command at once while the block imports libraries; `serve` does already."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    message = b"gatehouse: interrupted\n"
    with ending_the_process(ExitCode.INTERRUPTED, signal.SIGINT, message=message):
        yield
