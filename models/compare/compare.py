"""Compare several networks on one data set, with several seeds each.

Data, split, tasks and embeddings are the same for all networks; a seed draws the parameters and the
order of the batches. The baseline is the first `single_task` network: a task that is worse than in
a network of its own pays for the gain of another task, the see-saw of the PLE paper (RecSys 2020).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from models.compare.figures import leading
from models.compare.runs import Run, RunStore, Spread
from models.compare.series import PlannedRun, train_missing
from models.training import experiment
from models.training.experiment import Experiment, ExperimentInvalid

CONFIGS = tuple(
    Path(__file__).parents[1] / "configs" / f"{name}.toml"
    for name in ("single_task", "shared_bottom", "moe", "mmoe", "cgc", "demo", "esmm")
)
RUNS = "runs.jsonl"
FEWEST_SEEDS = 2  # fewer have no standard deviation
SAME = ("data", "tasks", "embedding", "clamp")
TITLES = {
    "single_task": "Single-task",
    "shared_bottom": "Shared-Bottom",
    "moe": "MoE",
    "mmoe": "MMoE",
    "cgc": "CGC",
    "ple": "PLE",
    "esmm": "ESMM",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One network of a comparison: its name, and its experiment without the seed."""

    name: str
    experiment: Experiment


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of a comparison: the entries in order, and the runs of each, one per seed."""

    entries: tuple[Entry, ...]
    runs: Mapping[str, Sequence[Run]]

    @property
    def baseline(self) -> str:
        """The network that others are compared with: the first single-task one, or the first."""
        for entry in self.entries:
            if entry.experiment.network.architecture == "single_task":
                return entry.name
        return self.entries[0].name

    @property
    def tasks(self) -> list[str]:
        """The evaluated tasks, in order."""
        return list(self.runs[self.entries[0].name][0].evaluation)

    def values(self, name: str, task: str, figure: str) -> list[float]:
        """One metric of one network by seed; undefined values are left out."""
        values = (run.evaluation[task].get(figure) for run in self.runs[name])
        return [value for value in values if value is not None]

    def spread(self, name: str, task: str, figure: str) -> Spread:
        """Mean and standard deviation of a metric over the seeds."""
        return Spread.of(self.values(name, task, figure))

    def leading(self, task: str) -> str | None:
        """The main metric of a task, if it is defined."""
        return leading(self.runs[self.baseline][0].evaluation[task])

    def gains(self, name: str, task: str) -> list[float]:
        """Improvement over the baseline's mean by seed, in the main metric of the task."""
        figure = self.leading(task)
        assert figure is not None
        sign = -1 if figure == "mse" else 1
        reference = self.spread(self.baseline, task, figure).mean
        return [sign * (value - reference) for value in self.values(name, task, figure)]


def read(paths: Sequence[Path]) -> tuple[Entry, ...]:
    """Read the experiments to compare, in the order of `TITLES`.

    Raises:
        ExperimentInvalid: a file cannot be used, or two differ in more than network and training.
    """
    experiments = [(path, experiment.read(path)) for path in paths]
    first_path, first = experiments[0]
    for path, other in experiments[1:]:
        for field in SAME:
            if getattr(other, field) != getattr(first, field):
                raise ExperimentInvalid(
                    f"{path}: [{field}] differs from {first_path}; compared networks must share it"
                )
    order = list(TITLES)
    experiments.sort(key=lambda pair: order.index(pair[1].network.architecture))
    count = Counter(config.network.architecture for _, config in experiments)
    entries: dict[str, Entry] = {}
    for path, config in experiments:
        architecture = config.network.architecture
        name = TITLES[architecture] + (f" ({path.stem})" if count[architecture] > 1 else "")
        if name in entries:
            raise ExperimentInvalid(f"{path}: given twice, or another file has the same name")
        entries[name] = Entry(name, config)
    return tuple(entries.values())


def run(
    entries: Sequence[Entry], seeds: int, folder: Path, console: Console, *, quiet: bool = False
) -> Comparison:
    """Train every network with seeds 0 to `seeds` - 1, except for runs already in `folder`.

    Raises:
        ExperimentInvalid: the file of runs is damaged.
        Diverged: a loss is not finite; the runs before are kept.
        OSError: the folder cannot be written.
    """
    planned = [
        PlannedRun(entry.name, seeded(entry.experiment, seed))
        for seed in range(seeds)
        for entry in entries
    ]
    runs = train_missing(planned, RunStore(folder / RUNS), console, quiet=quiet)
    by_name: dict[str, list[Run]] = {entry.name: [] for entry in entries}
    for plan, run_of_it in zip(planned, runs, strict=True):
        by_name[plan.name].append(run_of_it)
    return Comparison(tuple(entries), by_name)


def seeded(base: Experiment, seed: int) -> Experiment:
    """The experiment with another training seed and the same data."""
    return base.model_copy(update={"training": base.training.model_copy(update={"seed": seed})})
