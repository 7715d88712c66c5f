"""What the soaks that change versions and tables under load share."""

import argparse
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from tests.soak.model import NAME
from tests.support.server import Server
from tests.support.waiting import wait_until

CALLERS = 4
_PATIENCE_S = 60.0


@contextmanager
def callers(run: Callable[[str, int], None], url: str, is_over: threading.Event) -> Iterator[None]:
    """Let threads call a server with `run(url, number)`, which ends when `is_over` is set."""
    threads = [threading.Thread(target=run, args=(url, number)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def wait_for(server: Server, is_so: Callable[[Any], bool]) -> None:
    """Wait until the server says so of the model.

    Raises:
        AssertionError: it does not; the message has its log.
    """
    with httpx.Client(base_url=server.url) as client:
        try:
            wait_until(
                lambda: is_so(client.get(f"/v1/models/{NAME}").json()), patience_s=_PATIENCE_S
            )
        except AssertionError:
            raise AssertionError(f"not applied: {server.log.read_text()[-2000:]}") from None


def command(document: str, numbers: Mapping[str, int], soak: Callable[..., list[str]]) -> int:
    """Run a soak with the options of the command line; return the exit code.

    Args:
        document: the module's docstring, for the help.
        numbers: how many changes of each kind there are by default: also arguments of `soak`.
        soak: returns the failed checks.
    """
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, number in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"(default: {number})")
    parser.add_argument("--most-growth-mib", type=float, default=32.0, help="(default: 32)")
    failed = soak(**vars(parser.parse_args()))
    for failure in failed:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failed else 0
