"""Several processes on one port: a supervisor starts them, restarts those that end, and stops all.

Each process is a complete copy of the service; the kernel distributes the connections of the port
(SO_REUSEPORT). Each is a fork of the supervisor, which has imported what they need: they share the
memory of the libraries, and a restart takes no imports. So the supervisor must have no threads, and
must not use CUDA.
"""

import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import ExitCode

logger = logging.getLogger("app.server.supervisor")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RELOAD = signal.SIGHUP
_WATCHED = (*_STOP_SIGNALS, _RELOAD, signal.SIGCHLD)
_LONG_LIFE_S = 60.0  # a process that ran so long did not fail at its start
_MAX_DELAY = 30  # times the first delay
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Child:
    """One of the processes: `pid` while it runs, `due` (monotonic, s) while it waits to start."""

    pid: int | None = None
    due: float | None = 0.0
    started: float = 0.0
    starts: int = 0
    short_lives: int = 0


class Supervisor:
    """Keeps `count` processes running until a signal. Use one, on the main thread.

    SIGTERM and SIGINT stop all of them, SIGHUP is passed on to each. All mutable state is
    `_children` and whether they are being stopped. Three events move it: a process ends, the delay
    before a restart is over, a signal arrives.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int], int],
        *,
        kill_after_s: float,
        restart_delay_s: float = 1.0,
    ) -> None:
        """Start nothing yet.

        Args:
            count: how many processes.
            work: called in each process with its number, from 0; returns the exit code.
            kill_after_s: how long a process may take to stop; then it is killed.
            restart_delay_s: before the second restart in a row; doubled for each further one.
        """
        self._work = work
        self._kill_after_s = kill_after_s
        self._restart_delay_s = restart_delay_s
        self._children = [_Child() for _ in range(count)]
        self._kill_at: float | None = None  # set while they are being stopped
        self._code: int = ExitCode.OK

    def __repr__(self) -> str:
        return f"<Supervisor {[child.pid for child in self._children]}>"

    def run(self) -> int:
        """Keep the processes running; return 0 after a signal, else the code that ended all."""
        # Signals are waited for and not handled, so nothing interrupts the code between two waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        while True:
            self._start_due()
            if self._kill_at is not None and not self._running():
                return self._code
            received = self._wait()
            if received in _STOP_SIGNALS:
                self._stop()
            elif received == _RELOAD:
                self._send(_RELOAD)
            self._kill_late()
            self._reap()

    def _running(self) -> list[int]:
        return [child.pid for child in self._children if child.pid is not None]

    def _send(self, signal_number: int) -> None:
        for pid in self._running():
            os.kill(pid, signal_number)

    def _wait(self) -> int | None:
        """Return the signal that arrived, or None when something is due."""
        times = [child.due for child in self._children if child.due is not None]
        times += [] if self._kill_at is None else [self._kill_at]
        if not times:
            return signal.sigwaitinfo(_WATCHED).si_signo
        received = signal.sigtimedwait(_WATCHED, max(0.0, min(times) - time.monotonic()))
        return None if received is None else received.si_signo

    def _start_due(self) -> None:
        now = time.monotonic()
        for number, child in enumerate(self._children):
            if child.due is not None and child.due <= now:
                child.due, child.started, child.starts = None, now, child.starts + 1
                child.pid = self._fork(number)

    def _fork(self, number: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        code: object = ExitCode.FAILED
        try:
            _stop_with(parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            code = self._work(number)
        except SystemExit as end:
            code = end.code
        except BaseException:
            logger.exception("process %d failed", number)
        finally:
            logging.shutdown()
            # Not sys.exit: the supervisor's own exit handlers must not run here.
            os._exit(code if isinstance(code, int) else ExitCode.OK)

    def _reap(self) -> None:
        """Collect every process that has ended; as PID 1 of a container, those of others too."""
        while self._running():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            for number, child in enumerate(self._children):
                if child.pid == pid:
                    child.pid = None
                    self._on_exit(number, child, os.waitstatus_to_exitcode(status))

    def _on_exit(self, number: int, child: _Child, code: int) -> None:
        """Schedule a restart, unless all are being stopped.

        A process that cannot serve at its first start (exit code 2) stops all: the others would
        fail in the same way. After a restart it does so only if no other process runs.
        """
        if self._kill_at is not None:
            self._code = self._code or (ExitCode.OK if code == ExitCode.OK else ExitCode.FAILED)
            return
        if code == ExitCode.USAGE and (child.starts == 1 or not self._running()):
            self._code = ExitCode.USAGE
            self._stop()
            return
        now = time.monotonic()
        if now - child.started >= _LONG_LIFE_S:
            child.short_lives = 0
        delay_s = min(2**child.short_lives // 2, _MAX_DELAY) * self._restart_delay_s
        child.short_lives += 1
        child.due = now + delay_s
        logger.error("process %d exited with code %d: restarting in %g s", number, code, delay_s)

    def _stop(self) -> None:
        """Let every process drain; a second call changes nothing."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._kill_after_s
            for child in self._children:
                child.due = None
            self._send(signal.SIGTERM)

    def _kill_late(self) -> None:
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at += self._kill_after_s
            for pid in self._running():
                logger.error("process with PID %d does not stop: killing it", pid)
                os.kill(pid, signal.SIGKILL)


def _stop_with(parent: int) -> None:
    """Let the kernel send SIGTERM to this process when its parent ends, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent has ended already
        os.kill(os.getpid(), signal.SIGTERM)
