"""Loss by task correlation: the question of figure 4 of the MMoE paper (KDD 2018).

How much does a network lose where its tasks are less alike? The synthetic data know their
correlation p, so it can be swept: every network learns every p, several times. A seed draws the
functions, the examples, the parameters and the order of the batches; with one seed all networks
have the same data, and the p differ in the second task's weights alone. So losses are compared
within a seed, as ratios.
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
    """Test losses by network and correlation, a loss a seed: the tasks' mean squared error.

    The first network is the baseline.
    """

    losses: Mapping[str, Mapping[float, Sequence[float]]]

    @property
    def baseline(self) -> str:
        """Whom the others are measured against."""
        return next(iter(self.losses))

    def ratios(self, name: str, correlation: float) -> list[float]:
        """A network's loss over the baseline's, seed by seed."""
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
        ExperimentInvalid: the data are not synthetic; or the file of runs is none.
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
    for (name, p, _), each in zip(planned, runs, strict=True):
        losses[name][p].append(loss(each))
    return Sweep(losses)


def correlated(base: Experiment, correlation: float, seed: int) -> Experiment:
    """The experiment with data of that correlation, all of it drawn from `seed`.

    Raises:
        ExperimentInvalid: its data are not synthetic.
    """
    if not isinstance(base.data, SyntheticConfig):
        raise ExperimentInvalid(
            f"{base.name}: data.source: a sweep of the correlation needs synthetic data"
        )
    data = base.data.model_copy(update={"correlation": correlation, "seed": seed})
    return seeded(base, seed).model_copy(update={"data": data})


def loss(run: Run) -> float:
    """The mean over the tasks of the squared error on the test set."""
    return statistics.fmean(figures["mse"] for figures in run.evaluation.values())


def markdown(sweep: Sweep) -> str:
    """Losses, and their ratios to the baseline, by correlation: mean ± standard deviation."""
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
        f"Mean squared error on the test set, both tasks' mean:\n\n{table(header, losses)}\n"
        f"The same over that of {sweep.baseline} with the same data:\n\n{table(header, ratios)}"
    )
