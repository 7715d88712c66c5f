"""A client that sends requests one after the other over a connection. Some requests disconnect."""

import asyncio
import random
from dataclasses import dataclass, field

from tests.soak.requests import Sent, draw, fault


@dataclass
class Books:
    """The results of all clients.

    Attributes:
        total: number of requests to send.
        taken: number of requests assigned to a connection.
        seen: responses by status.
        left: requests whose client disconnected; the server may have answered them or not.
        wrong: number of wrong responses.
        faults: descriptions of the first wrong responses.
    """

    total: int
    taken: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    left: int = 0
    wrong: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Number of finished requests."""
        return self.left + sum(self.seen.values())

    def find(self, what: str) -> None:
        """Record a wrong response."""
        self.wrong += 1
        if len(self.faults) < 10:
            self.faults.append(what)


async def call(port: int, seed: int, books: Books) -> None:
    """Send requests, over one connection at a time, until all are taken."""
    connection: Connection | None = None
    while books.taken < books.total:
        number = books.taken
        books.taken += 1
        sent = draw(number, random.Random(f"{seed} {number}"))
        if connection is None:
            connection = await Connection.to(port)
        if sent.leaving != "stays":
            await connection.leave(sent)
            connection = None
            books.left += 1
            continue
        try:
            status, found = await connection.answer_to(sent)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            books.find(f"request {number} was not answered: {error!r}")
            books.seen[0] = books.seen.get(0, 0) + 1
            connection = None
            continue
        books.seen[status] = books.seen.get(status, 0) + 1
        if found:
            books.find(f"request {number}: {found}")
    if connection is not None:
        connection.close()


@dataclass(frozen=True, slots=True)
class Connection:
    """A persistent connection.

    A second response to a request would be read as the response to the next one, and found wrong.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def to(cls, port: int) -> "Connection":
        """Open a connection to a port of 127.0.0.1."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def answer_to(self, sent: Sent) -> tuple[int, str | None]:
        """Send a request; return the status of the response and what is wrong with it, or None."""
        self.writer.write(sent.content)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        if not lines[0].startswith("http/1.1 "):
            raise ValueError(f"response begins with {lines[0]!r}")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        status = int(lines[0].split()[1])
        return status, fault(sent, status, headers, body)

    async def leave(self, sent: Sent) -> None:
        """Send a request, or the first half of its body, and close the connection."""
        content = sent.content
        if sent.leaving == "leaves in the body":
            body = content.index(b"\r\n\r\n") + 4
            content = content[: (body + len(content)) // 2]
        self.writer.write(content)
        await self.writer.drain()
        await asyncio.sleep(sent.patience_s)
        self.close()

    def close(self) -> None:
        """Close the connection after sending buffered data."""
        self.writer.close()
