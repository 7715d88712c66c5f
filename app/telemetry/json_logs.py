"""Logs on standard error: one JSON object a line, or readable lines if it is a terminal.

A pipe holds 64 kB. When its reader stops reading, a write blocks, and must not block the service:
records go through a bounded queue to a thread that writes them. While the queue is full, records
are dropped and counted.
"""

import json
import logging
import os
import select
import sys
import threading
from collections import deque
from datetime import UTC, datetime

MAX_QUEUED = 10_000  # lines; a few MB
FLUSH_TIMEOUT_S = 1.0
_STDERR = 2
_PIPE_BUF = 4096  # bytes; a write of so many to a pipe that has room does not block (pipe(7))


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object; the items of `extra={"fields": {...}}` join it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        document: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


class LineFormatter(logging.Formatter):
    """Formats a record for people: local time, level, message, then the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and the traceback below it."""
        at = datetime.fromtimestamp(record.created).astimezone()
        line = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {record.levelname:<7} "
        line += f"{record.name}: {record.getMessage()}"
        for name, value in getattr(record, "fields", {}).items():
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            line += f" {name}={shown}"
        # Names in requests must not move the cursor or end the line.
        line = "".join(
            character if character.isprintable() else repr(character)[1:-1] for character in line
        )
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return line


class QueuedHandler(logging.Handler):
    """Writes lines to a file descriptor from a thread of its own; `emit` never blocks.

    Attributes:
        dropped: records that found the queue full.
    """

    def __init__(self, descriptor: int, *, max_queued: int = MAX_QUEUED) -> None:
        """Start the thread; it ends with `close`, or with the process."""
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._max_queued = max_queued
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._is_writing = False
        self._is_closed = False
        threading.Thread(target=self._write_until_closed, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or count it as dropped."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  (a record that cannot be formatted must not fail its caller)
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) >= self._max_queued:
                self.dropped += 1
                return
            self._lines.append(line)
            if (
                len(self._lines) == 1
            ):  # else the thread has been notified and has not taken the lines yet
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is written, but not long: the reader may have stopped."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._lines and not self._is_writing, FLUSH_TIMEOUT_S
            )

    def close(self) -> None:
        """End the thread once it has written what is queued."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()

    def _write_until_closed(self) -> None:
        self._write_lines()
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()

    def _write_lines(self) -> None:
        reported = 0
        while not (self._is_closed and not self._lines):
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._is_closed)
                lines = [*self._lines]
                self._lines.clear()
                self._is_writing = True
                dropped = self.dropped - reported
                reported = self.dropped
            if dropped:
                lines.append(self._report(dropped))
            self._write("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
            del lines  # thousands after a burst, which would stay until the next record

    def _report(self, dropped: int) -> str:
        message = "%d log records were dropped: standard error was not read fast enough"
        record = logging.LogRecord(
            __name__, logging.WARNING, __file__, 0, message, (dropped,), None
        )
        return self.format(record)

    def _write(self, content: bytes) -> None:
        while content:
            try:
                content = content[os.write(self._descriptor, content) :]
            except BlockingIOError:  # another process made the terminal or the pipe non-blocking
                select.select([], [self._descriptor], [])
            except OSError:  # closed: the error cannot be reported anywhere
                return


class UnqueuedHandler(logging.Handler):
    """Writes each line at once, if the file descriptor has room; for a process without threads."""

    def __init__(self, descriptor: int) -> None:
        """Write to `descriptor`."""
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as far as there is room."""
        line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        for start in range(0, len(line), _PIPE_BUF):
            try:
                if not select.select([], [self._descriptor], [], 0)[1]:
                    return
                os.write(self._descriptor, line[start : start + _PIPE_BUF])
            except OSError:  # its reader is gone, or its disk is full: not the caller's problem
                return


def configure(level: str, *, threaded: bool = False) -> None:
    """Send every logger's records to standard error, as JSON unless it is a terminal.

    With `threaded`, through a queue. A process that forks must have no threads; it logs little.
    """
    handler: logging.Handler
    if sys.stderr is None:  # closed before the start; another file may have its number now
        handler = logging.NullHandler()
    else:
        handler = QueuedHandler(_STDERR) if threaded else UnqueuedHandler(_STDERR)
    is_terminal = sys.stderr is not None and os.isatty(_STDERR)
    handler.setFormatter(LineFormatter() if is_terminal else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)  # else a warning of Python is no line of JSON
    # Gatehouse logs start and stop itself.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def flush() -> None:
    """Wait, but not long, until the records so far are written."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def dropped() -> int:
    """Return how many records were dropped because the queue was full."""
    handlers = logging.getLogger().handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, QueuedHandler))
