"""Load on one HTTP port, made by a process of its own, in a closed or an open loop.

Closed: so many connections, each sends its next request when it has its answer. Open: requests are
sent at Poisson times whatever the answers do, over as many connections as that takes; a latency is
counted from when its request was *due*, so that a server which stands still for a second is charged
for everybody who came in that second ("coordinated omission").

One process made 28 000 requests a second in a closed loop, with others at work on the same two
cores; at 4 000 a second of an open loop it sent half of them within 0.05 ms of their times, at
8 000 within 0.7 ms. Beyond `MOST_PER_S` it refuses to try. `python -m tests.bench.load_limit`
measures that again, and how late every request was sent is in each report.
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
"""The most arrivals a second of an open loop: beyond it, requests are sent late."""
UNANSWERED = 0
"""The status of a request whose connection broke, or whose answer did not come in time."""

Row = tuple[int, int, float, bool, float]
"""One element of each column of a report."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and when.

    Attributes:
        port: of 127.0.0.1.
        requests: whole requests, head and body; each time one of them is drawn.
        weights: how often each of them is, in proportion; all alike by default.
        seconds: for how long.
        rate: arrivals a second of an open loop; None is a closed loop.
        connections: of a closed loop; of an open one, the most.
        seed: of the arrivals and of the draws.
        patience_s: how long answers may come after the last request.
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
                f"{self.rate:,.0f} requests a second are more than one process can make on time "
                f"({MOST_PER_S:,.0f}): share them out over several machines"
            )


@dataclass
class Report:
    """What became of every request, one element each, in the order of their answers.

    Attributes:
        seconds: for how long requests were sent.
        kind: which of the plan's requests it was.
        status: of its answer, or `UNANSWERED`.
        latency_s: from when it was due to the last byte of its answer.
        told_when: whether the answer had a Retry-After.
        late_s: how much later than due it was sent; for want of a connection, or of this process.
    """

    seconds: float
    kind: npt.NDArray[np.int64]
    status: npt.NDArray[np.int64]
    latency_s: npt.NDArray[np.float64]
    told_when: npt.NDArray[np.bool_]
    late_s: npt.NDArray[np.float64]

    @classmethod
    def of_rows(cls, seconds: float, rows: Sequence[Row]) -> "Report":
        """Turn what is known of each request into columns."""
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
        """Return the part of it that is of some of the plan's requests."""
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
        """How many answers had which status."""
        values, counts = np.unique(self.status, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def rate(self, within_s: float = np.inf) -> float:
        """Return the answers a second with status 200 that took no longer than `within_s`."""
        good = (self.status == 200) & (self.latency_s <= within_s)
        return float(good.sum() / self.seconds)

    def latency_ms(self, share: float) -> float:
        """Return a quantile of the latency of the answers with status 200; 1 is the longest."""
        accepted = self.latency_s[self.status == 200]
        return float(np.quantile(accepted, share) * 1e3) if len(accepted) else np.nan


def http(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a whole POST request."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fire(plan: Plan) -> Report:
    """Carry out a plan in a process of its own, and wait for it."""
    child = [sys.executable, "-c", "from tests.bench.shooter import child; child()"]
    ran = subprocess.run(
        child, input=pickle.dumps(plan), stdout=subprocess.PIPE, check=True, cwd=REPOSITORY
    )
    report: Report = pickle.loads(ran.stdout)
    return report
