"""Two processes that do little, under a `Supervisor`: `python -m tests.support.brood FOLDER KIND`.

Each start prints `<number> <pid>`, and each SIGHUP `<number> reload`. What it does then
depends on the kind, and on how often its number was started before: files in the folder count that.
"""

import os
import signal
import sys
from pathlib import Path

from app.server.supervisor import Supervisor

FOLDER, KIND = Path(sys.argv[1]), sys.argv[2]


def until_stopped(number: int) -> int:
    while signal.sigwait([signal.SIGTERM, signal.SIGHUP]) == signal.SIGHUP:
        say(f"{number} reload")
    return 0


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # whole, whoever else writes


def life(number: int) -> int:
    signal.alarm(60)  # none outlives its test, whatever becomes of that
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])
    lives = len(list(FOLDER.glob(f"{number}-*")))
    (FOLDER / f"{number}-{lives}").touch()
    say(f"{number} {os.getpid()}")
    if number == 0:
        match KIND:
            case "unusable":
                return 2
            case "frail" if lives < 3:
                return 1
            case "raises" if lives < 1:
                raise ValueError("a fault")
            case "later unusable" if lives in (1, 2):
                return 2
            case "stubborn":
                signal.pause()
    return until_stopped(number)


if __name__ == "__main__":
    sys.exit(Supervisor(2, life, kill_after_s=0.2, restart_delay_s=0.01).run())
