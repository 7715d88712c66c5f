"""How long the load of a version keeps other threads from running: it holds the interpreter's lock.

    python -m tests.bench.load_stalls [--loads 20] [--switch-interval 0.005]
    python -m tests.bench.load_stalls --busy 2 --niceness 10 --loads 8

A thread loads the reference model (`tests.bench.http`) again and again. Another one sleeps for half
a millisecond at a time, and notes when it cannot go on. Stalls are the CPU time that the loading
thread used meanwhile: on a machine with idle cores, that is how long a request waits. The places
are where the loading thread was when it let go. "Late" is by the clock. With `--busy`, so many
other processes want the cores; with `--niceness`, the loading thread has less weight than they.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from app.artifacts.loader import load
from app.artifacts.store import Artifact, Store
from tests.bench.http import reference_artifact

_NAP_S = 0.0005
_STALL_S = 0.002
_CPU = torch.device("cpu")


def stalls(
    artifact: Artifact, loads: int, niceness: int
) -> tuple[list[float], list[float], Counter[str], float]:
    """Return stalls (s of CPU time), delays (s), the sum by place, and a load's CPU time (s)."""
    is_over = threading.Event()
    ready = threading.Event()
    used_s = 0.0

    def work() -> None:
        nonlocal used_s
        torch.set_num_threads(1)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        load(artifact, _CPU)
        ready.set()
        began = time.thread_time()
        for _ in range(loads):
            load(artifact, _CPU)
        used_s = time.thread_time() - began
        is_over.set()

    loader = threading.Thread(target=work)
    loader.start()
    ready.wait()
    assert loader.ident is not None
    clock = time.pthread_getcpuclockid(loader.ident)
    found: list[float] = []
    delays: list[float] = []
    places: Counter[str] = Counter()
    while not is_over.is_set():
        before, began = time.clock_gettime(clock), time.perf_counter()
        time.sleep(_NAP_S)
        late_s = time.perf_counter() - began - _NAP_S
        if is_over.is_set():
            break
        stall_s = min(late_s, time.clock_gettime(clock) - before)
        found.append(stall_s)
        delays.append(late_s)
        if stall_s > _STALL_S:
            frame = sys._current_frames().get(loader.ident)
            places[_place(frame)] += round(stall_s * 1e6)
    loader.join()
    return found, delays, places, used_s / loads


def _place(frame: object) -> str:
    """Return the innermost function of the service, and the one of torch that it called."""
    stack = traceback.extract_stack(frame)  # type: ignore[arg-type]
    own = [entry for entry in stack if f"{'app'}/" in entry.filename]
    inner = [entry for entry in stack if "/torch/" in entry.filename]
    name = f"{Path(own[-1].filename).stem}.{own[-1].name}" if own else "elsewhere"
    return f"{name} > {inner[-1].name}" if inner else name


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", type=int, default=20, help="(default: 20)")
    parser.add_argument("--switch-interval", type=float, default=0.0005, metavar="SECONDS")
    parser.add_argument("--niceness", type=int, default=0, help="of the loading thread")
    parser.add_argument("--busy", type=int, default=0, help="processes that use a core each")
    options = parser.parse_args()
    sys.setswitchinterval(options.switch_interval)
    burner = [sys.executable, "-c", "while True: pass"]
    with tempfile.TemporaryDirectory() as temporary:
        artifact = reference_artifact(Store(Path(temporary)))
        burners = [subprocess.Popen(burner) for _ in range(options.busy)]
        try:
            found, delays, places, load_s = stalls(artifact, options.loads, options.niceness)
        finally:
            for process in burners:
                process.kill()
    p50, p90, p99, longest = np.quantile(found, (0.5, 0.9, 0.99, 1)) * 1e3
    held_ms = sum(stall_s for stall_s in found if stall_s > _STALL_S) / options.loads * 1e3
    print(f"one load: {load_s * 1e3:.0f} ms of CPU time, {held_ms:.0f} ms in stalls over 2 ms")
    print(f"stalls: p50 {p50:.2f}, p90 {p90:.2f}, p99 {p99:.2f}, longest {longest:.1f} ms")
    p50, p90, p99, longest = np.quantile(delays, (0.5, 0.9, 0.99, 1)) * 1e3
    print(f"late:   p50 {p50:.2f}, p90 {p90:.2f}, p99 {p99:.2f}, longest {longest:.1f} ms")
    for place, total_us in places.most_common(8):
        print(f"{total_us / options.loads / 1e3:7.2f} ms a load  {place}")


if __name__ == "__main__":
    main()
