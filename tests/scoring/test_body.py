"""Reading request bodies: their limits of size and time, and the budget of all of them."""

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, Sequence

import pytest
from starlette.types import Message

from app.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
)
from app.scoring.body import (
    LARGE_BYTES,
    UNCOUNTED_BYTES,
    BodyReader,
    BodyShare,
    ByteBudget,
    RowSizes,
)
from app.telemetry.metrics import Metrics
from tests.support.clock import VirtualTimeLoop
from tests.support.fakes import sums_model

MAX_BYTES = 10


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Client:
    """Sends its messages one by one, each `pause_s` after the one before; then it is silent."""

    def __init__(self, *messages: Message, pause_s: float = 0.0) -> None:
        self._messages = list(messages)
        self._pause_s = pause_s
        self.asked = 0

    async def receive(self) -> Message:
        self.asked += 1
        await asyncio.sleep(self._pause_s)
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def read(
    receive: Callable[[], Awaitable[Message]],
    *,
    budget: ByteBudget | None = None,
    max_bytes: int = MAX_BYTES,
    timeout_s: float = 1.0,
    deadline: float = 1000.0,
    length: int = 0,
    coding: bytes | None = None,
) -> bytes:
    budget = budget or ByteBudget(1000, Metrics())
    reader = BodyReader(max_bytes=max_bytes, timeout_s=timeout_s, budget=budget)
    return await reader.read(receive, length=length, coding=coding, deadline=deadline)


async def test_body_is_its_parts_in_order():
    client = Client(part(b"[1", more=True), part(b"", more=True), part(b",2]"))
    assert await read(client.receive) == b"[1,2]"
    assert client.asked == 3


async def test_nothing_is_read_after_the_body():
    client = Client(part(b"{}"), part(b"the next request"))
    assert await read(client.receive) == b"{}"
    assert client.asked == 1


async def test_message_without_fields_is_an_empty_last_part():
    assert await read(Client({"type": "http.request"}).receive) == b""


@pytest.mark.parametrize("coding", [b"gzip", b"x-gzip", b"deflate"])
async def test_content_coding_is_undone(coding):
    compress = zlib.compress if coding == b"deflate" else gzip.compress
    client = Client(part(compress(b"[1,2]")[:7], more=True), part(compress(b"[1,2]")[7:]))
    assert await read(client.receive, coding=coding, max_bytes=100) == b"[1,2]"


async def test_decompressed_body_is_limited_too():
    client = Client(part(gzip.compress(b" " * 101)))
    with pytest.raises(PayloadTooLarge, match="decompressed body is larger than 100 bytes"):
        await read(client.receive, coding=b"gzip", max_bytes=100)


async def test_body_may_be_as_large_as_the_limit():
    body = b"x" * MAX_BYTES
    assert await read(Client(part(body)).receive, length=10) == body


async def test_body_is_refused_where_it_grows_over_the_limit():
    client = Client(*[part(b"xxxx", more=True)] * 100)
    with pytest.raises(PayloadTooLarge):
        await read(client.receive)
    assert client.asked == 3


async def test_announced_length_does_not_raise_the_limit():
    with pytest.raises(PayloadTooLarge):
        await read(Client(part(b"x" * 11)).receive, length=2)


