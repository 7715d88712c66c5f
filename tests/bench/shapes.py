"""Check that no batch is slow because of its shape after warm-up, which would mean recompilation.

    python -m tests.bench.shapes [--store STORE] [--batches 3000]

Warms up a version as a deployment does, then runs batches of random numbers of rows and requests on
one thread. The CPU time of each batch is compared with the line `a + b · rows` fitted to all
batches. Recompilation by TorchScript for a new shape would take tens of milliseconds. Without a
store, the reference model runs.
"""

import argparse
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from app.artifacts.loader import Model, load
from app.artifacts.store import Store
from app.engine.batch import Chunk
from app.engine.lanes import run
from app.engine.request import RequestFeatures
from app.lifecycle.warm_up import compile_kernels
from tests.bench.http import reference_artifact
from tests.support.fakes import chunk_of

WARM_UP_ROWS, WARM_UP_PASSES = (1, 64, 512), 3
_LEAST_S = 1e-4


def chunk(model: Model, rows: int, rng: np.random.Generator) -> Chunk:
    """Return a request of random golden candidates."""
    golden = model.golden.batch
    taken = rng.integers(0, golden.rows, rows)
    features = RequestFeatures(
        user={name: column[:1] for name, column in golden.user.items()},
        candidate={name: column[taken] for name, column in golden.candidate.items()},
        rows=rows,
        unknown_ids={},
    )
    return chunk_of(features, model=model)


def random_batches(count: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield the rows per request of each batch. One batch in three has a single request."""
    for i in range(count):
        requests = 1 if i % 3 == 0 else int(rng.integers(2, 12))
        yield [int(rows) for rows in rng.integers(1, 512 // requests, requests)]


def measure(model: Model, batches: int) -> None:
    """Run warm-up and random batches; print how far batches are above the fitted line."""
    rng = np.random.default_rng(0)
    torch.get_num_threads()
    torch.set_num_threads(1)
    for rows in WARM_UP_ROWS:
        for sizes in ([rows], [1, max(1, rows - 1)], [1] * rows):
            for _ in range(WARM_UP_PASSES):
                run(model, [chunk(model, size, rng) for size in sizes])
    if model.program.pads_from:
        compile_kernels(model, max(WARM_UP_ROWS), pauses=False)
    observed: list[tuple[int, int, float]] = []
    for sizes in random_batches(batches, rng):
        chunks = [chunk(model, size, rng) for size in sizes]
        began = time.thread_time()
        run(model, chunks)
        observed.append((sum(sizes), len(sizes), time.thread_time() - began))
    rows_, _, seconds = np.array(observed).T
    b_s, a_s = np.polyfit(rows_, seconds, 1)
    ratio = seconds / np.maximum(a_s + b_s * rows_, _LEAST_S)
    print(f"{model}: a batch takes {a_s * 1e6:.0f} + {b_s * 1e6:.1f} x rows us of CPU")
    for percent in (50, 99, 99.9, 100):
        print(f"  p{percent:g}: {np.percentile(ratio, percent):.2f} x the line")
    worst = observed[int(ratio.argmax())]
    print(f"  worst: {worst[0]} rows of {worst[1]} requests, {worst[2] * 1e3:.2f} ms")


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.shapes", description=__doc__)
    parser.add_argument("--store", type=Path, help="run the newest versions of this store")
    parser.add_argument(
        "--batches", type=int, default=3000, help="number of batches (default: 3000)"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(arguments.store or Path(folder))
        if arguments.store is None:
            reference_artifact(store)
        newest = {artifact.model: artifact for artifact in store.artifacts()}
        if not newest:
            sys.exit(f"store {arguments.store} has no artifacts")
        for artifact in newest.values():
            model = load(artifact, torch.device("cpu"))
            # In a separate thread, as on a lane: the TorchScript executor specializes per thread.
            thread = threading.Thread(target=measure, args=(model, arguments.batches))
            thread.start()
            thread.join()


if __name__ == "__main__":
    main()
