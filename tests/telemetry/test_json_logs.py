"""Logs: every record is one line with one JSON object."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from app.telemetry.json_logs import JsonFormatter, configure
from tests import REPOSITORY


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
    (written,) = [json.loads(each) for each in done.stderr.splitlines()]
    assert (written["message"], written["level"], written["lane"]) == ("loud", "warning", "lane-0")


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
