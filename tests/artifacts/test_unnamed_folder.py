"""Folders of publishers that are killed: removed once the publisher is surely dead, not before."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from app.artifacts.unnamed_folder import remove_left_over, unnamed_folder, unnamed_folders
from tests import REPOSITORY
from tests.support.server import patient_environment

PROGRAM = """
import sys, time
from pathlib import Path
from app.artifacts.unnamed_folder import unnamed_folder
with unnamed_folder(Path(sys.argv[1])) as written:
    (written / "rows").write_bytes(b"x" * 1000)
    print(written.parent, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def publisher(tmp_path):
    """A process that writes an unnamed folder into `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=REPOSITORY,
        env=patient_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == str(next(tmp_path.iterdir()))
    yield process
    process.kill()
    process.communicate()


def left_over(folder):
    return [unnamed.is_left_over for unnamed in unnamed_folders(folder)]


def aged(folder, seconds):
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() - seconds,) * 2)


def killed(publisher, folder):
    """Kill a publisher; return what it leaves."""
    publisher.kill()
    publisher.wait()
    (left,) = folder.iterdir()
    return left


def test_the_folder_of_a_dead_publisher_is_removed_at_once(publisher, tmp_path):
    remove_left_over(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert left_over(tmp_path) == []
    killed(publisher, tmp_path)
    (unnamed,) = unnamed_folders(tmp_path)
    assert unnamed.is_left_over
    assert unnamed.size > 1000
    with unnamed_folder(tmp_path) as written:
        assert list(tmp_path.iterdir()) == [written.parent]
    assert list(tmp_path.iterdir()) == []


def test_a_publisher_that_is_stopped_for_days_keeps_its_folder(publisher, tmp_path):
    publisher.send_signal(signal.SIGSTOP)
    (folder,) = tmp_path.iterdir()
    aged(folder, 7 * 24 * 3600)
    remove_left_over(tmp_path)
    assert folder.exists()


@pytest.mark.parametrize("owner", [b"", b"another host 7\n", None])
def test_a_lock_of_another_host_or_mount_does_not_count(publisher, tmp_path, owner):
    folder = killed(publisher, tmp_path)
    if owner is None:
        (folder / "owner").unlink()
    else:
        (folder / "owner").write_bytes(owner)
    assert left_over(tmp_path) == [False]
    remove_left_over(tmp_path)
    assert folder.exists()
    aged(folder, 25 * 3600)
    assert left_over(tmp_path) == [True]
    remove_left_over(tmp_path)
    assert not folder.exists()


def test_without_locks_the_age_decides(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with unnamed_folder(tmp_path) as written:
        assert left_over(tmp_path) == [False]
        monkeypatch.undo()  # the owner did not say that it has a lock
        assert left_over(tmp_path) == [False]
        aged(written.parent, 25 * 3600)
        assert left_over(tmp_path) == [True]


def test_writers_in_one_process_keep_their_folders(tmp_path):
    with unnamed_folder(tmp_path) as one, unnamed_folder(tmp_path) as other:
        remove_left_over(tmp_path)
        assert one.exists()
        assert other.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_the_folder_and_ends_the_process(publisher, tmp_path, number):
    publisher.send_signal(number)
    assert publisher.wait(60) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_handlers_are_those_of_before(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with unnamed_folder(tmp_path):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_a_thread_leaves_signals_alone(tmp_path):
    made = []

    def write():
        with unnamed_folder(tmp_path) as written:
            made.append(written.exists())

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert made == [True]
    assert list(tmp_path.iterdir()) == []
