"""Compare the cost of ranking with the model: ``python -m tests.bench.ranking --store store``.

The first model of a store runs on random golden candidates with one thread. Then each formula ranks
its scores: calibration, sort keys, rank scores, order. Each cell is the minimum time of many turns.
Turns alternate with the forward pass, so that other load on the machine affects both.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from app.artifacts.columns import ModelInputs
from app.artifacts.loader import Model, load
from app.artifacts.program import scores
from app.artifacts.store import Store
from app.ranking.agreement import kendall_tau
from app.ranking.calibration import Calibration, Platt
from app.ranking.explanation import explain
from app.ranking.formulas import Scores
from app.ranking.policy import Policy
from app.ranking.ranker import Ranker, order
from app.telemetry.metrics import Metrics

TURNS = 200
PLATT = Platt(method="platt", slope=1.1, intercept=-0.2)


def rankers(tasks: tuple[str, ...]) -> dict[str, Ranker]:
    """Return one ranker per formula, and one with calibration of all tasks."""
    weights = dict.fromkeys(tasks, 0.5)
    text = " * ".join(f"(1 + w.{task}*{task})**0.8" for task in tasks)
    product = Policy(formula="power_product", weights=weights)
    calibrations: dict[str, Calibration] = dict.fromkeys(tasks, PLATT)
    return {
        "`weighted_sum`": Ranker.of(Policy(weights=weights), tasks),
        "`power_product`": Ranker.of(product, tasks),
        "`power_product`, every task `platt`": Ranker.of(product, tasks, calibrations),
        "`rank_position`": Ranker.of(Policy(formula="rank_position", weights=weights), tasks),
        f"`{text}`": Ranker.of(
            Policy(formula="expression", expression=text, weights=weights), tasks
        ),
    }


def forward(model: Model, rows: int) -> tuple[Callable[[], object], Scores]:
    golden = model.golden.batch
    taken = np.arange(rows) % golden.rows
    batch = ModelInputs(
        {name: column[:1] for name, column in golden.user.items()},
        {name: column[taken] for name, column in golden.candidate.items()},
        np.zeros(rows, np.int64),
    )
    found = scores(model.program.run(batch), model.manifest.tasks)
    noise = np.random.default_rng(0).uniform(0.5, 1.0, found.shape).astype(np.float32)
    return lambda: model.program.run(batch), found * noise


def least_us(*calls: Callable[[], object]) -> list[float]:
    """Call all functions alternately and return the minimum time of each (µs)."""
    least = [float("inf")] * len(calls)
    for _ in range(TURNS):
        for i, call in enumerate(calls):
            began = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - began)
    return [seconds * 1e6 for seconds in least]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--store", type=Path, default=Path("store"))
    options.add_argument("--rows", type=int, default=500)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    model = load(next(Store(arguments.store).artifacts()), torch.device("cpu"))
    run, given = forward(model, arguments.rows)
    print(f"{model}, {arguments.rows} candidates")
    print("| formula | ranks in | of the forward pass | one candidate | explains 100 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, ranker in rankers(model.manifest.task_names).items():

        def rank(rows: Scores, by: Ranker = ranker) -> object:
            sort_keys = by.sort_keys(rows)
            return by.rank_scores(sort_keys), order(sort_keys)

        sort_keys = ranker.sort_keys(given)
        ranking = order(sort_keys)
        passed, ranked, one, explained = least_us(
            run,
            lambda rank=rank: rank(given),  # type: ignore[misc]
            lambda rank=rank: rank(given[:1]),  # type: ignore[misc]
            lambda by=ranker, m=sort_keys, r=ranking: explain(by, given, m, r).document(None),  # type: ignore[misc]
        )
        print(
            f"| {name} | {ranked:.0f} µs | {ranked / passed:.2%} | {one:.1f} µs "
            f"| {explained / 1e3:.2f} ms |"
        )
    print(f"\nThe forward pass takes {passed / 1e3:.2f} ms. {_look(model, given)}")


def _look(model: Model, given: Scores) -> str:
    first, *_, shadow = rankers(model.manifest.task_names).values()
    sort_keys = first.sort_keys(given)
    other = shadow.sort_keys(given)
    metrics = Metrics()
    (tau,) = least_us(lambda: kendall_tau(sort_keys, other))
    (counted,) = least_us(
        lambda: metrics.ranking.scores_sampled("", first.tasks, given, given[:, 0])
    )
    return f"Kendall's tau takes {tau:.0f} µs, counting the scores by bucket {counted:.0f} µs."


if __name__ == "__main__":
    main()
