"""Measure the gain of computing the user once per request: ``python -m tests.bench.user_once``.

Two scripted and frozen networks of the same shape run alternately. One gets user and candidate
features separately. The other gets only candidate features, with the user's values repeated for
each candidate. Each cell is the median of the ratios tiled time / once time: above 1, once is
faster.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from models.networks.build import build
from models.networks.config import (
    DenseFeature,
    Feature,
    IdFeature,
    IdListFeature,
    NetworkConfig,
    Task,
)
from tests.bench.fused import Form, Values, frozen

Arguments = tuple[Values, Values, Tensor]

SHARES = (0, 25, 50, 75, 90)  # percentage of user columns
REQUESTS = ((1, 500), (8, 200))  # requests, candidates per request
COLUMNS = 400
TASKS = [Task(name=name, kind="binary") for name in ("click", "like", "follow")]
NETWORKS = {
    "MMoE 8 experts": NetworkConfig(
        architecture="mmoe", num_experts=8, expert_hidden_units=(256, 128, 64)
    ),
    "PLE 2 levels, 2 + 2 experts": NetworkConfig(
        architecture="ple", num_levels=2, expert_hidden_units=(256, 128, 64)
    ),
}


def features(share: int, *, embedded: bool) -> list[Feature]:
    """Return features with ``COLUMNS`` columns, ``share`` percent of them for the user.

    With ``embedded``, up to half of the user's columns are embeddings of ids.
    """
    user = COLUMNS * share // 100
    made: list[Feature] = []
    if embedded and user:
        ids = user // 2 // 16
        made += [
            IdFeature(name=f"id{i}", side="user", vocabulary_size=10_000, embedding_dim=16)
            for i in range(ids - 1)
        ]
        made.append(
            IdListFeature(
                name="history", side="user", vocabulary_size=10_000, embedding_dim=16, max_length=50
            )
        )
        made.append(DenseFeature(name="user", side="user", dim=user - 16 * ids))
    elif user:
        made.append(DenseFeature(name="user", side="user", dim=user))
    return [*made, DenseFeature(name="candidate", side="candidate", dim=COLUMNS - user)]


def column(feature: Feature, count: int) -> Tensor:
    if isinstance(feature, DenseFeature):
        return torch.randn(count, feature.dim)
    shape = (count,) if isinstance(feature, IdFeature) else (count, feature.max_length)
    return torch.randint(0, feature.vocabulary_size, shape)


def seconds(form: Form, arguments: Arguments) -> float:
    start = time.perf_counter()
    form(*arguments)
    return time.perf_counter() - start


@torch.inference_mode()
def gain(
    network: NetworkConfig, made: list[Feature], requests: int, candidates: int, turns: int
) -> float:
    """Return the median of tiled time / once time."""
    flat = [feature.model_copy(update={"side": "candidate"}) for feature in made]
    once_form = frozen(build(network, made, TASKS, seed=0), "cpu")
    tiled_form = frozen(build(network, flat, TASKS, seed=0), "cpu")
    rows = requests * candidates
    row_to_request = torch.arange(requests).repeat_interleave(candidates)
    user = {f.name: column(f, requests) for f in made if f.side == "user"}
    candidate = {f.name: column(f, rows) for f in made if f.side == "candidate"}
    everything = candidate | {name: values[row_to_request] for name, values in user.items()}
    once: Arguments = (user, candidate, row_to_request)
    tiled: Arguments = ({}, everything, row_to_request)
    for _ in range(4):  # compile and warm up
        seconds(once_form, once)
        seconds(tiled_form, tiled)
    ratios = [seconds(tiled_form, tiled) / seconds(once_form, once) for _ in range(turns)]
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"Tiled time / once time: {COLUMNS} columns, float32, {options.threads} thread(s)\n")
    print("| network | user features | candidates |", end="")
    print("".join(f" {share} % user |" for share in SHARES))
    print("| --- | --- | --- |" + " ---: |" * len(SHARES))
    for name, config in NETWORKS.items():
        for embedded in (False, True):
            made = [features(share, embedded=embedded) for share in SHARES]
            for requests, candidates in REQUESTS:
                cells = " | ".join(
                    f"{gain(config, f, requests, candidates, options.turns):.2f}" for f in made
                )
                kind = "dense, ids, a history of 50" if embedded else "dense"
                print(f"| {name} | {kind} | {requests} × {candidates} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
