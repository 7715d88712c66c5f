"""Generate load for a server from separate processes, in a closed or an open loop.

Closed loop: each connection sends its next request after it received a response. Open loop:
requests are sent at Poisson times independently of responses, over as many connections as needed.
Latency is counted from the time when a request was *due*, so that a server which stops for a second
is charged for every request of that second ("coordinated omission", Gil Tene).

A process of the generator is one event loop (`app.benchmarking.sender`). It records its own lag:
how long after its due time it noticed each arrival. Arrivals are Poisson, so they see the loop as
it is at random times (PASTA, Wolff 1982), and the quantiles of the lag are those of its delays.
`python -m tests.bench.load_limit` measures what one process can send on time.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

UNANSWERED = 0
"""Status of a request whose connection broke or whose response did not arrive in time."""
SENDS_PER_S = 4000.0
"""How many requests a second one process sends with half of them at most 0.05 ms late."""

Row = tuple[float, float, float, float, float, float, float]
"""One row of a report: the fields of `Report` from `kind` to `lag_s`."""


class CannotConnect(OSError):
    """The server does not accept connections; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and when.

    Attributes:
        port: of the server.
        requests: complete requests with head and body, drawn at random.
        weights: relative frequencies of the requests; equal by default.
        seconds: how long requests are sent and counted, after the warm-up.
        warm_up_s: how long requests are sent before that, and not counted.
        rate: arrivals per second of an open loop; None is a closed loop.
        connections: number of connections of a closed loop, maximum of an open loop.
        seed: seed of arrival times and draws.
        patience_s: how long to wait for responses after the last request.
        host: of the server.
        tls: whether the server speaks HTTPS.
    """

    port: int
    requests: Sequence[bytes]
    weights: Sequence[float] = ()
    seconds: float = 5.0
    warm_up_s: float = 0.0
    rate: float | None = None
    connections: int = 1024
    seed: int = 0
    patience_s: float = 10.0
    host: str = "127.0.0.1"
    tls: bool = False

    def to_bytes(self) -> bytes:
        """Return the plan as a line of JSON, followed by the requests."""
        head = {field.name: getattr(self, field.name) for field in fields(self)}
        head["requests"] = [len(request) for request in self.requests]
        head["weights"] = list(self.weights)
        return json.dumps(head).encode() + b"\n" + b"".join(self.requests)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Plan":
        """Return the plan that `to_bytes` wrote."""
        line, _, rest = content.partition(b"\n")
        head = json.loads(line)
        ends = np.cumsum([0, *head["requests"]]).tolist()
        requests = [rest[start:end] for start, end in pairwise(ends)]
        return cls(**{**head, "requests": requests})


@dataclass(frozen=True, slots=True)
class Progress:
    """What has happened so far, and the latency of the responses since the last progress."""

    elapsed_s: float
    sent: int
    answered: int
    failed: int
    latencies_s: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response with another status than 200.

    Attributes:
        status: of the response.
        reason: what its document says; empty if it is no document of the service.
    """

    status: int
    reason: str

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else f"{self.status}"


def reason_of(body: bytes) -> str:
    """Return what an error document of the service says is wrong, or nothing."""
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(document, dict):
        return ""
    return str(document.get("detail") or document.get("error") or "")


