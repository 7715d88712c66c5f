"""One scrape for several processes: the texts joined, and what happens to one that is late."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry import siblings
from app.telemetry.metrics import Metrics
from app.telemetry.siblings import (
    METRICS,
    UP,
    Member,
    Render,
    answer,
    merge,
    render_all,
)
from tests.support.waiting import until


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for a socket
        yield Path(folder)


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(text.decode())
    found = [sample for family in families for sample in family.samples]
    by_name = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(by_name) == len(found), "a series appears twice"
    return by_name


def text_of(requests: int) -> bytes:
    """The metrics of a process: every series, and a label value full of the format's characters."""
    metrics = Metrics()
    metrics.watch("weighs_nothing", "A gauge.", lambda: 0.5)
    for _ in range(requests):
        metrics.failed('a "b" {c="d"} \\ \n# HELP e\n gatehouse_e 1')
        metrics.batch("m/1", rows=3, requests=1, lane="lane-0", busy_s=0.25)
    return metrics.render()


def test_merged_text_has_the_samples_of_each_with_its_number():
    texts = {number: text_of(number) for number in range(3)}
    merged = merge(texts)
    expected = {
        (name, labels | {("process", str(number))}): value
        for number, text in texts.items()
        for (name, labels), value in samples(text).items()
    }
    expected |= {(UP, frozenset({("process", str(number))})): 1.0 for number in range(3)}
    assert samples(merged) == expected
    # Each metric is one group with one head, as the format demands.
    names = [line.split()[2] for line in merged.decode().splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert b"\n\n" not in merged


def test_a_process_that_did_not_answer_is_shown_as_down():
    merged = merge({0: text_of(1), 1: None})
    found = samples(merged)
    assert {labels for name, labels in found if name == "gatehouse_weighs_nothing"} == {
        frozenset({("process", "0")})
    }
    assert found[UP, frozenset({("process", "0")})] == 1
    assert found[UP, frozenset({("process", "1")})] == 0


def of(text: bytes) -> Render:
    async def render() -> bytes:
        return text

    return render


@asynccontextmanager
async def answering(*members: tuple[Member, Render]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(answer(member, {METRICS: render})) for member, render in members]
    for member, _ in members:
        await until(member.socket_of(member.number).exists, "the member listens")
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def ups(text: bytes) -> list[float]:
    found = samples(text)
    return [found[UP, frozenset({("process", str(number))})] for number in range(5)]


async def test_starting_dead_hanging_and_broken_siblings_do_not_delay_a_scrape(folder, monkeypatch):
    monkeypatch.setattr(siblings, "TIMEOUT_S", 2.0)  # process 1 needs less on any machine
    members = [Member(folder, number, 5) for number in range(5)]

    is_over = asyncio.Event()

    async def never() -> bytes:
        await is_over.wait()
        return b""

    async def cut(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"# HELP a A.\n# TYPE a gauge\na 1.0\n")  # no end: the process was killed
        writer.close()
        await writer.wait_closed()

    # Process 1 answers, 2 hangs, 3 dies while it answers, 4 has not started.
    async with (
        answering((members[1], of(text_of(1))), (members[2], never)),
        await asyncio.start_unix_server(cut, members[3].socket_of(3)),
    ):
        listening = len(asyncio.all_tasks())
        began = time.monotonic()
        text = await render_all(members[0], of(text_of(0)))
        took_s = time.monotonic() - began
        is_over.set()
        await until(lambda: len(asyncio.all_tasks()) <= listening, "calls end")
    assert ups(text) == [1, 1, 0, 0, 0]
    assert b"\na{" not in text
    assert took_s >= siblings.TIMEOUT_S  # for process 2, and for it alone


async def test_a_restarted_process_takes_over_the_socket_of_the_former(folder):
    first, second = Member(folder, 0, 2), Member(folder, 1, 2)
    second.socket_of(1).touch()  # left by a process that was killed
    async with answering((second, of(text_of(1)))):
        await asyncio.sleep(0)
        async with asyncio.timeout(30):  # until the file is the new socket
            while True:
                text = await render_all(first, of(text_of(0)))
                if samples(text)[UP, frozenset({("process", "1")})]:
                    break
