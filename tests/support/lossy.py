"""The service with a lane that loses its device when a file appears: `tests.support.lossy`."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from app import main
from app.artifacts.loader import Model
from app.engine.batch import Chunk
from app.engine.lanes import BatchResult, Lane, run
from app.server import process
from app.settings import Settings

LOST = Path(sys.argv[-1])


def execute(model: Model, chunks: Sequence[Chunk]) -> BatchResult:
    if LOST.exists():
        return BatchResult(RuntimeError("CUDA error: an illegal memory access"), is_fatal=True)
    return run(model, chunks)


def lanes(*_: object, on_lost: Callable[[], None], **__: object) -> list[Lane]:
    loop = asyncio.get_running_loop()
    return [Lane("lane-0", loop, executor=execute, on_lost=on_lost)]


if __name__ == "__main__":
    main.start_lanes = lanes  # type: ignore[attr-defined]
    sys.exit(process.run(Settings(store=Path(sys.argv[1]), port=int(sys.argv[2]))))
