"""Start a server of a store on this machine, for as long as a command measures it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.cli.replica_costs import CannotMeasure
from app.settings import variable_name

_START_S = 60.0
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
        CannotMeasure: it does not become ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The server must not outlive this command.
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    where = ["--store", str(store), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(  # noqa: S603  (the path of a store is one argument)
        [sys.executable, "-m", "app", "serve", *where],
        stderr=subprocess.DEVNULL,
        env=environment_of_server(os.environ),
    )
    try:
        url = f"http://127.0.0.1:{port}"
        patience = time.monotonic() + _START_S
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > patience:
                raise CannotMeasure(f'cannot serve the store "{store}": try gatehouse check')
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()
        signal.signal(signal.SIGTERM, former)


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


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310
            return True
    except OSError:
        return False
