"""Generate load for one HTTP port from a separate process, in a closed or an open loop.

Closed loop: each connection sends its next request after it received a response. Open loop:
requests are sent at Poisson times independently of responses, over as many connections as needed.
Latency is counted from the time when a request was *due*, so that a server which stops for a second
is charged for every request of that second ("coordinated omission").

One process sent 28 000 requests per second in a closed loop, with other load on the same two cores.
In an open loop, half of the requests were sent within 0.05 ms of their time at 4 000 per second,
and within 0.7 ms at 8 000 per second. Rates above `MOST_PER_S` are refused. Measure this again with
`python -m tests.bench.load_limit`. Each report contains how late every request was sent.
"""

import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests import REPOSITORY

MOST_PER_S = 8000.0
"""Maximum rate of an open loop (requests/s). At higher rates, requests are sent late."""
UNANSWERED = 0
"""Status of a request whose connection broke or whose response did not arrive in time."""

Row = tuple[int, int, float, bool, float]
"""One row of a report: kind, status, latency_s, told_when, late_s."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and when.

    Attributes:
        port: port on 127.0.0.1.
        requests: complete requests with head and body, drawn at random.
        weights: relative frequencies of the requests; equal by default.
        seconds: duration.
        rate: arrivals per second of an open loop; None is a closed loop.
        connections: number of connections of a closed loop, maximum of an open loop.
        seed: seed of arrival times and draws.
        patience_s: how long to wait for responses after the last request.
    """

    port: int
    requests: Sequence[bytes]
    weights: Sequence[float] = ()
    seconds: float = 5.0
    rate: float | None = None
    connections: int = 1024
    seed: int = 0
    patience_s: float = 10.0

    def __post_init__(self) -> None:
        if self.rate is not None and self.rate > MOST_PER_S:
            raise ValueError(
                f"rate is {self.rate:,.0f} requests/s, but one process can send at most "
                f"{MOST_PER_S:,.0f} on time; use several machines"
            )


@dataclass
class Report:
    """The results of all requests, one element per request, in the order of responses.

    Attributes:
        seconds: how long requests were sent.
        kind: index of the request in the plan.
        status: status of the response, or `UNANSWERED`.
        latency_s: time from when the request was due to the last byte of the response.
        told_when: whether the response had a Retry-After header.
        late_s: how much later than due it was sent, because this process or its connections were
            busy.
    """

    seconds: float
    kind: npt.NDArray[np.int64]
    status: npt.NDArray[np.int64]
    latency_s: npt.NDArray[np.float64]
    told_when: npt.NDArray[np.bool_]
    late_s: npt.NDArray[np.float64]

    @classmethod
    def of_rows(cls, seconds: float, rows: Sequence[Row]) -> "Report":
        """Convert rows to columns."""
        table = np.array(rows, np.float64).reshape(-1, 5).T
        kind, status, latency_s, told_when, late_s = table
        return cls(
            seconds,
            kind.astype(np.int64),
            status.astype(np.int64),
            latency_s,
            told_when.astype(np.bool_),
            late_s,
        )

    def of(self, kinds: Sequence[int]) -> "Report":
        """Return the part of the report for the given kinds of requests."""
        chosen = np.isin(self.kind, kinds)
        return Report(
            self.seconds,
            self.kind[chosen],
            self.status[chosen],
            self.latency_s[chosen],
            self.told_when[chosen],
            self.late_s[chosen],
        )

    @property
    def statuses(self) -> Mapping[int, int]:
        """Number of responses by status."""
        values, counts = np.unique(self.status, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def rate(self, within_s: float = np.inf) -> float:
        """Return the responses per second with status 200 and a latency of at most `within_s`."""
        good = (self.status == 200) & (self.latency_s <= within_s)
        return float(good.sum() / self.seconds)

    def latency_ms(self, share: float) -> float:
        """Return a quantile of the latency of responses with status 200; 1 is the maximum."""
        accepted = self.latency_s[self.status == 200]
        return float(np.quantile(accepted, share) * 1e3) if len(accepted) else np.nan


def http(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a complete POST request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fire(plan: Plan) -> Report:
    """Run a plan in a child process and wait for its report."""
    child = [sys.executable, "-c", "from tests.bench.shooter import child; child()"]
    completed = subprocess.run(
        child, input=pickle.dumps(plan), stdout=subprocess.PIPE, check=True, cwd=REPOSITORY
    )
    report: Report = pickle.loads(completed.stdout)
    return report
