"""One connection's worth of callers, one after the other; some leave."""

import asyncio
import random
from dataclasses import dataclass, field

from tests.soak.requests import Sent, draw, fault


@dataclass
class Books:
    """What was sent, and what became of it.

    Attributes:
        total: how many requests there are to be.
        taken: how many have been given to a connection.
        seen: answers by status.
        left: requests whose callers left; the server may have answered them or not.
        faults: what was wrong, the first few in words.
    """

    total: int
    taken: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    left: int = 0
    wrong: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """How many requests are over."""
        return self.left + sum(self.seen.values())

    def find(self, what: str) -> None:
        """Note that something is wrong."""
        self.wrong += 1
        if len(self.faults) < 10:
            self.faults.append(what)


async def call(port: int, seed: int, books: Books) -> None:
    """Send requests over one connection after the other until all are taken."""
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
    """A connection that is kept alive.

    A second answer to one request would be taken for that of the next, and found to be another's.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def to(cls, port: int) -> "Connection":
        """Open one."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def answer_to(self, sent: Sent) -> tuple[int, str | None]:
        """Return the status of a request's answer, and what is wrong with it."""
        self.writer.write(sent.content)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        if not lines[0].startswith("http/1.1 "):
            raise ValueError(f"an answer begins with {lines[0]!r}")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        status = int(lines[0].split()[1])
        return status, fault(sent, status, headers, body)

    async def leave(self, sent: Sent) -> None:
        """Send a request, or its first half, and close."""
        content = sent.content
        if sent.leaving == "leaves in the body":
            body = content.index(b"\r\n\r\n") + 4
            content = content[: (body + len(content)) // 2]
        self.writer.write(content)
        await self.writer.drain()
        await asyncio.sleep(sent.patience_s)
        self.close()

    def close(self) -> None:
        """Close it; what was written still goes out."""
        self.writer.close()
