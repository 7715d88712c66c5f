"""Files are reloaded when their content changes; files that cannot be used change nothing."""

import asyncio
import logging
import os

import pytest

from app.errors import Unauthorized
from app.lifecycle.poll_timer import PollTimer
from app.scoring.keys import Keys
from app.server.file_watcher import FileWatcher
from app.telemetry.metrics import Metrics

OLD, NEW = "old-" * 5, "new-" * 5


def may_call(keys: Keys, secret: str) -> bool:
    try:
        return keys.name_of(f"Bearer {secret}".encode()) == "anna"
    except Unauthorized:
        return False


def watcher(keys: Keys, metrics: Metrics | None = None) -> FileWatcher:
    return FileWatcher(keys, metrics or Metrics())


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"anna:{OLD}")
    return file


async def test_a_changed_file_is_applied_at_the_next_look(file):
    keys = Keys(file=file)
    files = watcher(keys)
    await files.look()
    file.write_text(f"anna:{NEW} # later")
    assert may_call(keys, OLD)
    await files.look()
    assert may_call(keys, NEW)
    assert not may_call(keys, OLD)


async def test_a_change_that_keeps_size_and_time_is_seen(file):
    keys = Keys(file=file)
    files = watcher(keys)
    await files.look()
    before = file.stat()
    file.write_text(f"anna:{NEW}")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
    await files.look()
    assert may_call(keys, NEW)


async def test_a_change_between_the_first_reading_and_the_first_look_is_seen(file):
    keys = Keys(file=file)
    file.write_text(f"anna:{NEW}")
    await watcher(keys).look()
    assert may_call(keys, NEW)


async def test_a_swapped_symbolic_link_is_a_change(file, tmp_path):
    """Kubernetes updates a volume like this."""
    link = tmp_path / "link"
    link.symlink_to(file)
    keys = Keys(file=link)
    files = watcher(keys)
    await files.look()
    (tmp_path / "newer").write_text(f"anna:{NEW}")
    (tmp_path / "swap").symlink_to(tmp_path / "newer")
    (tmp_path / "swap").rename(link)
    await files.look()
    assert may_call(keys, NEW)


@pytest.mark.parametrize("damage", ["removed", "empty", "wrong", "fifo", "endless"])
async def test_a_file_that_cannot_be_used_keeps_the_old_keys_and_is_logged_once(
    file, caplog, damage
):
    keys, metrics = Keys(file=file), Metrics()
    files = watcher(keys, metrics)
    await files.look()
    match damage:
        case "removed":
            file.unlink()
        case "empty":
            file.write_text("")
        case "wrong":
            file.write_text(f"anna:{NEW} bert:tooshort")
        case "fifo":
            file.unlink()
            os.mkfifo(file)
        case _:
            file.unlink()
            file.symlink_to("/dev/zero")
    with caplog.at_level(logging.INFO):
        await files.look()
        await files.look()
    assert may_call(keys, OLD)
    (logged,) = caplog.records
    assert logged.getMessage().startswith("reload failed, the previous version stays")
    assert "tooshort" not in logged.getMessage()
    assert reloads(metrics) == (1, 1, 0)
    file.unlink(missing_ok=True)
    file.write_text(f"anna:{NEW}")
    await files.look()
    assert may_call(keys, NEW)
    assert reloads(metrics) == (2, 1, 1)


def reloads(metrics: Metrics) -> tuple[float | None, ...]:
    """How many succeeded, how many failed, and whether the last one succeeded."""
    read = metrics.registry.get_sample_value
    counts = [
        read("gatehouse_reloads_total", {"file": "keys", "result": result})
        for result in ("succeeded", "failed")
    ]
    return (*counts, read("gatehouse_reload_successful", {"file": "keys"}))


def test_the_series_of_a_file_exist_before_its_first_reload(file):
    metrics = Metrics()
    watcher(Keys(file=file), metrics)
    assert reloads(metrics) == (0, 0, 1)


async def test_waking_the_timer_looks_at_once(file):
    keys = Keys(file=file)
    timer = PollTimer(3600)
    following = asyncio.create_task(watcher(keys).follow(timer))
    await asyncio.sleep(0)
    file.write_text(f"anna:{NEW}")
    timer.wake()
    async with asyncio.timeout(30):
        while not may_call(keys, NEW):  # noqa: ASYNC110  (as a caller does)
            await asyncio.sleep(0.001)
    following.cancel()


async def test_wake_before_a_wait_ends_the_next_wait():
    timer = PollTimer(3600)
    timer.wake()
    async with asyncio.timeout(30):
        await timer.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await timer.wait()


async def test_an_unchanged_file_is_not_reloaded(file, caplog):
    files = watcher(Keys(file=file))
    with caplog.at_level(logging.DEBUG, "app.server.file_watcher"):
        for _ in range(3):
            await files.look()
    assert len(caplog.records) == 1


async def test_a_bug_in_reading_a_file_does_not_end_the_watching(file, caplog):
    class Faulty(Keys):
        def prepare(self):
            if b"fault" in file.read_bytes():
                raise ZeroDivisionError
            return super().prepare()

    keys = Faulty(file=file)
    files = watcher(keys)
    file.write_text("fault")
    await files.look()
    assert "reload failed" in caplog.text
    assert may_call(keys, OLD)
    file.write_text(f"anna:{NEW}")
    await files.look()
    assert may_call(keys, NEW)
