"""A transport on which the head of an answer waits for its body, so that both go in one write.

The server writes them one after the other, and each write is a call of the kernel, about 10 µs.
"""

import asyncio


class Corked:
    """Stands for a connection's transport during one answer that has a body."""

    __slots__ = ("_head", "_is_begun", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        """Begin before anything is written."""
        self._transport = transport
        self._head: bytes | None = None
        self._is_begun = False

    def write(self, data: bytes) -> None:
        """Keep an answer's head; write everything else, with the head that was kept before it."""
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head + data)
        elif self._is_begun or data.startswith(b"HTTP/1.1 1"):  # 100 Continue is no answer yet
            self._transport.write(data)
        else:
            self._is_begun = True
            self._head = data

    def is_closing(self) -> bool:
        """Whether the connection is at its end."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close the connection after what was written, a head without a body too."""
        if self._head is not None:
            self.write(b"")
        self._transport.close()
