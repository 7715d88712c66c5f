"""The queue of one model: chunks of requests in the order of their turns.

A request enters as one chunk. Its turn is as many rows as a batch has; what is cut off for a batch
leaves, and when the turn is over the rest goes to the back, so that small requests are not stuck
behind a large one (deficit round robin; Shreedhar and Varghese, SIGCOMM '95). For some of the
batches a chunk has moved up by one priority every `AGEING_S`, so that none waits for ever. Owned by
the event loop.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain

from app.engine.batch import Batch, Chunk, QueuedRequest
from app.engine.cost import Cost
from app.engine.request import Priority
from app.errors import ClientDisconnected

AGEING_S = 0.25
"""A `low` request counts as `high` after half a second, for one batch in `AGED_EVERY`."""


RECOVERY_BATCHES = 1000
"""After so many good batches of a size that was halved for lack of memory, it is doubled."""


@dataclass(slots=True)
class Turns:
    """Pieces of one priority, the one whose turn it is first.

    Attributes:
        chunks: in the order of their turns, which is that of their coming here.
        rows: how many they have.
        next_rows: how many of them go before each chunk's turn is over.
    """

    priority: Priority
    chunks: deque[Chunk] = field(default_factory=deque)
    rows: int = 0
    next_rows: int = 0

    def urgency(self, aged_at: float | None) -> tuple[int, float]:
        """Return the priority of the first chunk and since when it waits.

        Its age at a clock time (s) is counted in where one is given.
        """
        since = self.chunks[0].since
        steps = 0 if aged_at is None else int((aged_at - since) / AGEING_S)
        return max(0, self.priority - steps), since

    def __repr__(self) -> str:
        return f"{self.priority.name.lower()} {list(self.chunks)}"


class ModelQueue:
    """Pieces that wait for one model, and what is known of its batches.

    Attributes:
        rows: how many wait.
        cost: what a batch takes.
        row_bytes: the most that a row took in a request's body of late; how many rows a body has at
            least is told by it before the body is read.
        max_batch_rows: the most rows of a batch; less than at first where memory ran out.
    """

    def __init__(self, *, max_batch_rows: int, min_chunk_rows: int) -> None:
        """Start empty; see `Batcher` for the limits."""
        self.rows = 0
        self.cost = Cost()
        self.row_bytes = 0.0
        self.max_batch_rows = max_batch_rows
        self._turn_rows = max_batch_rows
        self._since_halved = 0  # batches
        self._min_piece_rows = min_chunk_rows
        self._turns = tuple(Turns(priority) for priority in Priority)
        self._again: deque[Batch] = deque()  # parts of batches that failed; they go first

    def __len__(self) -> int:
        again = sum([len(group.chunks) for group in list(self._again)])  # any thread may ask
        return again + sum([len(turns.chunks) for turns in self._turns])

    def __repr__(self) -> str:
        groups = [f"again {group}" for group in self._again]
        turns = [f"{turns}" for turns in self._turns if turns.chunks]
        return f"<{self.rows} rows: {', '.join(groups + turns)}>"

    @property
    def oldest_arrival(self) -> float:
        """Clock time (s) since when the oldest row waits; looks at every chunk."""
        waiting: list[Iterable[Chunk]] = [turns.chunks for turns in self._turns]
        waiting += [group.chunks for group in self._again]
        return min(chunk.pending.arrival for chunk in chain.from_iterable(waiting))

    def rows_as_urgent(self, priority: Priority) -> int:
        """Return how many rows wait that are as urgent or more."""
        again = sum([group.rows for group in self._again])
        return again + sum([turns.rows for turns in self._turns[: priority + 1]])

    def learn(self, rows: int, duration_s: float) -> bool:
        """Learn from a batch that ran; return whether batches may be larger again from now on."""
        self.cost.observe(rows, duration_s)
        self._since_halved += 1
        if self.max_batch_rows == self._turn_rows or self._since_halved < RECOVERY_BATCHES:
            return False
        self._since_halved = 0
        self.max_batch_rows = min(2 * self.max_batch_rows, self._turn_rows)
        return True

    def rows_before(self, rows: int, priority: Priority) -> int:
        """Return how many rows go before the last of `rows` more, if others come as these go."""
        ahead = 0
        for turns in self._turns[: priority + 1]:
            ahead += turns.next_rows
        if rows > self._turn_rows:
            ahead *= -(-rows // self._turn_rows)
        for group in self._again:
            ahead += group.rows
        return ahead

    def rows_beside(self, batches: int, priority: Priority) -> int:
        """Return how many rows go, at most, while another model gets so many batches.

        What is more urgent than `priority` goes before them; what is as urgent takes turns.
        """
        ahead = sum([turns.rows for turns in self._turns[:priority]])
        level = self._turns[priority].rows + sum([group.rows for group in self._again])
        return ahead + min(level, batches * self.max_batch_rows)

    def urgency(self, aged_at: float | None) -> int:
        """Return the priority of the most urgent chunk; see `Turns.urgency` for its age."""
        again = [chunk.pending.terms.priority for each in self._again for chunk in each.chunks]
        return min([*again, *(each.urgency(aged_at)[0] for each in self._turns if each.chunks)])

    def append(self, pending: QueuedRequest, start: int, now: float) -> None:
        """Let a request, from row `start` on, wait for its turn."""
        stop = pending.request.rows
        turn = min(stop - start, self._turn_rows)
        turns = self._turns[pending.terms.priority]
        turns.chunks.append(Chunk(pending, start, stop, now, turn))
        self._count(turns, stop - start, turn)

    def put_back(self, groups: Iterable[Batch]) -> None:
        """Let groups run next, each by itself."""
        for group in groups:
            self._again.append(group)
            self.rows += group.rows

    def halve(self, group: Batch) -> None:
        """Let a group for which memory ran out run again in smaller batches, as do all others."""
        self.max_batch_rows = max(1, min(self.max_batch_rows, group.rows // 2))
        self._since_halved = 0
        for chunk in reversed(group.chunks):
            turns = self._turns[chunk.pending.terms.priority]
            turns.chunks.appendleft(replace(chunk, turn=chunk.rows))
            self._count(turns, chunk.rows, chunk.rows)

    def drop_over(self, now: float) -> None:
        """Drop the chunks that nobody waits for any more."""
        for turns in self._turns:
            for _ in range(len(turns.chunks)):
                chunk = turns.chunks.popleft()
                if self._is_over(chunk.pending, now):
                    self._count(turns, -chunk.rows, -chunk.turn)
                else:
                    turns.chunks.append(chunk)

    def take(self, target: int, now: float, aged_at: float | None = None) -> Batch | None:
        """Take a batch of about `target` rows from the front, at most `max_batch_rows`.

        Where a time is given, age at that time is counted in. Pieces whose callers left or whose
        deadlines passed are dropped on the way, and so are those that would be late, as long as
        others wait: to compute them would make those late as well. The last one always runs, since
        a cost that is overrated would stay so. Where nobody waits any more, there is no batch.
        """
        ends = now + self.cost.of(min(target, self.rows))
        while self._again:
            group = self._again.popleft()
            self.rows -= group.rows
            waited_for = [p for p in group.chunks if not self._is_over(p.pending, now)]
            if waited_for:
                return Batch(waited_for, group.reruns)
        batch: list[Chunk] = []
        rows = 0
        while rows < target and (turns := self._first(aged_at)) is not None:
            chunk = turns.chunks[0]
            late = chunk.pending.terms.deadline < ends and self.rows > chunk.rows
            if late or self._is_over(chunk.pending, now):
                turns.chunks.popleft()
                self._count(turns, -chunk.rows, -chunk.turn)
                continue
            taken = self._cut(chunk.rows, rows, target)
            if taken == 0:
                break
            batch.append(self._pop(turns, taken, now))
            rows += taken
        return Batch(batch) if batch else None

    def _first(self, aged_at: float | None) -> Turns | None:
        waiting = [turns for turns in self._turns if turns.chunks]
        if len(waiting) > 1:
            return min(waiting, key=lambda turns: turns.urgency(aged_at))
        return waiting[0] if waiting else None

    def _is_over(self, pending: QueuedRequest, now: float) -> bool:
        """Whether nobody waits for a request: its caller is told, or left, or is told just now."""
        if pending.future.done() or pending.terms.deadline <= now:
            return True
        if pending.terms.is_disconnected():
            pending.fail(ClientDisconnected("queue"))
            return True
        return False

    def _count(self, turns: Turns, rows: int, turn: int) -> None:
        turns.rows += rows
        turns.next_rows += turn
        self.rows += rows

    def _pop(self, turns: Turns, rows: int, now: float) -> Chunk:
        """Take `rows` rows of the first chunk; if its turn is over, the rest goes to the back."""
        chunk = turns.chunks.popleft()
        cut = chunk.start + rows
        if cut == chunk.stop:
            self._count(turns, -rows, -chunk.turn)
            return chunk
        if rows < chunk.turn:
            self._count(turns, -rows, -rows)
            turns.chunks.appendleft(replace(chunk, start=cut, turn=chunk.turn - rows))
        else:
            self._count(turns, -chunk.rows, -chunk.turn)
            self.append(chunk.pending, cut, now)
        return replace(chunk, stop=cut)

    def _cut(self, wanted: int, rows: int, target: int) -> int:
        """Return how many of `wanted` rows join a batch that holds `rows` already, maybe none.

        It is all of them, or so many that neither they nor the rest are below `min_chunk_rows`.
        """
        if wanted <= target - rows:
            return wanted
        longest_piece = wanted - self._min_piece_rows
        if (cut := min(target - rows, longest_piece)) >= self._min_piece_rows:
            return cut
        # Not worth splitting at the target; the batch may grow to its limit instead.
        space = self.max_batch_rows - rows
        if wanted <= space:
            return wanted
        if (cut := min(space, longest_piece)) >= self._min_piece_rows:
            return cut
        return 0 if rows else space
