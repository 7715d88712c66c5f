"""Two minimal processes, kept running by `Supervisor`: `python -m tests.support.brood FOLDER KIND`.

Each process prints `<number> <pid>` when it starts. What it does then depends on KIND and on how
often this number has started before, which is the count of its files in FOLDER.
"""

import os
import signal
import sys
from pathlib import Path

from app.server.supervisor import Supervisor

FOLDER, KIND = Path(sys.argv[1]), sys.argv[2]


def wait_for_sigterm() -> int:
    signal.sigwait([signal.SIGTERM])
    return 0


def run(number: int) -> int:
    signal.alarm(60)  # ends the process even if its test was killed
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    starts = len(list(FOLDER.glob(f"{number}-*")))
    (FOLDER / f"{number}-{starts}").touch()
    os.write(1, f"{number} {os.getpid()}\n".encode())  # one write, so that lines do not mix
    if number == 0:
        match KIND:
            case "unusable":
                return 2
            case "frail" if starts < 3:
                return 1
            case "raises" if starts < 1:
                raise ValueError("a fault")
            case "later unusable" if starts in (1, 2):
                return 2
            case "stubborn":
                signal.pause()
    return wait_for_sigterm()


if __name__ == "__main__":
    sys.exit(Supervisor(2, run, kill_after_s=0.2, restart_delay_s=0.01).run())
