"""`python -m app` and `python -m models`, as forks of a process that has imported torch already.

The import takes more than a second, longer than most tests. So a process that never runs a command
imports it once, and each command is a fork of it, as the processes of `gatehouse serve --processes`
are forks of their supervisor. Tests of the start itself, of its imports and of variables that
libraries read start Python.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["app.cli.main", "app.cli.serve", "app.server.process"])


class Forked:
    """`python -m` with a module and its arguments; the methods are those of `subprocess.Popen`."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdout: Path | None = None,
        stderr: Path,
        cwd: Path,
        env: Mapping[str, str],
    ) -> None:
        """Start a module with arguments; its output goes to files."""
        given = ([*arguments], stdout, stderr, str(cwd), dict(env))
        self._process = _FORKS.Process(target=_run, args=given, daemon=True)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code if the process has ended."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process has ended; return the exit code."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("python -m", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run_forked(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a module to its end; return what it wrote, as `subprocess.run` does."""
    with tempfile.TemporaryDirectory() as temporary:
        out, err = Path(temporary) / "out", Path(temporary) / "err"
        process = Forked(arguments, stdout=out, stderr=err, cwd=cwd, env=env)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess([*arguments], code, out.read_text(), err.read_text())


def _run(
    arguments: Sequence[str], stdout: Path | None, stderr: Path, cwd: str, env: dict[str, str]
) -> None:
    """Take the place of a new Python: its streams, environment and folder."""
    for descriptor, path in ((1, stdout), (2, stderr)):
        if path is not None:
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(opened, descriptor)
            os.close(opened)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None  # TMPDIR may be another
    module, *rest = arguments
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
