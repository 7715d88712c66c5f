"""Two processes that do little, kept by a `Supervisor`: `python -m tests.support.brood FOLDER KIND`.

Each life prints `<number> <pid>`. What a life then does depends on the kind, and on how many lives
its number has had, which files in the folder count.
"""

import os
import signal
import sys
from pathlib import Path

from app.server.supervisor import Supervisor

FOLDER, KIND = Path(sys.argv[1]), sys.argv[2]


def until_asked() -> int:
    signal.sigwait([signal.SIGTERM])
    return 0


def life(number: int) -> int:
    signal.alarm(60)  # no life outlasts its test, whatever becomes of that
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    lives = len(list(FOLDER.glob(f"{number}-*")))
    (FOLDER / f"{number}-{lives}").touch()
    os.write(1, f"{number} {os.getpid()}\n".encode())  # whole, whoever else writes
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
    return until_asked()


if __name__ == "__main__":
    sys.exit(Supervisor(2, life, kill_after_s=0.2, restart_delay_s=0.01).run())
