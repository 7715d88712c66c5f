"""Load a server in a closed loop with wrk (Debian package `wrk`)."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.benchmarking.requests import Post

_SCRIPT = """
wrk.method = "POST"
local bodies = {{}}
for i = 1, {count} do
  local file = io.open("{folder}/body-" .. i, "rb")
  bodies[i] = file:read("*a")
  file:close()
end
wrk.body = bodies[1]
if {count} > 1 then
  local turn = 0
  request = function()
    turn = turn % {count} + 1
    return wrk.format(nil, nil, nil, bodies[turn])
  end
end
"""
_TO_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """What wrk reports: its requests, their rate (1/s) and two quantiles of the latency (ms)."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float


def require_wrk() -> None:
    """End the program if wrk is missing."""
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed")


def wrk(
    url: str,
    post: Post,
    connections: int,
    seconds: float,
    folder: Path,
    headers: Mapping[str, str] = {},
    bodies: Sequence[bytes] = (),
) -> ClosedLoop:
    """Send a request again and again, each connection after its response has come.

    Args:
        url: of the server.
        post: the request.
        connections: how many at once.
        seconds: how long; wrk knows whole seconds.
        folder: for the files that wrk reads.
        headers: more headers.
        bodies: sent in turn, instead of the request's own.

    Raises:
        RuntimeError: a response has a status of 400 or more.
    """
    bodies, script = bodies or [post.body], folder / "post.lua"
    for number, body in enumerate(bodies, start=1):
        (folder / f"body-{number}").write_bytes(body)
    lines = [f'wrk.headers["{k}"] = "{v}"\n' for k, v in {**post.headers, **headers}.items()]
    script.write_text(_SCRIPT.format(folder=folder, count=len(bodies)) + "".join(lines))
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"]
    command = ["wrk", *options, "-s", str(script), f"{url}{post.path}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in output:
        raise RuntimeError(output)
    return ClosedLoop(
        int(_found(r"(\d+) requests in", output)),
        float(_found(r"Requests/sec:\s+(\S+)", output)),
        _ms(_found(r"\n\s+50%\s+(\S+)", output)),
        _ms(_found(r"\n\s+99%\s+(\S+)", output)),
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]


def _ms(written: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(us|ms|s|m)", written).groups()  # type: ignore[union-attr]
    return float(number) * _TO_MS[unit]
