"""Bodies: what is let in, and what is refused before it is read."""

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, Sequence

import pytest
from starlette.types import Message, Scope

from app.errors import (
    ClientDisconnected,
    DeadlineExceeded,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from app.scoring.body import LARGE_BYTES, WHOLE_BODY, BodyReader
from app.scoring.budget import UNCOUNTED_BYTES, ByteBudget
from app.telemetry.metrics import Metrics
from tests.support.clock import VirtualTimeLoop

MAX_BYTES = 10


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Caller:
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
    *headers: tuple[bytes, bytes],
    timeout_s: float = 1.0,
    deadline: float = 1000.0,
) -> bytes:
    scope: Scope = {"type": "http", "headers": list(headers)}
    reader = reader_of(ByteBudget(1000, Metrics()), timeout_s=timeout_s)
    return await reader.read(scope, receive, deadline=deadline)


def reader_of(
    budget: ByteBudget, *, max_bytes: int = MAX_BYTES, timeout_s: float = 1.0
) -> BodyReader:
    return BodyReader(max_bytes=max_bytes, timeout_s=timeout_s, budget=budget)


async def test_a_body_is_its_parts_in_order():
    caller = Caller(part(b"[1", more=True), part(b"", more=True), part(b",2]"))
    assert await read(caller.receive) == b"[1,2]"
    assert caller.asked == 3


async def test_no_more_is_read_than_the_body():
    caller = Caller(part(b"{}"), part(b"the next request"))
    assert await read(caller.receive) == b"{}"
    assert caller.asked == 1


async def test_a_message_without_fields_is_an_empty_last_part():
    assert await read(Caller({"type": "http.request"}).receive) == b""


@pytest.mark.parametrize(
    "value",
    [b"application/json", b"application/json; charset=utf-8", b"Application/JSON ;x=y"],
)
async def test_json_is_accepted_however_it_is_spelt(value):
    assert await read(Caller(part(b"{}")).receive, (b"content-type", value)) == b"{}"


@pytest.mark.parametrize(
    "value",
    [b"text/json", b"application/x-www-form-urlencoded", b"application/jsonp", b"", b"*/*"],
)
async def test_another_content_type_is_refused_before_the_body_is_read(value):
    caller = Caller(part(b"{}"))
    with pytest.raises(UnsupportedMediaType):
        await read(caller.receive, (b"content-type", value))
    assert caller.asked == 0


async def test_an_identity_encoding_is_none():
    headers = [(b"content-encoding", b"Identity")]
    assert await read(Caller(part(b"{}")).receive, *headers) == b"{}"


async def test_no_content_type_is_taken_for_json():
    assert await read(Caller(part(b"{}")).receive) == b"{}"


async def test_other_content_types_are_read_where_a_route_takes_them():
    scope: Scope = {"type": "http", "headers": [(b"content-type", b"application/octet-stream")]}
    reader = reader_of(ByteBudget(1000, Metrics()))
    media_types = frozenset((b"application/json", b"application/octet-stream"))
    receive = Caller(part(b"\x00")).receive
    assert await reader.read(scope, receive, deadline=1.0, media_types=media_types) == b"\x00"
    scope["headers"] = [(b"content-type", b"text/plain")]
    with pytest.raises(UnsupportedMediaType, match="json or application/octet-stream"):
        await reader.read(scope, receive, deadline=1.0, media_types=media_types)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZip ", "deflate"])
async def test_a_coded_body_is_decoded(coding):
    compress = zlib.compress if coding == "deflate" else gzip.compress
    caller = Caller(part(compress(b"[1,2]")[:7], more=True), part(compress(b"[1,2]")[7:]))
    scope: Scope = {"type": "http", "headers": [(b"content-encoding", coding.encode())]}
    reader = reader_of(ByteBudget(1000, Metrics()), max_bytes=100)
    assert await reader.read(scope, caller.receive, deadline=1.0) == b"[1,2]"


@pytest.mark.parametrize(
    "values", [[b"br"], [b"identity, gzip"], [b"gzip, gzip"], [b"gzip", b"deflate"], [b""]], ids=str
)
async def test_another_coding_is_refused_before_the_body_is_read(values):
    caller = Caller(part(b"{}"))
    with pytest.raises(UnsupportedMediaType, match="gzip, deflate or identity"):
        await read(caller.receive, *[(b"content-encoding", value) for value in values])
    assert caller.asked == 0


async def test_a_body_of_the_limit_passes():
    body = b"x" * MAX_BYTES
    assert await read(Caller(part(body)).receive, (b"content-length", b"10")) == body


async def test_a_length_over_the_limit_is_refused_before_the_body_is_read():
    caller = Caller(part(b"{}"))
    with pytest.raises(PayloadTooLarge, match="larger than 10 bytes"):
        await read(caller.receive, (b"content-length", b"11"))
    assert caller.asked == 0


async def test_a_body_that_grows_over_the_limit_is_refused_there():
    caller = Caller(*[part(b"xxxx", more=True)] * 100)
    with pytest.raises(PayloadTooLarge):
        await read(caller.receive)
    assert caller.asked == 3


async def test_a_length_that_lies_does_not_let_more_in():
    with pytest.raises(PayloadTooLarge):
        await read(Caller(part(b"x" * 11)).receive, (b"content-length", b"2"))


