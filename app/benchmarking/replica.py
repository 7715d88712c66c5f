"""What one replica can serve, computed from its measured costs by a simulation of its queues.

Requests of equal size arrive at Poisson times. The event loop handles one after the other; a lane
that is idle takes a batch of what waits, `a + b · rows` seconds long; a short batch runs on the
event loop; large requests are shared between idle lanes; an idle lane waits for more rows only if a
setting says so; and all share the cores.
So batches grow with the load by themselves, which no closed formula for queues says.
"""

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

_REQUESTS = 6000  # of one simulation
_WARM_UP = 0.1  # share of them that is not counted
_PRECISION = 1.02
_MOST_WAITING_S = 3.0  # more work than this in the queue: the rate is too high for any objective


@dataclass(frozen=True, slots=True)
class Replica:
    """The costs of one replica for requests of one size.

    Attributes:
        rows: candidates of a request.
        front_s: what a request costs the event loop (s).
        batch_s: the fixed cost of a batch on a lane (s).
        row_s: what each row adds (s).
        lanes: how many there are.
        cores: how many cores event loop and lanes share; lanes on a GPU need none.
        is_gpu: whether the lanes are on a GPU.
        max_batch_rows: the most rows of a batch.
        min_chunk_rows: requests are not split into smaller chunks.
        max_wait_s: how long the oldest row may wait for more rows while a lane is idle (s).
        runs_inline: whether short batches run on the event loop; those of a GPU do not.
    """

    rows: int
    front_s: float
    batch_s: float
    row_s: float
    lanes: int
    cores: float
    is_gpu: bool = False
    max_batch_rows: int = 512
    min_chunk_rows: int = 64
    max_wait_s: float = 0.0
    runs_inline: bool = True

    @property
    def limits(self) -> dict[str, float]:
        """The most requests per second that the event loop, the lanes and the cores allow."""
        full_batch_s = self.batch_s + self.row_s * self.max_batch_rows
        lane_s = self.rows * full_batch_s / self.max_batch_rows  # in the largest batches
        limits = {"event loop": 1 / self.front_s, "lanes": self.lanes / lane_s}
        if not self.is_gpu:
            limits["cores"] = self.cores / (self.front_s + lane_s)
        return limits


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a replica does at a rate.

    Attributes:
        rate: requests per second.
        p50_s: the median of the latency.
        p99_s: the 99th percentile of the latency; infinite if the queue grows without end.
        lane_share: the share of the time that lanes run batches, 0 to 1.
        front_share: the share of the time that the event loop is busy, 0 to 1.
    """

    rate: float
    p50_s: float
    p99_s: float
    lane_share: float
    front_share: float


def forecast(replica: Replica, rate: float, seed: int = 0) -> Forecast:
    """Simulate a replica at a rate (1/s)."""
    latencies_s, lane_share = _Simulation(replica, rate, seed).run()
    counted = latencies_s[int(len(latencies_s) * _WARM_UP) :]
    p50_s, p99_s = np.quantile(counted, (0.5, 0.99), method="higher")
    return Forecast(rate, float(p50_s), float(p99_s), lane_share, min(1.0, rate * replica.front_s))


def capacity(replica: Replica, p99_s: float) -> Forecast | None:
    """Return the highest rate whose simulated p99 is at most `p99_s`; None if there is none."""
    high = min(replica.limits.values())
    low = high / 1024
    best = forecast(replica, low)
    if best.p99_s > p99_s:
        return None
    while high / low > _PRECISION:
        middle = math.sqrt(low * high)
        candidate = forecast(replica, middle)
        if candidate.p99_s <= p99_s:
            low, best = middle, candidate
        else:
            high = middle
    return best


def longest_inline_s(requests: int) -> float:
    """Return how long a batch of so many requests on the event loop may be (s).

    `app.engine.inline` has the same function, but the layers above this one are not imported here.
    """
    return max(400e-6, min(80e-6 * requests, 1e-3))


class _Simulation:
    """One run; all times are seconds since the first arrival is due."""

    def __init__(self, replica: Replica, rate: float, seed: int) -> None:
        self._replica = replica
        self._cores = math.inf if replica.is_gpu else replica.cores
        gaps = np.random.default_rng(seed).exponential(1 / rate, _REQUESTS)
        self._arrivals = np.cumsum(gaps).tolist()
        self._arrived = 0
        self._front: deque[int] = deque()  # requests that the event loop has not handled
        self._front_left_s = 0.0  # of the first of them
        self._inline: tuple[int, ...] = ()  # the requests of a batch that the event loop runs
        self._inline_left_s = 0.0  # of that batch
        self._waiting: deque[list[int]] = deque()  # request and rows that no batch has
        self._waiting_rows = 0
        self._lanes: list[tuple[int, ...]] = [()] * replica.lanes  # the requests of each batch
        self._left_s = [0.0] * replica.lanes  # of each batch
        self._missing = [replica.rows] * _REQUESTS  # rows of each request without a score
        self._parts = [0] * _REQUESTS  # running batches that have rows of a request
        self._queued_at = [0.0] * _REQUESTS
        self._done = np.full(_REQUESTS, np.inf)

    def run(self) -> tuple[npt.NDArray[np.float64], float]:
        """Return the latency of each request (s), and the share of the time that lanes are busy."""
        now, busy_s, done = 0.0, 0.0, 0
        most_waiting = max(100.0, _MOST_WAITING_S * min(self._replica.limits.values()))
        while done < _REQUESTS:
            running = [lane for lane, batch in enumerate(self._lanes) if batch]
            active = len(running) + bool(self._front or self._inline)
            speed = min(1.0, self._cores / active) if active else 1.0
            step = math.inf
            if self._arrived < _REQUESTS:
                step = self._arrivals[self._arrived] - now
            if self._inline:
                step = min(step, self._inline_left_s / speed)
            elif self._front:
                step = min(step, self._front_left_s / speed)
            for lane in running:
                step = min(step, self._left_s[lane] / speed)
            if self._waits(now):
                step = min(step, self._oldest_s() + self._replica.max_wait_s - now)
            now += step
            busy_s += step * (len(running) + bool(self._inline))
            progress = step * speed
            for lane in running:
                self._left_s[lane] -= progress
                if self._left_s[lane] <= 1e-12:
                    done += self._finish(lane, now)
            if self._inline:
                done += self._advance_inline(progress, now)
            elif self._front:
                self._advance_front(progress, now)
            while self._arrived < _REQUESTS and self._arrivals[self._arrived] <= now:
                self._arrive()
            self._dispatch(now)
            if len(self._front) + len(self._waiting) > most_waiting:
                break
        return self._done - self._arrivals, busy_s / (now * self._replica.lanes)

    def _arrive(self) -> None:
        if not self._front:
            self._front_left_s = self._replica.front_s
        self._front.append(self._arrived)
        self._arrived += 1

    def _advance_front(self, progress: float, now: float) -> None:
        self._front_left_s -= progress
        if self._front_left_s > 1e-12:
            return
        self._queued_at[self._front[0]] = now
        self._waiting.append([self._front.popleft(), self._replica.rows])
        self._waiting_rows += self._replica.rows
        self._front_left_s = self._replica.front_s

    def _advance_inline(self, progress: float, now: float) -> int:
        self._inline_left_s -= progress
        if self._inline_left_s > 1e-12:
            return 0
        finished, self._inline = self._inline, ()
        self._done[list(finished)] = now
        return len(finished)

    def _waits(self, now: float) -> bool:
        """Whether the rows that wait are too few and too young for a batch."""
        replica = self._replica
        is_few = 0 < self._waiting_rows < replica.max_batch_rows
        return is_few and self._oldest_s() + replica.max_wait_s - now > 1e-12

    def _oldest_s(self) -> float:
        return self._queued_at[self._waiting[0][0]]

    def _dispatch(self, now: float) -> None:
        """Give every idle lane its share of the rows that wait, as `Queues.take` does."""
        replica = self._replica
        if self._inline or self._waits(now):
            return
        idle = [lane for lane, batch in enumerate(self._lanes) if not batch]
        cost_s = replica.batch_s + replica.row_s * self._waiting_rows
        is_short = self._waiting and cost_s <= longest_inline_s(len(self._waiting))
        if idle and is_short and replica.runs_inline and not replica.is_gpu:
            self._inline = tuple(request for request, _ in self._waiting)
            self._inline_left_s = cost_s
            self._waiting.clear()
            self._waiting_rows = 0
            return
        for position, lane in enumerate(idle):
            if not self._waiting:
                return
            share = math.ceil(self._waiting_rows / (len(idle) - position))
            room = target = min(replica.max_batch_rows, max(replica.min_chunk_rows, share))
            batch: list[int] = []
            while self._waiting and room:
                first = self._waiting[0]
                rows = min(room, first[1])
                if rows < first[1] and batch and rows < replica.min_chunk_rows:
                    break
                batch.append(first[0])
                self._parts[first[0]] += 1
                first[1] -= rows
                room -= rows
                if not first[1]:
                    self._waiting.popleft()
                    self._missing[batch[-1]] = 0
            taken = target - room
            self._waiting_rows -= taken
            self._lanes[lane] = tuple(batch)
            self._left_s[lane] = replica.batch_s + replica.row_s * taken

    def _finish(self, lane: int, now: float) -> int:
        """End a lane's batch; return how many requests are complete."""
        complete = 0
        for request in self._lanes[lane]:
            self._parts[request] -= 1
            if not self._parts[request] and not self._missing[request]:
                self._done[request] = now
                complete += 1
        self._lanes[lane] = ()
        return complete


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many replicas serve an objective.

    Attributes:
        limit: the forecast of one replica at the highest rate that meets the objective.
        planned: its forecast at the rate that it is meant to have.
        replicas: how many are needed.
    """

    limit: Forecast
    planned: Forecast
    replicas: int


def fleet(
    process: Replica, rate: float, p99_s: float, headroom: float, processes: int = 1
) -> Fleet | None:
    """Return the replicas that a rate needs, or None if no rate meets the objective.

    Each process of a replica has an event loop and lanes of its own, and the kernel distributes the
    connections, so that it does what a replica of one process does with its part of the cores.

    Args:
        process: the costs of one process.
        rate: of all (1/s).
        p99_s: the most that the 99th percentile of the latency may be.
        headroom: share of each replica's capacity that stays free, 0 to below 1.
        processes: of a replica.
    """
    limit = capacity(process, p99_s)
    if limit is None:
        return None
    replicas = math.ceil(rate / (limit.rate * processes * (1 - headroom)))
    planned = forecast(process, rate / (replicas * processes))
    return Fleet(
        replace(limit, rate=limit.rate * processes),
        replace(planned, rate=planned.rate * processes),
        replicas,
    )
