"""How many bytes of request bodies may be on their way at once, in all connections together.

One body is bounded by its own limit; many at once are bounded here. Who would go over is refused
with 429 before anything is read, or, where the length was not announced, while it is read.
"""

from types import TracebackType
from typing import Self

from app.errors import Overloaded
from app.telemetry.metrics import Metrics

UNCOUNTED_BYTES = 64 << 10
"""A body up to this size is not counted: the server buffers as much for any connection before a
route sees a byte of it. So small requests pay nothing, and go on while large ones are refused."""


class ByteBudget:
    """A number of bytes that bodies share; belongs to the event loop."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        """Let in so many bytes at once."""
        self.held = 0
        self._most = most
        self._metrics = metrics

    def __repr__(self) -> str:
        """Return what is taken of what there is."""
        return f"<ByteBudget {self.held} of {self._most} bytes>"

    def take(self, size: int) -> None:
        """Take more.

        Raises:
            Overloaded: there is not so much left.
        """
        if self.held + size > self._most:
            self._metrics.shed("bodies")
            raise Overloaded("too many bytes of request bodies are on their way")
        self.held += size


class Share:
    """One body's part of a budget, given back at the end of its `with` block."""

    __slots__ = ("_budget", "_held")

    def __init__(self, budget: ByteBudget) -> None:
        """Begin with nothing."""
        self._budget = budget
        self._held = 0

    def cover(self, size: int) -> None:
        """Grow to a body of `size` bytes.

        Raises:
            Overloaded: the budget has not so much left.
        """
        if size > UNCOUNTED_BYTES and size > self._held:
            self._budget.take(size - self._held)
            self._held = size

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give everything back."""
        self._budget.held -= self._held
        self._held = 0
