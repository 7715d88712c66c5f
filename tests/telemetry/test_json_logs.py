"""Logs: every record is one line with one JSON object."""

import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from app.telemetry.json_logs import (
    JsonFormatter,
    LineFormatter,
    QueuedHandler,
    UnqueuedHandler,
    configure,
)
from tests import REPOSITORY
from tests.support.waiting import PATIENCE_S, wait_until


def line(record: logging.LogRecord) -> str:
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return text


def record(message: str, *arguments: object, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("app.access", logging.INFO, "x.py", 1, message, arguments, None)
    made.__dict__.update(extra)
    made.created = 1_700_000_000.1239
    return made


def test_a_record_is_an_object_with_time_level_logger_and_message():
    assert json.loads(line(record("%d rows", 3))) == {
        "time": "2023-11-14T22:13:20.123+00:00",
        "level": "info",
        "logger": "app.access",
        "message": "3 rows",
    }


def test_fields_are_added_to_the_object():
    written = json.loads(line(record("request", fields={"status": 200, "ms": 1.5})))
    assert (written["message"], written["status"], written["ms"]) == ("request", 200, 1.5)


@pytest.mark.parametrize("text", ["two\nlines", 'a "quote"', "\x00\x1b[31m", "Größe ✓"])
def test_any_text_is_one_line_and_can_be_read_back(text):
    assert json.loads(line(record("%s", text)))["message"] == text


def test_an_exception_is_logged_with_its_traceback():
    try:
        raise ValueError("poison")
    except ValueError:
        written = json.loads(line(record("failed", exc_info=sys.exc_info())))
    assert written["exception"].startswith("Traceback")
    assert written["exception"].endswith("ValueError: poison")


PROGRAM = """
import logging
from app.telemetry.json_logs import configure
logging.basicConfig()
configure("warning")
log = logging.getLogger("app.engine")
log.info("quiet")
log.warning("loud", extra={"fields": {"lane": "lane-0"}})
logging.getLogger("uvicorn.error").info("started")
"""


def test_a_process_logs_json_to_standard_error_from_its_level_up():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (0, "")
    (written,) = [json.loads(text) for text in done.stderr.splitlines()]
    assert (written["message"], written["level"], written["lane"]) == ("loud", "warning", "lane-0")


def test_a_process_logs_readable_lines_to_a_terminal():
    terminal, stderr = os.openpty()
    command = [sys.executable, "-c", PROGRAM]
    subprocess.run(command, stderr=stderr, check=True, cwd=REPOSITORY)
    os.close(stderr)
    written = os.read(terminal, 65536).decode()
    os.close(terminal)
    time_of_day, rest = written.split(" ", 1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}", time_of_day)
    assert rest == "WARNING app.engine: loud lane=lane-0\r\n"


def test_readable_line_has_the_fields_and_a_traceback():
    plain = LineFormatter().format(record("request", fields={"ms": 1.5, "stages_ms": {"rank": 2}}))
    assert plain.endswith('INFO    app.access: request ms=1.5 stages_ms={"rank": 2}')
    try:
        raise ValueError("poison")
    except ValueError:
        text = LineFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "app.access: failed\nTraceback" in text
    assert text.endswith("ValueError: poison")


def test_readable_line_has_no_control_characters_of_a_caller():
    plain = LineFormatter().format(record("%s", "a\x1b[2Jb\nc", fields={"id": "é\r"}))
    assert plain.endswith("a\\x1b[2Jb\\nc id=é\\r")
    assert "\x1b" not in plain


CROWDED = """
import logging, os, sys
from app.telemetry import json_logs as logs
logs.FLUSH_TIMEOUT_S = float(sys.argv[2])
logs.configure("info", threaded=sys.argv[1] == "threaded")
log = logging.getLogger("app")
for n in range(3000):
    log.info("line %d %s", n, "x" * 100)
logs.flush()
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["threaded", "single"])
def test_every_record_is_written_before_exit_if_the_log_is_read(kind):
    command = [sys.executable, "-c", CROWDED, kind, str(PATIENCE_S)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY)
    messages = [json.loads(text)["message"] for text in done.stderr.splitlines()]
    assert len(messages) == 3000 if kind == "threaded" else messages
    assert [int(message.split()[1]) for message in messages] == sorted(
        int(message.split()[1]) for message in messages
    )


@pytest.mark.parametrize("kind", ["threaded", "single"])
def test_process_exits_if_its_log_is_not_read(kind):
    reader, writer = os.pipe()
    try:
        command = [sys.executable, "-c", CROWDED, kind, "1"]
        done = subprocess.run(
            command, stderr=writer, timeout=PATIENCE_S, check=False, cwd=REPOSITORY
        )
        assert done.returncode == 0
    finally:
        os.close(reader)
        os.close(writer)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_records_are_dropped_and_counted_while_the_log_is_not_read(pipe):
    reader, writer = pipe
    handler = QueuedHandler(writer, max_queued=10)
    handler.setFormatter(logging.Formatter("%(message)s"))
    sent = 0
    while not handler.dropped:  # until the pipe and the queue are full
        assert sent < 10_000
        handler.handle(record(f"{sent} {'x' * 10_000}"))
        sent += 1
    handler.handle(record("lost"))
    handler.flush()  # gives up
    lost = handler.dropped
    received = b""
    while b"dropped" not in received:
        assert select.select([reader], [], [], 30)[0]
        received += os.read(reader, 1 << 20)
        handler.handle(record("later"))
    lines = [line for line in received.decode().splitlines() if line.split()[0].isdecimal()]
    (report,) = [line for line in received.decode().splitlines() if "dropped" in line]
    numbers = [int(line.split()[0]) for line in lines[:-1] if "x" in line]
    assert numbers == list(range(len(numbers)))
    assert lost >= 2
    assert int(report.split()[0]) >= lost


def test_closing_a_handler_writes_what_is_queued_and_ends_its_thread(pipe):
    before = threading.active_count()
    handler = QueuedHandler(pipe[1])
    for number in range(100):
        handler.handle(record(f"{number}"))
    handler.close()
    received = b""
    while received.count(b"\n") < 100:  # they are in the pipe, as `close` has returned
        assert select.select([pipe[0]], [], [], 30)[0]
        received += os.read(pipe[0], 1 << 20)
    wait_until(lambda: threading.active_count() <= before, "the thread ends")


def test_lines_that_are_written_are_out_of_memory(pipe):
    class Line(str):  # unlike a plain string, it can have a weak reference
        pass

    class Formatter(logging.Formatter):
        def format(self, record):
            made = Line(super().format(record))
            lines.append(weakref.ref(made))
            return made

    reader, writer = pipe
    lines: list[weakref.ref[Line]] = []
    handler = QueuedHandler(writer)
    handler.setFormatter(Formatter())
    handler.emit(record("first"))
    assert os.read(reader, 100) == b"first\n"
    wait_until(lambda: lines[0]() is None, "the thread has let go of the line")
    handler.close()


def test_without_a_thread_a_full_pipe_drops_records(pipe):
    reader, writer = pipe
    handler = UnqueuedHandler(writer)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for _ in range(100):
        handler.handle(record("x" * 10_000))
    assert os.read(reader, 1 << 20).startswith(b"x" * 10_000 + b"\n")
    handler.handle(record("again"))
    assert os.read(reader, 1 << 20).endswith(b"again\n")


def test_without_a_thread_a_log_that_cannot_be_written_fails_nobody():
    reader, pipe = os.pipe()
    os.close(reader)
    for writer in (pipe, os.open("/dev/full", os.O_WRONLY)):
        handler = UnqueuedHandler(writer)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.emit(record("x" * 10_000))
        os.close(writer)


def test_record_that_cannot_be_formatted_does_not_raise(pipe, capsys):
    handler = QueuedHandler(pipe[1])
    handler.handle(record("%d", "no number"))
    handler.handle(record("next"))
    handler.flush()
    assert os.read(pipe[0], 1 << 20) == b"next\n"
    handler.close()
    assert "Logging error" in capsys.readouterr().err


def test_uvicorns_start_and_stop_messages_are_left_out():
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn.error")
    handlers, level, quiet = root.handlers[:], root.level, uvicorn.level
    try:
        configure("info")
        assert root.level == logging.INFO
        assert not uvicorn.isEnabledFor(logging.INFO)
        assert uvicorn.isEnabledFor(logging.WARNING)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        uvicorn.setLevel(quiet)


def test_a_warning_of_python_is_a_line_of_json():
    program = """
import warnings
from app.telemetry.json_logs import configure
configure("info")
warnings.warn("two\\nlines", stacklevel=1)
"""
    command = [sys.executable, "-W", "default", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "warning"
    assert "UserWarning: two" in line["message"]
