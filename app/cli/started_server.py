"""Start a server of a store on this machine, for as long as a command measures it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from app.artifacts.store import MANIFEST, Store
from app.cli.replica_costs import CannotMeasure
from app.settings import variable_name

_START_S = 60.0
_MOST_READ = 1 << 20  # bytes at the end of what a server has written; its reason is the last line
_SERIOUS = ("error", "critical")
_NOT_TAKEN = frozenset(
    variable_name(name)
    for name in (
        # Its caller is this command, which knows its address and has no key of it.
        *("host", "port", "metrics_port", "keys", "keys_file", "tls_cert", "tls_key"),
        "processes",  # one has all that is measured, and a plan can have any number
        *("record", "record_share", "record_ids", "record_max_bytes"),  # this is no traffic
        "drain_delay_s",  # nobody waits for it
    )
)
_TRACING = "OTEL_"


@contextmanager
def server_of(store: Path) -> Iterator[str]:
    """Run a server of a store on this machine, and yield its URL.

    Raises:
        CannotMeasure: the store has no artifacts, or the server does not become ready.
    """
    _check_artifacts(store)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The server must not outlive this command.
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    where = ["--store", str(store), "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as written:
        process = subprocess.Popen(  # noqa: S603  (the path of a store is one argument)
            [sys.executable, "-m", "app", "serve", *where],
            stderr=written,
            env=environment_of_server(os.environ),
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, written)
            yield url
        finally:
            process.terminate()
            process.wait()
            signal.signal(signal.SIGTERM, former)


def _check_artifacts(store: Path) -> None:
    """Refuse a store without artifacts: a server would wait for the first one.

    Raises:
        CannotMeasure: neither is it one, nor a folder of one model or version.
    """
    try:
        listing = Store(store).scan()
    except OSError as error:
        raise CannotMeasure(f'store "{store}": {error.strerror}') from None
    if listing.artifacts or any(store.glob(MANIFEST)) or any(store.glob(f"*/{MANIFEST}")):
        return
    ignored = "".join(f"; {folder}: {reason}" for folder, reason in listing.ignored.items())
    raise CannotMeasure(f'store "{store}" has no artifacts{ignored}')


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, written: IO[bytes]) -> None:
    """Wait until a server is ready.

    Raises:
        CannotMeasure: it has ended, or is not ready in time; the message has its own reason.
    """
    patience = time.monotonic() + _START_S
    while (reason := _why_not_ready(url)) is not None:
        if (code := process.poll()) is not None:
            reason = _last_reason(written) or f"exit code {code}"
            raise CannotMeasure(f"the server of the store has ended: {reason}")
        if time.monotonic() > patience:
            reason = _last_reason(written) or reason
            raise CannotMeasure(f"the server of the store is not ready in {_START_S:g} s: {reason}")
        time.sleep(0.1)


def _last_reason(written: IO[bytes]) -> str:
    """Return the last error in what a server has written: a message, or a record of its log.

    The last line if it has neither, as that of a traceback; nothing if nothing was written.
    """
    written.seek(max(0, written.seek(0, os.SEEK_END) - _MOST_READ))
    lines = written.read().decode(errors="replace").strip().splitlines()
    for line in reversed(lines):
        if line.startswith("gatehouse: "):
            return line.removeprefix("gatehouse: ")
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("level") in _SERIOUS:
            return str(record.get("message"))
    return lines[-1] if lines else ""


def environment_of_server(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a server that is measured.

    It has the settings that change what a request costs: lanes, batches, limits, policies, logs.
    """
    taken = {
        name: value
        for name, value in environment.items()
        if name.upper() not in _NOT_TAKEN and not name.upper().startswith(_TRACING)
    }
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    return {**taken, "PYTHONPATH": path}


def _why_not_ready(url: str) -> str | None:
    """Return why a server is not ready, or None if it is."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        from app.benchmarking.load import reason_of

        return reason_of(error.read()) or f"status {error.code}"
    except OSError as error:
        return str(error)