async def test_disconnect_ends_the_reading():
    client = Client(part(b"[1,", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientDisconnected):
        await read(client.receive)


async def test_body_that_stops_arriving_times_out():
    client = Client(part(b"[1,", more=True))
    with pytest.raises(RequestTimeout, match=r"longer than 2\.5 s"):
        await read(client.receive, timeout_s=2.5)
    assert asyncio.get_running_loop().time() == 2.5


async def test_body_must_arrive_before_the_deadline():
    client = Client(part(b"[1,", more=True))
    with pytest.raises(DeadlineExceeded):
        await read(client.receive, timeout_s=2.5, deadline=0.1)
    assert asyncio.get_running_loop().time() == 0.1


async def test_time_limit_applies_to_the_whole_body():
    parts = [part(b"1", more=True)] * 4
    with pytest.raises(RequestTimeout):
        await read(Client(*parts, pause_s=0.5).receive, timeout_s=1.75)
    assert asyncio.get_running_loop().time() == 1.75


async def test_slow_body_within_the_time_limit_is_read():
    parts: Sequence[Message] = [part(b"1", more=True), part(b"2", more=True), part(b"3")]
    assert await read(Client(*parts, pause_s=0.5).receive, timeout_s=1.75) == b"123"


LARGE = 3 * UNCOUNTED_BYTES


async def test_body_is_counted_from_its_announcement_to_its_end():
    budget = ByteBudget(LARGE, Metrics())
    client = Client(part(b"x" * LARGE), pause_s=0.5)
    reading = asyncio.create_task(
        read(client.receive, budget=budget, max_bytes=LARGE, length=LARGE)
    )
    await asyncio.sleep(0.1)
    assert budget.held == LARGE
    assert len(await reading) == LARGE
    assert budget.held == 0


async def test_large_body_is_refused_unread_if_the_budget_is_used_up():
    metrics = Metrics()
    budget = ByteBudget(LARGE, metrics)
    budget.take(LARGE)
    client = Client(part(b"x"))

    async def read_one(length: int) -> bytes:
        return await read(client.receive, budget=budget, max_bytes=LARGE, length=length)

    with pytest.raises(Overloaded, match="request bodies") as refused:
        await read_one(UNCOUNTED_BYTES + 1)
    assert refused.value.retry_after_s == 1
    assert client.asked == 0
    assert b'gatehouse_shed_total{reason="bodies"} 1.0' in metrics.render()
    assert await read_one(UNCOUNTED_BYTES) == b"x"
    assert budget.held == LARGE


async def test_other_work_runs_between_two_large_bodies():
    budget = ByteBudget(100 * LARGE_BYTES, Metrics())
    reader = BodyReader(max_bytes=LARGE_BYTES, timeout_s=1.0, budget=budget)
    turns = 0
    read_at: list[int] = []

    async def everything_else() -> None:
        nonlocal turns
        while len(read_at) < 5:
            turns += 1
            await asyncio.sleep(0)

    async def read_one() -> None:
        client = Client(part(b"x" * LARGE_BYTES))
        await reader.read(client.receive, length=LARGE_BYTES, coding=None, deadline=9.0)
        read_at.append(turns)

    await asyncio.gather(everything_else(), *[read_one() for _ in range(5)])
    assert len(set(read_at)) == 5


async def test_body_of_unknown_length_is_counted_while_it_is_read():
    budget = ByteBudget(LARGE, Metrics())
    client = Client(*[part(b"x" * UNCOUNTED_BYTES, more=True)] * 100)
    with pytest.raises(Overloaded):
        await read(client.receive, budget=budget, max_bytes=10 * LARGE)
    assert client.asked == 4
    assert budget.held == 0


@pytest.mark.parametrize("end", ["disconnect", "stop", "cancel"])
async def test_share_is_released_however_reading_ends(end):
    budget = ByteBudget(LARGE, Metrics())
    messages = [{"type": "http.disconnect"}] if end == "disconnect" else []
    client = Client(part(b"x", more=True), *messages, pause_s=0.1)
    reading = asyncio.create_task(
        read(client.receive, budget=budget, max_bytes=LARGE, length=LARGE)
    )
    await asyncio.sleep(0.15)
    assert budget.held == LARGE
    if end == "cancel":
        reading.cancel()
    with pytest.raises((ClientDisconnected, RequestTimeout, asyncio.CancelledError)):
        await reading
    assert budget.held == 0


async def test_growing_share_takes_only_the_difference():
    budget = ByteBudget(LARGE, Metrics())
    with BodyShare(budget) as share:
        share.reserve(UNCOUNTED_BYTES)
        assert budget.held == 0
        share.reserve(2 * UNCOUNTED_BYTES)
        share.reserve(LARGE)
        share.reserve(UNCOUNTED_BYTES)
        assert budget.held == LARGE
        assert repr(budget) == f"<ByteBudget {LARGE} of {LARGE} bytes>"
        share.release()
        assert budget.held == 0
    assert budget.held == 0


def test_size_of_a_body_tells_how_many_rows_it_has_at_least():
    sizes, model, other = RowSizes(), sums_model(), sums_model("other")
    assert sizes.min_rows(model, 10_000) == 1  # nothing is known
    sizes.learn(model, 1000, rows=10)
    assert sizes.min_rows(model, 1000) == 10
    sizes.learn(model, 4000, rows=10)  # its rows are larger, so a body has fewer of them at least
    assert sizes.min_rows(model, 4000) == 10
    for _ in range(100):
        sizes.learn(model, 1000, rows=10)  # large rows are forgotten slowly
    assert 10 < sizes.min_rows(model, 4000) < 20
    assert sizes.min_rows(other, 4000) == 1
    sizes.forget(model)
    assert sizes.min_rows(model, 4000) == 1