async def test_a_caller_that_leaves_is_not_answered():
    caller = Caller(part(b"[1,", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientDisconnected):
        await read(caller.receive)


async def test_a_body_that_stops_coming_times_out():
    caller = Caller(part(b"[1,", more=True))
    with pytest.raises(RequestTimeout, match=r"longer than 2\.5 s"):
        await read(caller.receive, timeout_s=2.5)
    assert asyncio.get_running_loop().time() == 2.5


async def test_a_body_that_is_not_there_before_the_deadline_is_too_late():
    caller = Caller(part(b"[1,", more=True))
    with pytest.raises(DeadlineExceeded):
        await read(caller.receive, timeout_s=2.5, deadline=0.1)
    assert asyncio.get_running_loop().time() == 0.1


async def test_the_time_limit_holds_for_the_whole_body_not_for_each_part():
    parts = [part(b"1", more=True)] * 4
    with pytest.raises(RequestTimeout):
        await read(Caller(*parts, pause_s=0.5).receive, timeout_s=1.75)
    assert asyncio.get_running_loop().time() == 1.75


async def test_a_body_that_comes_slowly_but_in_time_passes():
    parts: Sequence[Message] = [part(b"1", more=True), part(b"2", more=True), part(b"3")]
    assert await read(Caller(*parts, pause_s=0.5).receive, timeout_s=1.75) == b"123"


LARGE = 3 * UNCOUNTED_BYTES


def announced(length: int) -> Scope:
    return {"type": "http", "headers": [(b"content-length", str(length).encode())]}


async def test_a_body_is_counted_from_its_announcement_to_its_end():
    budget = ByteBudget(LARGE, Metrics())
    reader = reader_of(budget, max_bytes=LARGE)
    caller = Caller(part(b"x" * LARGE), pause_s=0.5)
    reading = asyncio.create_task(reader.read(announced(LARGE), caller.receive, deadline=9.0))
    await asyncio.sleep(0.1)
    assert budget.held == LARGE
    assert len(await reading) == LARGE
    assert budget.held == 0


async def test_a_body_without_room_is_refused_before_it_is_read_and_a_small_one_is_not():
    metrics = Metrics()
    budget = ByteBudget(LARGE, metrics)
    budget.take(LARGE)
    reader = reader_of(budget, max_bytes=LARGE)
    caller = Caller(part(b"x"))
    with pytest.raises(Overloaded, match="request bodies") as refused:
        await reader.read(announced(UNCOUNTED_BYTES + 1), caller.receive, deadline=9.0)
    assert refused.value.retry_after_s == 1
    assert caller.asked == 0
    assert b'gatehouse_shed_total{reason="bodies"} 1.0' in metrics.render()
    assert await reader.read(announced(UNCOUNTED_BYTES), caller.receive, deadline=9.0) == b"x"
    assert budget.held == LARGE


async def test_between_two_large_bodies_everything_else_has_its_turn():
    reader = reader_of(ByteBudget(100 * LARGE_BYTES, Metrics()), max_bytes=LARGE_BYTES)
    turns = 0
    read_at: list[int] = []

    async def everything_else() -> None:
        nonlocal turns
        while len(read_at) < 5:
            turns += 1
            await asyncio.sleep(0)

    async def read_one() -> None:
        caller = Caller(part(b"x" * LARGE_BYTES))
        await reader.read(announced(LARGE_BYTES), caller.receive, deadline=9.0)
        read_at.append(turns)

    await asyncio.gather(everything_else(), *[read_one() for _ in range(5)])
    assert len(set(read_at)) == 5


async def test_a_body_of_unknown_length_is_counted_while_it_is_read():
    budget = ByteBudget(LARGE, Metrics())
    reader = reader_of(budget, max_bytes=10 * LARGE)
    caller = Caller(*[part(b"x" * UNCOUNTED_BYTES, more=True)] * 100)
    with pytest.raises(Overloaded):
        await reader.read({"type": "http", "headers": []}, caller.receive, deadline=9.0)
    assert caller.asked == 4
    assert budget.held == 0


@pytest.mark.parametrize("end", ["leave", "stop", "cancel"])
async def test_whatever_ends_a_body_gives_its_share_back(end):
    budget = ByteBudget(LARGE, Metrics())
    messages = [{"type": "http.disconnect"}] if end == "leave" else []
    caller = Caller(part(b"x", more=True), *messages, pause_s=0.1)
    reader = reader_of(budget, max_bytes=LARGE)
    reading = asyncio.create_task(reader.read(announced(LARGE), caller.receive, deadline=9.0))
    await asyncio.sleep(0.15)
    assert budget.held == LARGE
    if end == "cancel":
        reading.cancel()
    with pytest.raises((ClientDisconnected, RequestTimeout, asyncio.CancelledError)):
        await reading
    assert budget.held == 0


async def test_a_body_that_is_here_already_is_not_asked_for():
    caller = Caller()
    scope = {"type": "http", "headers": [], WHOLE_BODY: lambda: b"[1]"}
    reader = reader_of(ByteBudget(1000, Metrics()))
    assert await reader.read(scope, caller.receive, deadline=1000.0) == b"[1]"
    assert caller.asked == 0


async def test_a_body_that_is_here_already_may_be_too_large_all_the_same():
    scope = {"type": "http", "headers": [], WHOLE_BODY: lambda: b"x" * (MAX_BYTES + 1)}
    with pytest.raises(PayloadTooLarge):
        await reader_of(ByteBudget(1000, Metrics())).read(scope, Caller().receive, deadline=1000.0)


async def test_of_a_body_that_is_not_whole_the_rest_is_awaited():
    scope = {"type": "http", "headers": [], WHOLE_BODY: lambda: None}
    receive = Caller(part(b"[1,", more=True), part(b"2]")).receive
    reader = reader_of(ByteBudget(1000, Metrics()))
    assert await reader.read(scope, receive, deadline=1000.0) == b"[1,2]"
