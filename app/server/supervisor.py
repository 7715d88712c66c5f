"""Several processes on one port: one starts the others, restarts those that end, and ends them all.

Each process is a complete copy of the service; they share nothing but the port, whose connections
the kernel shares out (SO_REUSEPORT). This module knows nothing of what they do, and imports little:
a process is a fork of the first one, which must have no threads and no CUDA.
"""

import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("app.server.supervisor")

_ASKED_TO_END = (signal.SIGTERM, signal.SIGINT)
_WATCHED = (*_ASKED_TO_END, signal.SIGCHLD)
_OK, _FAILED, _UNUSABLE = 0, 1, 2
_LONG_LIFE_S = 60.0  # what lived so long did not fail at its start
_LONGEST_PAUSE = 30  # units of the first pause
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Child:
    """One of the processes: `pid` while it runs, `due` (monotonic, s) while it waits to start."""

    pid: int | None = None
    due: float | None = 0.0
    began: float = 0.0
    lives: int = 0
    short_lives: int = 0


class Processes:
    """Keeps `count` processes running until a signal; use one, on the main thread.

    All mutable state is `_seats` and whether an end was asked for. Three events move it: a process
    ends, a pause before a restart is over, a signal asks for the end.
    """

    def __init__(
        self, count: int, work: Callable[[int], int], *, patience_s: float, pause_s: float = 1.0
    ) -> None:
        """Start nothing yet.

        Args:
            count: how many.
            work: called in each process with its number, from 0; returns the exit code.
            patience_s: how long after the signal a process may take to end; then it is killed.
            pause_s: before the second restart in a row; twice as long before each further one.
        """
        self._work = work
        self._patience_s = patience_s
        self._pause_s = pause_s
        self._seats = [_Child() for _ in range(count)]
        self._kill_at: float | None = None  # set when an end was asked for
        self._code = _OK

    def __repr__(self) -> str:
        return f"<Processes {[seat.pid for seat in self._seats]}>"

    def run(self) -> int:
        """Keep them running; return 0 after a signal, or what made going on useless."""
        # Signals are waited for and not handled: nothing interrupts the code between two waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        while True:
            self._start_due()
            if self._kill_at is not None and not self._running():
                return self._code
            received = self._wait()
            if received in _ASKED_TO_END:
                self._end()
            self._kill_late()
            self._reap()

    def _running(self) -> list[int]:
        return [seat.pid for seat in self._seats if seat.pid is not None]

    def _wait(self) -> int | None:
        """Return the signal that came, or None when it is time for something."""
        times = [seat.due for seat in self._seats if seat.due is not None]
        times += [] if self._kill_at is None else [self._kill_at]
        if not times:
            return signal.sigwaitinfo(_WATCHED).si_signo
        received = signal.sigtimedwait(_WATCHED, max(0.0, min(times) - time.monotonic()))
        return None if received is None else received.si_signo

    def _start_due(self) -> None:
        now = time.monotonic()
        for number, seat in enumerate(self._seats):
            if seat.due is not None and seat.due <= now:
                seat.due, seat.began, seat.lives = None, now, seat.lives + 1
                seat.pid = self._fork(number)

    def _fork(self, number: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        code: object = _FAILED
        try:
            _end_with(parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            code = self._work(number)
        except SystemExit as end:
            code = end.code
        except BaseException:
            logger.exception("process %d failed", number)
        finally:
            logging.shutdown()
            # What the first process would do at its exit is not this one's to do.
            os._exit(code if isinstance(code, int) else _OK)

    def _reap(self) -> None:
        """Look at every process that has ended; of a container's first process, strangers too."""
        while self._running():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            for number, seat in enumerate(self._seats):
                if seat.pid == pid:
                    seat.pid = None
                    self._ended(number, seat, os.waitstatus_to_exitcode(status))

    def _ended(self, number: int, seat: _Child, code: int) -> None:
        """Go on after a process has ended: start it again, unless an end was asked for.

        One that finds nothing it can serve ends them all, for the others see the same; but not one
        that was started again while others serve: they go on with what they have.
        """
        if self._kill_at is not None:
            self._code = self._code or (_OK if code == _OK else _FAILED)
            return
        if code == _UNUSABLE and (seat.lives == 1 or not self._running()):
            self._code = _UNUSABLE
            self._end()
            return
        now = time.monotonic()
        if now - seat.began >= _LONG_LIFE_S:
            seat.short_lives = 0
        pause = min(2**seat.short_lives // 2, _LONGEST_PAUSE) * self._pause_s
        seat.short_lives += 1
        seat.due = now + pause
        logger.error("process %d ended with %d: it starts again in %g s", number, code, pause)

    def _end(self) -> None:
        """Let every process drain, once."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._patience_s
            for seat in self._seats:
                seat.due = None
            for pid in self._running():
                os.kill(pid, signal.SIGTERM)

    def _kill_late(self) -> None:
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at += self._patience_s
            for pid in self._running():
                logger.error("process with pid %d does not end: it is killed", pid)
                os.kill(pid, signal.SIGKILL)


def _end_with(parent: int) -> None:
    """Let this process be told to end when its parent is gone, however that ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before
        os.kill(os.getpid(), signal.SIGTERM)
