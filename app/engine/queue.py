"""The queues: one for each model, and the order of turns. Owned by the event loop.

A request enters its model's queue as one chunk. A turn is as many rows as a batch has. The rows
that a batch takes leave the queue. When the turn is over, the rest of the chunk goes to the back,
so that small requests are not stuck behind a large one (deficit round robin; Shreedhar and
Varghese, SIGCOMM '95). Higher priorities run first. In one of `AGED_EVERY` batches a chunk counts
one priority higher for every `AGEING_S` that it waited, so that `low` requests never starve.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from weakref import WeakKeyDictionary

from app.artifacts.loader import Model
from app.engine.batch import Batch, Chunk
from app.engine.cost import Cost
from app.engine.request import BatchTiming, Priority, QueuedRequest
from app.errors import ClientDisconnected

AGEING_S = 0.25
"""After half a second, a `low` request counts as `high` in one of `AGED_EVERY` batches."""

AGED_EVERY = 4
"""Age counts in one of this many batches: low priorities always make progress. The other batches
go to high priorities first, however old the rest of the queue is."""

BATCH_SHARE = 0.25
"""A batch takes at most this part of the shortest recent timeout."""

KNEE = 4
"""In units of a/b: in a batch of `KNEE · a/b` rows, a row costs a quarter more than at best."""

REMEMBER_S = 5.0
"""Timeouts of requests count as recent for at least this long."""

RECOVERY_BATCHES = 1000
"""After this many good batches, a batch limit that was halved after out-of-memory is doubled."""

SWEEP_S = 0.01
"""A full queue is searched for finished requests at most this often; it takes milliseconds."""


@dataclass(slots=True)
class PriorityLevel:
    """The chunks of one priority, in the order of their turns.

    Attributes:
        rows: how many rows they have.
        turn_rows: how many of these rows run before the turn of each chunk is over.
    """

    priority: Priority
    chunks: deque[Chunk] = field(default_factory=deque)
    rows: int = 0
    turn_rows: int = 0

    def urgency(self, aged_at: float | None) -> tuple[int, float]:
        """Return the priority of the first chunk and the time (s) from which it waits.

        With a clock time (s), the chunk's age at that time raises its priority.
        """
        since = self.chunks[0].since
        steps = 0 if aged_at is None else int((aged_at - since) / AGEING_S)
        return max(0, self.priority - steps), since

    def __repr__(self) -> str:
        return f"{self.priority.name.lower()} {list(self.chunks)}"


class ModelQueue:
    """The chunks that wait for one model, and the cost of its batches.

    Attributes:
        rows: how many rows wait.
        cost: how long a batch keeps a lane busy.
        cpu_cost: the CPU time of a batch.
        memory_limit_rows: the most rows of a batch that fit into memory.
    """

    def __init__(
        self, timeouts: "RecentTimeouts", *, max_batch_rows: int, min_chunk_rows: int
    ) -> None:
        """Start empty; see `Batcher` for the limits."""
        self.rows = 0
        self.cost = Cost()
        self.cpu_cost = Cost()
        self._timeouts = timeouts
        self.memory_limit_rows = max_batch_rows
        self._turn_rows = max_batch_rows
        self._batches_since_halved = 0
        self._min_chunk_rows = min_chunk_rows
        self._levels = tuple(PriorityLevel(priority) for priority in Priority)
        self._retries: deque[Batch] = deque()  # halves of batches that failed; they run first

    def __len__(self) -> int:
        # Called from other threads too: iterate over a copy.
        retries = sum([len(batch.chunks) for batch in list(self._retries)])
        return retries + sum([len(level.chunks) for level in self._levels])

    def __repr__(self) -> str:
        retries = [f"retry {batch}" for batch in self._retries]
        levels = [f"{level}" for level in self._levels if level.chunks]
        return f"<{self.rows} rows: {', '.join(retries + levels)}>"

    @property
    def max_batch_rows(self) -> int:
        """The most rows of a batch.

        It is below the setting after out-of-memory, and if a full batch would keep a lane busy for
        longer than `BATCH_SHARE` of the shortest recent timeout: requests must find a lane in time.
        But it is never so small that a row costs more than `1 + 1/KNEE` of the best.
        """
        limit, cost = self.memory_limit_rows, self.cost
        longest_s = BATCH_SHARE * self._timeouts.shortest_s
        if cost.of(limit) <= longest_s:
            return limit
        rows = max((longest_s - cost.a_s) / cost.b_s, KNEE * cost.a_s / cost.b_s)
        return max(1, min(limit, int(rows)))

    @property
    def oldest_arrival(self) -> float:
        """Clock time (s) at which the oldest row arrived; looks at every chunk."""
        waiting: list[Iterable[Chunk]] = [level.chunks for level in self._levels]
        waiting += [batch.chunks for batch in self._retries]
        return min(chunk.request.arrival for chunk in chain.from_iterable(waiting))

    def rows_as_urgent(self, priority: Priority) -> int:
        """Return how many rows wait with this priority or a higher one."""
        retries = sum([batch.rows for batch in self._retries])
        return retries + sum([level.rows for level in self._levels[: priority + 1]])

    def rows_before(self, rows: int, priority: Priority) -> int:
        """Return how many rows run before the last of `rows` more rows, if the queue stays full."""
        ahead = 0
        for level in self._levels[: priority + 1]:
            ahead += level.turn_rows
        if rows > self._turn_rows:
            ahead *= -(-rows // self._turn_rows)
        for batch in self._retries:
            ahead += batch.rows
        return ahead

    def rows_beside(self, batches: int, priority: Priority) -> int:
        """Return how many rows run, at most, while another model runs so many batches.

        Higher priorities run before them; the same priority takes turns with them.
        """
        ahead = sum([level.rows for level in self._levels[:priority]])
        level_rows = self._levels[priority].rows + sum([batch.rows for batch in self._retries])
        return ahead + min(level_rows, batches * self.max_batch_rows)

    def urgency(self, aged_at: float | None) -> int:
        """Return the priority of the most urgent chunk; see `PriorityLevel.urgency`."""
        retries = [chunk.request.priority for batch in self._retries for chunk in batch.chunks]
        return min(
            [*retries, *(level.urgency(aged_at)[0] for level in self._levels if level.chunks)]
        )

    def observe(self, rows: int, timing: BatchTiming) -> bool:
        """Learn from a batch that ran; return whether the batch limit was raised again."""
        self.cost.observe(rows, timing.busy_s)
        self.cpu_cost.observe(rows, timing.cpu_s)
        self._batches_since_halved += 1
        if (
            self.memory_limit_rows == self._turn_rows
            or self._batches_since_halved < RECOVERY_BATCHES
        ):
            return False
        self._batches_since_halved = 0
        self.memory_limit_rows = min(2 * self.memory_limit_rows, self._turn_rows)
        return True

    def append(self, request: QueuedRequest, start: int, now: float) -> None:
        """Queue a request from row `start` on."""
        features = request.features
        stop = features.rows
        rows = stop - start
        turn = rows if rows < self._turn_rows else self._turn_rows
        level = self._levels[request.priority]
        level.chunks.append(Chunk(request, features, start, stop, now, turn))
        level.rows += rows
        level.turn_rows += turn
        self.rows += rows

    def retry(self, batches: Iterable[Batch]) -> None:
        """Run these batches next, each by itself."""
        for batch in batches:
            self._retries.append(batch)
            self.rows += batch.rows

    def halve_batches(self, failed: Batch) -> None:
        """Halve the batch limit after out-of-memory, and queue the failed chunks again in front."""
        self.memory_limit_rows = max(1, min(self.memory_limit_rows, failed.rows // 2))
        self._batches_since_halved = 0
        for chunk in reversed(failed.chunks):
            level = self._levels[chunk.request.priority]
            rows = chunk.rows
            level.chunks.appendleft(
                Chunk(
                    chunk.request, chunk.features, chunk.start, chunk.stop, chunk.since, turn=rows
                )
            )
            self._count(level, rows, rows)

    def drop_finished(self, now: float) -> None:
        """Drop the chunks whose requests are done, expired or disconnected."""
        for level in self._levels:
            for _ in range(len(level.chunks)):
                chunk = level.chunks.popleft()
                if _is_active(chunk.request, now):
                    level.chunks.append(chunk)
                else:
                    _report_disconnect(chunk.request, now)
                    self._count(level, -chunk.rows, -chunk.turn)

    def take(self, target: int, now: float, aged_at: float | None = None) -> Batch | None:
        """Take a batch of about `target` rows from the front, at most `max_batch_rows`.

        Requests that are done, expired or disconnected are dropped. Requests that would be late
        are dropped too while others wait: computing them would make the others late as well. The
        last request always runs, or a cost that was overestimated would never be corrected.

        Args:
            target: how many rows the batch should have.
            now: clock time (s).
            aged_at: clock time (s) for counting age; None ignores age.

        Returns:
            None if no request is left.
        """
        while self._retries:
            batch = self._retries.popleft()
            self.rows -= batch.rows
            active = [chunk for chunk in batch.chunks if _is_active(chunk.request, now)]
            if len(active) < len(batch.chunks):
                for chunk in batch.chunks:
                    _report_disconnect(chunk.request, now)
            if active:
                return Batch.of(batch.model, active, batch.retries)
        late = now + self.cost.of(min(target, self.rows))
        chunks: list[Chunk] = []
        rows = 0
        while rows < target and (level := self._first_level(aged_at)) is not None:
            chunk = level.chunks[0]
            request = chunk.request
            chunk_rows = chunk.stop - chunk.start
            is_late = request.deadline < late and self.rows > chunk_rows
            if is_late or not _is_active(request, now):
                level.chunks.popleft()
                self._count(level, -chunk_rows, -chunk.turn)
                _report_disconnect(request, now)
                continue
            if chunk_rows <= target - rows:
                level.chunks.popleft()
                self._count(level, -chunk_rows, -chunk.turn)
            else:
                chunk_rows = self._cut(chunk_rows, rows, target)
                if chunk_rows == 0:
                    break
                chunk = self._take_part(level, chunk_rows, now)
            chunks.append(chunk)
            rows += chunk_rows
        return Batch(chunks[0].request.model, chunks, rows) if chunks else None

    def _first_level(self, aged_at: float | None) -> PriorityLevel | None:
        chosen = None
        for level in self._levels:
            if level.chunks:
                if chosen is not None:
                    waiting = [level for level in self._levels if level.chunks]
                    return min(waiting, key=lambda level: level.urgency(aged_at))
                chosen = level
        return chosen

    def _count(self, level: PriorityLevel, rows: int, turn: int) -> None:
        level.rows += rows
        level.turn_rows += turn
        self.rows += rows

    def _take_part(self, level: PriorityLevel, rows: int, now: float) -> Chunk:
        """Take `rows` rows of the first chunk; when its turn is over, the rest goes to the back."""
        chunk = level.chunks.popleft()
        request, cut = chunk.request, chunk.start + rows
        if cut == chunk.stop:
            self._count(level, -rows, -chunk.turn)
            return chunk
        if rows < chunk.turn:
            self._count(level, -rows, -rows)
            turn = chunk.turn - rows
            rest = Chunk(request, chunk.features, cut, chunk.stop, chunk.since, turn)
            level.chunks.appendleft(rest)
        else:
            self._count(level, -chunk.rows, -chunk.turn)
            self.append(request, cut, now)
        return Chunk(request, chunk.features, chunk.start, cut, chunk.since, chunk.turn)

    def _cut(self, chunk_rows: int, rows: int, target: int) -> int:
        """Return how many rows of a chunk join a batch that already has `rows`; 0 for none.

        It is all of them, or a number that leaves neither part below `min_chunk_rows`.
        """
        limit = self.max_batch_rows
        shortest = min(self._min_chunk_rows, limit)
        longest = chunk_rows - shortest
        if (cut := min(target - rows, longest)) >= shortest:
            return cut
        # Not worth splitting at the target; the batch may grow to its limit instead.
        space = limit - rows
        if chunk_rows <= space:
            return chunk_rows
        if (cut := min(space, longest)) >= shortest:
            return cut
        return 0 if rows else space


def _is_active(request: QueuedRequest, now: float) -> bool:
    return not (request.is_done or request.deadline <= now or request.is_disconnected())


def _report_disconnect(request: QueuedRequest, now: float) -> None:
    """Fail a request whose client disconnected; an expired one is failed by its deadline."""
    if not request.is_done and request.deadline > now and request.is_disconnected():
        request.fail(ClientDisconnected("queue"))


class RecentTimeouts:
    """The shortest timeout of recent requests, of any model and priority (s)."""

    def __init__(self) -> None:
        """Start without requests: the time of a batch is not limited."""
        self.shortest_s = math.inf
        self._shortest_now_s = math.inf  # since `_since`
        self._since = -math.inf  # clock time (s)

    def add(self, timeout_s: float, now: float) -> None:
        """Take note of a request; it counts for `REMEMBER_S` to twice as long."""
        if now - self._since >= REMEMBER_S:
            self.shortest_s = self._shortest_now_s
            self._shortest_now_s = math.inf
            self._since = now
        if timeout_s < self._shortest_now_s:
            self._shortest_now_s = timeout_s
            if timeout_s < self.shortest_s:
                self.shortest_s = timeout_s


class Queues:
    """The queues of all models. Models that have rows take turns.

    A model's queue, with what it has learned about costs, is kept as long as the model lives.

    Attributes:
        timeouts: of recent requests to any model.
    """

    def __init__(self, *, max_batch_rows: int, min_chunk_rows: int, max_wait_s: float) -> None:
        """Start empty; see `Batcher` for the arguments."""
        self._max_batch_rows = max_batch_rows
        self._min_chunk_rows = min_chunk_rows
        self._max_wait_s = max_wait_s
        self.timeouts = RecentTimeouts()
        self._queues: WeakKeyDictionary[Model, ModelQueue] = WeakKeyDictionary()
        self._turns: dict[Model, ModelQueue] = {}  # the models that have rows, next one first
        self._batches_taken = 0
        self._swept_at = -math.inf  # clock time (s) of the last `drop_finished`

    def __repr__(self) -> str:
        return f"{ {str(model): queue for model, queue in self._turns.items()} }"

    def __bool__(self) -> bool:
        return bool(self._turns)

    @property
    def rows(self) -> int:
        """How many rows wait; any thread may ask."""
        return sum([queue.rows for queue in list(self._turns.values())])

    @property
    def chunks(self) -> int:
        """How many requests, or chunks of one, wait; any thread may ask."""
        return sum(map(len, list(self._turns.values())))

    @property
    def waiting(self) -> Iterable[ModelQueue]:
        """The queues that have rows."""
        return self._turns.values()

    @property
    def all(self) -> dict[Model, ModelQueue]:
        """Every queue, by model."""
        return dict(self._queues)

    def of(self, model: Model) -> ModelQueue:
        """Return a model's queue."""
        queue = self._turns.get(model)
        if queue is None:
            queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = ModelQueue(
                self.timeouts,
                max_batch_rows=self._max_batch_rows,
                min_chunk_rows=self._min_chunk_rows,
            )
        return queue

    def append(self, request: QueuedRequest, now: float) -> None:
        """Queue a request."""
        model = request.model
        queue = self._turns.get(model)
        if queue is None:
            queue = self._turns[model] = self.of(model)
        queue.append(request, 0, now)

    def resume(self, model: Model) -> None:
        """Give a model its turn if rows were put back into its queue."""
        queue = self.of(model)
        if queue.rows:
            self._turns.setdefault(model, queue)

    def drop_finished(self, now: float) -> None:
        """Drop the chunks that no client waits for; at most once in `SWEEP_S`."""
        if now - self._swept_at < SWEEP_S:
            return
        self._swept_at = now
        for queue in self._turns.values():
            queue.drop_finished(now)
        self._turns = {model: queue for model, queue in self._turns.items() if queue.rows}

    def next(self, now: float) -> tuple[Model, float]:
        """Return the model whose turn it is, and how long (s) its rows may wait for more rows."""
        ready = self._turns
        if self._max_wait_s > 0:
            waits = {model: self._wait_s(queue, now) for model, queue in self._turns.items()}
            ready = {model: self._turns[model] for model, wait_s in waits.items() if wait_s <= 0}
            if not ready:
                return min(waits.items(), key=itemgetter(1))
        if len(ready) == 1:
            return next(iter(ready)), 0.0
        aged_at = self._aged_at(now)
        return min(ready, key=lambda model: ready[model].urgency(aged_at)), 0.0

    def take(self, model: Model, lanes: int, now: float) -> Batch | None:
        """Take a batch of the model whose turn it is, and move the model behind the others.

        The rows are shared between the idle `lanes`, so that a single large request is as fast as
        possible. Returns None if no client waits for any of the rows.
        """
        queue = self._turns.pop(model)
        share = math.ceil(queue.rows / lanes)
        target = min(queue.max_batch_rows, max(self._min_chunk_rows, share))
        batch = queue.take(target, now, self._aged_at(now))
        if queue.rows:
            self._turns[model] = queue
        if batch is not None:
            self._batches_taken += 1
        return batch

    def _aged_at(self, now: float) -> float | None:
        return None if self._batches_taken % AGED_EVERY else now

    def _wait_s(self, queue: ModelQueue, now: float) -> float:
        if queue.rows >= queue.max_batch_rows:
            return 0.0
        return queue.oldest_arrival + self._max_wait_s - now
