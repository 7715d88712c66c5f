"""Synthetic logs whose outcomes are drawn from a known formula."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from app.ranking.policy import Policy
from app.ranking.ranker import Ranker
from app.tuning.log import Log

TASKS = ("click", "like", "dwell")


def log(requests=400, *, candidates=12, exponents=(1.0, 3.0, 0.3), seed=0, positions=False) -> Log:
    """Scores of three tasks, and an outcome `click` whose odds are a power product of the scores.

    A request has 1 to `candidates` candidates. `like` is undefined without a click.
    """
    random = np.random.default_rng(seed)
    sizes = random.integers(1, candidates + 1, requests)
    request = np.repeat(np.arange(requests), sizes)
    scores = np.exp(0.7 * random.normal(size=(len(request), 3)) - 1.5).astype(np.float32)
    log_odds = np.log(scores.astype(np.float64)) @ np.array(exponents)
    p = 1 / (1 + np.exp(-2 * (log_odds - np.quantile(log_odds, 0.8))))
    click = (random.random(len(request)) < p).astype(np.float64)
    like = np.where(click > 0, (random.random(len(request)) < 0.4).astype(np.float64), np.nan)
    return Log(
        tasks=TASKS,
        request_ids=[f"r{number}" for number in range(requests)],
        request=request,
        scores=np.clip(scores, 0.001, 0.999),
        outcomes={"click": click, "like": like, "dwell": click * random.gamma(2.0, 10.0, len(p))},
        positions=np.concatenate([1.0 + np.arange(size) for size in sizes]) if positions else None,
    )


def ranker(formula="power_product", **changes) -> Ranker:
    """A ranker of the three tasks with all weights 1, unless `changes` says otherwise."""
    weights = {"click": 1.0, "like": 1.0, "dwell": 1.0}
    return Ranker.of(Policy(**{"formula": formula, "weights": weights} | changes), TASKS)


def columns(log: Log) -> dict[str, list[Any]]:
    """The columns of a log's table; None is an empty cell."""
    table: dict[str, list[Any]] = {
        "request_id": [log.request_ids[number] for number in log.request]
    }
    for k, task in enumerate(log.tasks):
        table[f"score_{task}"] = log.scores[:, k].tolist()
    for name, outcome in log.outcomes.items():
        table[f"outcome_{name}"] = [None if np.isnan(value) else value for value in outcome]
    if log.positions is not None:
        table["position"] = log.positions.tolist()
    return table


def write(path: Path, table: dict[str, list[Any]]) -> Path:
    """Write a table as Parquet."""
    parquet.write_table(pa.table(table), path)
    return path
