"""What training runs gave, kept as JSON lines, so that a comparison can stop and go on.

A line is written when its run is over. A run is found again by the digest of its experiment, seed
and data included: a changed configuration is another run. Code and data files that have changed are
not noticed; take a new folder for them.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from models.networks.config import Record
from models.training.evaluate import Evaluation
from models.training.experiment import Experiment, ExperimentInvalid

DECISIVE = {"network", "tasks", "data", "embedding", "training", "clamp"}


class Run(Record):
    """One trained network, by its figures.

    Attributes:
        digest: of the experiment that was run.
        name: what people read: the network, and what else is varied.
        seed: of the parameters and the batches.
        parameters: without embedding tables.
        embedding_parameters: those of the tables.
        epochs: how many were run.
        seconds: how long that took, evaluation included.
        evaluation: the figures on the test set.
    """

    digest: str
    name: str
    seed: int
    parameters: int
    embedding_parameters: int
    epochs: int
    seconds: float
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation of the finite values of some runs; NaN of too few."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The spread of `values`."""
        finite = [value for value in values if math.isfinite(value)]
        return cls(
            statistics.fmean(finite) if finite else math.nan,
            statistics.stdev(finite) if len(finite) > 1 else math.nan,
        )


class RunStore:
    """The file of runs: read when opened, and appended to a run at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; what an interrupt left half written at its end is cut off.

        Raises:
            ExperimentInvalid: a line is no run.
            OSError: the file cannot be read or made.
        """
        self._path = path
        self._runs: dict[str, Run] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                run = Run.model_validate_json(line)
            except ValidationError as error:
                raise ExperimentInvalid(f"{path}: line {number} is no run") from error
            self._runs[run.digest] = run

    def find(self, experiment: Experiment) -> Run | None:
        """The run of `experiment`, if there was one."""
        return self._runs.get(digest(experiment))

    def add(self, run: Run) -> None:
        """Keep a run, and write it at once."""
        self._runs[run.digest] = run
        with self._path.open("a", encoding="utf-8") as file:
            file.write(run.model_dump_json() + "\n")


def digest(experiment: Experiment) -> str:
    """What names an experiment: a hash of all in its file that a run's figures depend on."""
    said = experiment.model_dump(mode="json", exclude_unset=True, include=DECISIVE)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
