"""Loss by task correlation, as in figure 4 of the MMoE paper (KDD 2018).

How much worse is a network when its tasks are less related? The synthetic data has a task
correlation p, so every network is trained for several p and seeds. A seed draws the functions, the
examples, the parameters and the order of the batches. With the same seed, all networks have the
same data, and two values of p differ only in the weights of the second task. Losses are therefore
compared within a seed, as ratios.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from models.compare import compare
from models.compare.compare import Entry, seeded
from models.compare.runs import Run, RunStore, Spread
from models.compare.series import PlannedRun, train_missing
from models.compare.tables import spread, table
from models.data import SyntheticConfig
from models.training.experiment import Experiment, ExperimentInvalid

CONFIGS = tuple(
    Path(__file__).parents[1] / "configs" / "correlation" / f"{name}.toml"
    for name in ("shared_bottom", "moe", "mmoe")
)
CORRELATIONS = (0.0, 0.5, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Test losses by network and correlation, one per seed: the mean squared error of both tasks.

    The first network is the baseline.
    """

    losses: Mapping[str, Mapping[float, Sequence[float]]]

    @property
    def baseline(self) -> str:
        """The network that others are compared with."""
        return next(iter(self.losses))

    def ratios(self, name: str, correlation: float) -> list[float]:
        """Loss divided by the loss of the baseline, for each seed."""
        own, other = self.losses[name][correlation], self.losses[self.baseline][correlation]
        return [mine / its for mine, its in zip(own, other, strict=True)]


def run(
    entries: Sequence[Entry],
    seeds: int,
    folder: Path,
    console: Console,
    *,
    correlations: Sequence[float] = CORRELATIONS,
    quiet: bool = False,
) -> Sweep:
    """Train every network at every correlation with seeds 0 to `seeds` - 1.

    Raises:
        ExperimentInvalid: the data is not synthetic, or the file of runs is damaged.
        Diverged: a loss is not finite; the runs before are kept.
        OSError: the folder cannot be written.
    """
    planned = [
        (entry.name, p, correlated(entry.experiment, p, seed))
        for seed in range(seeds)
        for p in correlations
        for entry in entries
    ]
    named = [PlannedRun(f"{name}, p = {p:g}", experiment) for name, p, experiment in planned]
    runs = train_missing(named, RunStore(folder / compare.RUNS), console, quiet=quiet)
    losses: dict[str, dict[float, list[float]]] = {
        entry.name: {p: [] for p in correlations} for entry in entries
    }
    for (name, p, _), run_of_it in zip(planned, runs, strict=True):
        losses[name][p].append(loss(run_of_it))
    return Sweep(losses)


def correlated(base: Experiment, correlation: float, seed: int) -> Experiment:
    """The experiment with data of that correlation, everything drawn from `seed`.

    Raises:
        ExperimentInvalid: the data is not synthetic.
    """
    if not isinstance(base.data, SyntheticConfig):
        raise ExperimentInvalid(
            f'{base.name}: data.source: must be "synthetic" for a sweep, not "{base.data.source}"'
        )
    data = base.data.model_copy(update={"correlation": correlation, "seed": seed})
    return seeded(base, seed).model_copy(update={"data": data})


def loss(run: Run) -> float:
    """Mean over the tasks of the squared error on the test set."""
    return statistics.fmean(figures["mse"] for figures in run.evaluation.values())


def markdown(sweep: Sweep) -> str:
    """Tables of losses and of ratios to the baseline by correlation: mean ± standard deviation."""
    correlations = list(sweep.losses[sweep.baseline])
    header = ["network", *(f"p = {p:g}" for p in correlations)]
    losses = [
        [name, *(spread(Spread.of(by_p[p]), 3) for p in correlations)]
        for name, by_p in sweep.losses.items()
    ]
    ratios = [
        [name, *(spread(Spread.of(sweep.ratios(name, p)), 2) for p in correlations)]
        for name in list(sweep.losses)[1:]
    ]
    return (
        f"Mean squared error on the test set, mean of both tasks:\n\n{table(header, losses)}\n"
        f"Ratio to {sweep.baseline} on the same data:\n\n{table(header, ratios)}"
    )
