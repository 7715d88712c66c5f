"""One response for all processes of a service: metrics with the label `process`, and other texts.

A scrape reaches any of the processes, and the next scrape another one. Whichever it is collects the
metrics of the others over Unix sockets in a private folder. The series of different processes stay
apart, so a counter never jumps back because another process answered. A restarted process resets
its own counters only, which `rate()` expects. A process that does not answer in time is left out.

A process that connects to another one's socket sends the name of a text and a line end. It gets the
text and a last line that shows that the text is complete.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 1.0
"""How long a scrape waits for a process: a busy one needs 0.05 s, and Prometheus waits for 10 s."""
UP = "gatehouse_process_up"
UP_HELP = "1 if the metrics of the process are in this scrape, 0 if it did not respond in 1 s."

_END = b"# EOF\n"  # as in OpenMetrics: the text is complete
_LABELLED = re.compile(rb"^(\w+)\{", re.MULTILINE)
_UNLABELLED = re.compile(rb"^(\w+) ", re.MULTILINE)

METRICS = "metrics"
"""The name of the text that has a process's metrics."""

Render = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Member:
    """One of the processes of a service.

    Attributes:
        folder: has a socket for each process; only this user may enter it.
        number: of this process, from 0.
        count: how many processes there are.
    """

    folder: Path
    number: int
    count: int

    def socket_of(self, number: int) -> Path:
        """Return the path of a process's socket."""
        return self.folder / f"{number}.sock"


async def answer(member: Member, texts: Mapping[str, Render]) -> None:
    """Send each sibling that connects the text that it asks for by name, until cancelled."""

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # the sibling did not wait
            name = (await reader.readline()).decode().rstrip("\n")
            if name in texts:
                writer.write(await texts[name]() + _END)
                await writer.drain()
        writer.close()

    path = member.socket_of(member.number)
    path.unlink(missing_ok=True)  # of the process that had this number before
    async with await asyncio.start_unix_server(send, path) as server:
        await server.serve_forever()


async def render_all(member: Member, render: Render) -> bytes:
    """Return the metrics of all processes that answer within `TIMEOUT_S`, as one text."""
    texts = await texts_of_all(member, METRICS, render)
    return await asyncio.to_thread(merge, texts)


async def texts_of_all(member: Member, name: str, render: Render) -> Mapping[int, bytes | None]:
    """Return the text of a name of every process, by its number; None if it does not answer.

    Args:
        member: this process.
        name: of the text.
        render: returns this process's own text.
    """

    async def text_of(number: int) -> bytes | None:
        if number == member.number:
            return await render()
        return await _ask(member.socket_of(number), name)

    return dict(enumerate(await asyncio.gather(*map(text_of, range(member.count)))))


async def _ask(path: Path, name: str) -> bytes | None:
    """Return a text of the process that listens on a socket, or None."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(f"{name}\n".encode())
                text = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):  # it is starting, ended, or hangs
        return None
    return text.removesuffix(_END) if text.endswith(_END) else None


def merge(texts: Mapping[int, bytes | None]) -> bytes:
    """Join texts in the Prometheus format by process number; None counts as not answered.

    The samples of a metric stay together, as the format demands.
    """
    families: dict[bytes, list[bytes]] = {}
    for number, text in texts.items():
        label = b'process="%d"' % number
        for header, samples in _families(text or b""):
            labelled = _LABELLED.sub(rb"\1{%b," % label, samples)
            labelled = _UNLABELLED.sub(rb"\1{%b} " % label, labelled)
            families.setdefault(header, []).append(labelled)
    families[f"# HELP {UP} {UP_HELP}\n# TYPE {UP} gauge\n".encode()] = [
        f'{UP}{{process="{number}"}} {int(text is not None)}\n'.encode()
        for number, text in texts.items()
    ]
    return b"".join(b"".join((header, *samples)) for header, samples in families.items())


def _families(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Return each metric's two lines of header, and its samples."""
    for block in (b"\n" + text).split(b"\n# HELP ")[1:]:  # a label value contains no line end
        help_line, type_line, *samples = block.rstrip(b"\n").split(b"\n", 2)
        yield b"# HELP %b\n%b\n" % (help_line, type_line), b"".join(b"%b\n" % s for s in samples)
