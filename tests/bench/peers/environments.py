"""One virtual environment per peer, under `build/peers/<name>`, with pinned packages.

    python -m tests.bench.peers.environments [mosec triton …]

An environment is made once; `requirements.txt` inside it tells what was installed, and a peer whose
pins change is installed again. A peer that cannot be installed is left out with the reason, which
is kept in `build/peers/<name>.failed` and shown in the report.
"""

import argparse
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import REPOSITORY

FOLDER = REPOSITORY / "build" / "peers"
_TORCH = "torch==2.13.0"  # the version of requirements-torch.lock; every server runs the same file
_NUMPY = "numpy==2.4.6"
REQUIREMENTS: Mapping[str, Sequence[str]] = {
    "mosec": ("mosec==0.9.8", _TORCH, _NUMPY),
    "fastapi": ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "orjson==3.13.0", _TORCH, _NUMPY),
    "litserve": ("litserve==0.2.19", _TORCH, _NUMPY),
    "triton": ("nvidia-pytriton==0.7.0", _TORCH, "numpy==1.26.4"),
    "ray": ("ray[serve]==2.60.0", _TORCH, _NUMPY),
    "bentoml": ("bentoml==1.4.40", _TORCH, _NUMPY),
    # Its workers ask for an event loop in a way that uvloop 0.22 no longer supports.
    "mlserver": ("mlserver==1.7.1", "uvloop==0.21.0", _TORCH, "numpy==1.26.4"),
}


class CannotInstall(Exception):
    """A peer's packages cannot be installed here; the message says why."""


def python_of(peer: str) -> Path:
    """Return the Python of a peer's environment; install it first if it is not complete.

    Raises:
        CannotInstall: with the last line of pip's complaint, also if an earlier try failed.
    """
    folder = FOLDER / peer
    python = folder / "bin" / "python"
    wanted = "\n".join(REQUIREMENTS[peer]) + "\n"
    done, failed = folder / "requirements.txt", FOLDER / f"{peer}.failed"
    if done.is_file() and done.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    failed.unlink(missing_ok=True)
    venv.create(folder, with_pip=True)
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    completed = subprocess.run(
        [*pip, *REQUIREMENTS[peer]], capture_output=True, text=True, check=False
    )
    if completed.returncode != 0:
        lines = [line for line in completed.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR")), "pip failed")
        failed.write_text(reason)
        raise CannotInstall(reason)
    done.write_text(wanted)
    return python


def main() -> int:
    """Install the given peers, or all, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(REQUIREMENTS))
    peers = parser.parse_args().peers or list(REQUIREMENTS)
    if unknown := [peer for peer in peers if peer not in REQUIREMENTS]:
        parser.error(f"unknown peer {unknown[0]} (known: {', '.join(REQUIREMENTS)})")
    code = 0
    for peer in peers:
        try:
            print(f"{peer}: {python_of(peer)}", flush=True)
        except CannotInstall as error:
            print(f"{peer}: {error}", flush=True)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