@dataclass(frozen=True)
class Report:
    """The results of all requests, one element per request.

    Attributes:
        seconds: how long requests were sent.
        rate: arrivals per second that were asked for; None is a closed loop.
        kind: index of the request in the plan.
        status: status of the response, or `UNANSWERED`.
        latency_s: time from when the request was due to the last byte of the response.
        told_when: whether the response had a Retry-After header.
        late_s: how much later than due it was sent, because the generator or its connections were
            busy; NaN if it never was.
        due_s: when it was due, from the start.
        lag_s: how much later than due the generator noticed it; 0 in a closed loop.
        busiest: the largest share of a core that a process of the generator used, 0 to 1.
        refusal: the first response with another status than 200; None if there is none.
    """

    seconds: float
    rate: float | None
    kind: npt.NDArray[np.int64]
    status: npt.NDArray[np.int64]
    latency_s: npt.NDArray[np.float64]
    told_when: npt.NDArray[np.bool_]
    late_s: npt.NDArray[np.float64]
    due_s: npt.NDArray[np.float64]
    lag_s: npt.NDArray[np.float64]
    busiest: float
    refusal: Refusal | None = None

    @classmethod
    def of_rows(
        cls,
        plan: Plan,
        rows: Sequence[Row] | npt.NDArray[np.float64],
        busiest: float = 0.0,
        refusal: Refusal | None = None,
    ) -> "Report":
        """Convert rows to columns."""
        table = np.array(rows, np.float64).reshape(-1, 7)
        kind, status, latency_s, told_when, late_s, due_s, lag_s = table[
            np.argsort(table[:, 5], kind="stable")
        ].T
        return cls(
            plan.seconds,
            plan.rate,
            kind.astype(np.int64),
            status.astype(np.int64),
            latency_s,
            told_when.astype(np.bool_),
            late_s,
            due_s,
            lag_s,
            busiest,
            refusal,
        )

    def of(self, kinds: Sequence[int]) -> "Report":
        """Return the part of the report for the given kinds of requests."""
        chosen = np.isin(self.kind, kinds)
        columns = ("kind", "status", "latency_s", "told_when", "late_s", "due_s", "lag_s")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})

    @property
    def statuses(self) -> Mapping[int, int]:
        """Number of responses by status."""
        values, counts = np.unique(self.status, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    @property
    def sent_rate(self) -> float:
        """Requests per second that were sent."""
        return float(np.isfinite(self.late_s).sum() / self.seconds)

    @property
    def answered_rate(self) -> float:
        """Responses per second, whatever their status."""
        return float((self.status != UNANSWERED).sum() / self.seconds)

    @property
    def error_ratio(self) -> float:
        """Share of the requests that got no response, or one with another status than 200."""
        return float((self.status != 200).mean()) if len(self.status) else 1.0

    def rate_within(self, within_s: float = np.inf) -> float:
        """Return the responses per second with status 200 and a latency of at most `within_s`."""
        good = (self.status == 200) & (self.latency_s <= within_s)
        return float(good.sum() / self.seconds)

    def late(self, deadline_s: float) -> int:
        """Return how many responses with status 200 came after a deadline."""
        return int(((self.status == 200) & (self.latency_s > deadline_s)).sum())

    def latency_ms(self, share: float) -> float:
        """Return a quantile of the latency of responses with status 200; 1 is the maximum."""
        accepted = self.latency_s[self.status == 200]
        return float(np.quantile(accepted, share) * 1e3) if len(accepted) else np.nan

    def lag_ms(self, share: float) -> float:
        """Return a quantile of the generator's lag."""
        return float(np.quantile(self.lag_s, share) * 1e3) if len(self.lag_s) else np.nan


def http(path: str, body: bytes, headers: Mapping[str, str], host: str = "127.0.0.1") -> bytes:
    """Return a complete POST request as bytes."""
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fire(
    plan: Plan, processes: int = 1, on_progress: Callable[[Progress], None] | None = None
) -> Report:
    """Run a plan in child processes, each with its share of the rate, and wait for the report.

    Args:
        plan: what to send.
        processes: how many processes send.
        on_progress: called twice a second, in a thread, with the sum over the processes.

    Raises:
        CannotConnect: the server does not accept connections.
    """
    parts = [
        replace(
            plan,
            rate=None if plan.rate is None else plan.rate / processes,
            connections=max(1, plan.connections // processes),
            seed=plan.seed * 1000 + number,
        )
        for number in range(processes)
    ]
    latest: list[Progress | None] = [None] * processes

    def note(number: int, progress: Progress) -> None:
        latest[number] = progress
        if on_progress is not None and (number == 0 or None not in latest):
            on_progress(_sum([part for part in latest if part is not None]))

    with ExitStack() as stack:
        children = [stack.enter_context(_child()) for _ in parts]
        with ThreadPoolExecutor(processes) as pool:
            try:
                results = list(
                    pool.map(_follow, children, parts, range(processes), [note] * processes)
                )
            except BaseException:
                for child in children:
                    child.kill()
                raise
    rows = np.concatenate([result.rows for result in results])
    refusals = [result.refusal for result in results if result.refusal is not None]
    busiest = max(result.busy for result in results)
    return Report.of_rows(plan, rows, busiest, next(iter(refusals), None))


@dataclass(frozen=True, slots=True)
class _Result:
    """What one process has measured: its rows, the share of a core it used, the first refusal."""

    rows: npt.NDArray[np.float64]
    busy: float
    refusal: Refusal | None


def _child() -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "app.benchmarking.sender"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def _follow(
    child: subprocess.Popen[bytes],
    plan: Plan,
    number: int,
    note: Callable[[int, Progress], None],
) -> _Result:
    """Send a child its plan; read its lines, then its rows."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(plan.to_bytes())
    child.stdin.close()
    for line in _lines(child.stdout):
        if "progress" in line:
            note(number, Progress(**line["progress"]))
        elif "cannot_connect" in line:
            reason = line["cannot_connect"]
            raise CannotConnect(f"cannot connect to {plan.host}:{plan.port}: {reason}")
        else:
            content = child.stdout.read()
            rows = np.frombuffer(content, np.float64).reshape(line["rows"], 7)
            refusal = line["refusal"]
            return _Result(rows, line["busy"], None if refusal is None else Refusal(**refusal))
    raise RuntimeError(f"the load generator ended with exit code {child.wait()}")


def _lines(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    while line := stream.readline():
        yield json.loads(line)


def _sum(parts: Sequence[Progress]) -> Progress:
    return Progress(
        max(part.elapsed_s for part in parts),
        sum(part.sent for part in parts),
        sum(part.answered for part in parts),
        sum(part.failed for part in parts),
        [latency for part in parts for latency in part.latencies_s],
    )
