"""Results of training runs, kept as JSON lines, so that an interrupted comparison can continue.

A line is written when its run ends. A run is identified by a digest of its experiment, including
seed and data: a changed configuration is another run. Changes of code or of data files are not
detected; use a new folder for them.
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
    """Result of one training run.

    Attributes:
        digest: of the experiment.
        name: shown in tables: the network, and what else is varied.
        seed: of the parameters and the batches.
        parameters: number of parameters without embedding tables.
        embedding_parameters: number of parameters of the tables.
        epochs: number of epochs trained.
        seconds: duration, including evaluation.
        evaluation: metrics on the test set.
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
    """Mean and sample standard deviation of the finite values; NaN if there are too few."""

    mean: float
    std: float
    count: int = 0

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The spread of `values`."""
        finite = [value for value in values if math.isfinite(value)]
        return cls(
            statistics.fmean(finite) if finite else math.nan,
            statistics.stdev(finite) if len(finite) > 1 else math.nan,
            len(finite),
        )

    def difference(self, other: "Spread") -> tuple[float, float]:
        """The difference of two means, and half the width of its 95 % interval (Welch 1947).

        The interval is NaN for fewer than two values on either side.
        """
        own, its = self.std**2 / max(self.count, 1), other.std**2 / max(other.count, 1)
        if not own + its > 0:
            return self.mean - other.mean, own + its
        freedom = (own + its) ** 2 / (
            own**2 / max(self.count - 1, 1) + its**2 / max(other.count - 1, 1)
        )
        return self.mean - other.mean, t_quantile(freedom) * math.sqrt(own + its)


def t_quantile(freedom: float, probability: float = 0.975) -> float:
    """The quantile of Student's t distribution, for a probability of at least one half.

    With t = √freedom · tan θ, the distribution function is 1/2 + c·∫cos(θ)^(freedom-1) dθ; the
    integral is taken by Simpson's rule, and the quantile found by bisection in θ.
    """
    log_c = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(math.pi) / 2

    def above_half(angle: float) -> float:
        steps = 400
        values = [math.pow(math.cos(angle * i / steps), freedom - 1) for i in range(steps + 1)]
        weighted = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
        return math.exp(log_c) * weighted * angle / steps / 3

    low, high = 0.0, math.pi / 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if above_half(middle) < probability - 0.5 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


class RunStore:
    """The file of runs: read once when opened, then appended to."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; remove an incomplete last line.

        Raises:
            ExperimentInvalid: a line is not a run.
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
                raise ExperimentInvalid(f"{path}: line {number} is not a run") from error
            self._runs[run.digest] = run

    def find(self, experiment: Experiment) -> Run | None:
        """The run of `experiment`, or `None`."""
        return self._runs.get(digest(experiment))

    def add(self, run: Run) -> None:
        """Add a run and append it to the file."""
        self._runs[run.digest] = run
        with self._path.open("a", encoding="utf-8") as file:
            file.write(run.model_dump_json() + "\n")


def digest(experiment: Experiment) -> str:
    """A hash of everything in the experiment file that the metrics of a run depend on."""
    decisive = experiment.model_dump(mode="json", exclude_unset=True, include=DECISIVE)
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
