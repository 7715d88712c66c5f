"""What folding an items table brings, and what it takes: ``python -m tests.bench.first_layer``.

    python -m tests.bench.first_layer [--rounds 3] [--seconds 3] [--connections 8] [--items 100000]

The first layer of a network is W_u·u + W_c·c + b. A folded table has W_c·c of each item. For
networks of this repository, published as artifacts, with tables of random items that are published
twice, folded and not:

- the share of the multiplications that is left out, and the bytes per item of the features and of
  what is folded;
- the time of a lane for one request of 500 keys: rows are read from the table, the program runs,
  links and clamps are applied. Calls of both alternate; a cell is the median;
- over HTTP, with wrk: requests per second, and the CPU time of the server by request. Rounds of
  both alternate; a cell is the median.

The scores of both are compared first. Needs wrk; without it, the last part is left out.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import orjson
import torch

from app.artifacts.columns import ModelInputs
from app.artifacts.inputs import DenseInput, IdInput, Input
from app.artifacts.loader import Model, load
from app.artifacts.manifest import Description, Output, TaskOutput
from app.artifacts.publish import publish
from app.artifacts.store import Artifact, Store
from app.artifacts.tables.description import TableColumn, TableKey, record_dtype
from app.artifacts.tables.publish import publish_table
from app.artifacts.tables.table import Table, open_table
from app.artifacts.tables.writer import TablePlan, TableWriter
from app.benchmarking.requests import Post
from app.cli.table_fold import TableFold
from app.engine.batch import Batch, Chunk
from app.engine.hardware import usable_cores
from app.engine.lanes import Staging, run
from app.engine.request import QueuedRequest, RequestFeatures, TableRows, TableUse
from app.ranking.policies import NO_POLICIES
from app.ranking.policy import Policy
from models.networks.build import RankingNetwork, build
from models.networks.config import DenseFeature, Feature, IdFeature, NetworkConfig, Task
from models.networks.show import parts
from tests.bench.hot_path import cpu_s, settled
from tests.bench.wrk import require_wrk, wrk
from tests.support.server import Server, standalone_server

CANDIDATES = 500
BODIES = 64
TASKS = ("click", "like", "dwell")
_AT_ONCE = 20_000


@dataclass(frozen=True)
class Shape:
    """A network: its sizes, the dense columns of each side, and its id features of items."""

    name: str
    label: str
    network: NetworkConfig
    user: int
    item: int
    ids: int = 0
    vocabulary: int = 100_000
    dim: int = 16

    def features(self) -> list[Feature]:
        """Return the features of the network."""
        found: list[Feature] = []
        if self.user:
            found.append(DenseFeature(name="u", side="user", dim=self.user))
        if self.item:
            found.append(DenseFeature(name="x", side="candidate", dim=self.item))
        return found + [
            IdFeature(
                name=f"id{i}",
                side="candidate",
                vocabulary_size=self.vocabulary,
                embedding_dim=self.dim,
            )
            for i in range(self.ids)
        ]

    def inputs(self) -> tuple[Input, ...]:
        """Return the same for the manifest."""
        return tuple(
            DenseInput(name=feature.name, side=feature.side, dim=feature.dim)
            if isinstance(feature, DenseFeature)
            else IdInput(name=feature.name, side=feature.side, vocabulary_size=self.vocabulary)
            for feature in self.features()
        )

    def built(self) -> RankingNetwork:
        """Return the network, always with the same weights."""
        tasks = [Task(name=task, kind="binary") for task in TASKS]
        return build(self.network, self.features(), tasks, seed=0).eval()


def _mmoe(experts: int, *hidden: int) -> NetworkConfig:
    return NetworkConfig(
        architecture="mmoe",
        num_experts=experts,
        expert_hidden_units=hidden,
        tower_hidden_units=(16,),
    )


SHAPES = (
    Shape("reference", "reference: 8 experts 100-256-128-64", _mmoe(8, 256, 128, 64), 0, 100),
    Shape(
        "demo",
        "sizes of the demo: PLE, 5 experts 86-64-32, two levels",
        NetworkConfig(
            architecture="ple",
            num_task_experts=1,
            num_shared_experts=2,
            num_levels=2,
            expert_hidden_units=(64, 32),
            tower_hidden_units=(16,),
        ),
        52,
        34,
    ),
    Shape("wide", "wide items: 4 experts 528-64-32", _mmoe(4, 64, 32), 16, 512),
    Shape("ids", "items of 20 ids: 4 experts 336-64-32", _mmoe(4, 64, 32), 16, 0, ids=20),
)


def artifact(store: Store, shape: Shape, name: str) -> Artifact:
    """Publish the network of a shape under a name."""
    network, inputs = shape.built(), shape.inputs()
    description = Description(
        name=name,
        architecture=shape.network.architecture,
        inputs=inputs,
        tasks=tuple(
            TaskOutput(name=t, kind="binary", unit="", link="sigmoid", output=Output(column=k))
            for k, t in enumerate(TASKS)
        ),
        ranking=Policy(weights=dict.fromkeys(TASKS, 1.0)),
        folded_width=network.folded_width,
    )
    sizes = (2, 5, 9)
    golden = ModelInputs(
        {
            feature.name: _random(feature, len(sizes), 1)
            for feature in inputs
            if feature.side == "user"
        },
        {
            feature.name: _random(feature, sum(sizes), 2)
            for feature in inputs
            if feature.side == "candidate"
        },
        np.repeat(np.arange(len(sizes)), sizes),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return publish(store, description, torch.jit.script(network), golden)


def _random(feature: Input, rows: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if isinstance(feature, DenseInput):
        return random.standard_normal((rows, feature.dim), dtype=np.float32)
    return random.integers(0, feature.vocabulary_size, rows)


def table(store: Store, of: Artifact, shape: Shape, items: int, *, fold: bool) -> Table:
    """Publish a table of random items; the keys are the integers from 0 on."""
    features = [feature for feature in shape.inputs() if feature.side == "candidate"]
    plan = TablePlan(
        model=store.folder / of.model,
        kind="items",
        key=TableKey(name="item_id", type="int64"),
        columns=tuple(TableColumn(feature=feature) for feature in features),
        defaults=np.zeros(1, record_dtype(features)),
    )

    def fill(writer: TableWriter) -> None:
        for start in range(0, items, _AT_ONCE):
            count = min(_AT_ONCE, items - start)
            records = np.zeros(count, plan.defaults.dtype)
            for feature in features:
                records[feature.name] = _random(feature, count, start)
            writer.add(np.arange(start, start + count), records)
        if fold:
            found = TableFold.of(of)
            print(f"{shape.name}: {found.size_message(writer)}")
            began = time.perf_counter()
            print(f"{shape.name}: {found.summary(found.fill(writer, lambda _: None))}")
            print(f"{shape.name}: folded in {time.perf_counter() - began:.1f} s")

    return open_table(publish_table(plan, fill), of.model)


class LaneCalls:
    """Runs requests of keys as a lane does, always in the same memory."""

    def __init__(self, model: Model, of: Table, *, folded: bool) -> None:
        self._model = model
        self._table = of
        self._folded_for = model.program if folded else None
        self._collate = Staging().collate
        self._options = NO_POLICIES.policies_for(model.manifest.traits).default_options
        self._user = {name: column[:1] for name, column in model.golden.batch.user.items()}

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        names = frozenset(self._table.columns)
        rows = TableRows(self._table, positions, names, self._folded_for)
        used = TableUse(None, rows, {}, {}, None, len(positions))
        features = RequestFeatures(self._user, {}, len(positions), {}, used)
        request = QueuedRequest(self._model, features, self._options)
        batch = Batch.of(self._model, [Chunk(request, features, 0, len(positions))])
        result = run(self._model, batch.chunks, self._collate)
        if isinstance(result.scores, Exception):
            raise result.scores
        return result.scores


def lane_ms(calls: Sequence[LaneCalls], items: int, turns: int) -> list[float]:
    """Return the median time (ms) of a request of each; they alternate."""
    random = np.random.default_rng(3)
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(turns):
        positions = random.integers(0, items, CANDIDATES)
        for call, found in zip(calls, times, strict=True):
            began = time.perf_counter()
            call(positions)
            found.append(time.perf_counter() - began)
    return [median(took[turns // 10 :]) * 1e3 for took in times]


@dataclass(frozen=True)
class Pair:
    """A shape whose table is published twice: `plain`, and `folded`."""

    shape: Shape
    plain: Model
    folded: Model
    tables: tuple[Table, Table]

    def row(self, items: int, turns: int) -> str:
        """Return the row of the first table."""
        network = self.shape.built()
        lines = parts(network)
        first = sum(part.row_flops for part in lines if part.name.endswith(".first"))
        everything = sum(part.row_flops for part in lines)
        calls = [
            LaneCalls(self.plain, self.tables[0], folded=False),
            LaneCalls(self.folded, self.tables[1], folded=True),
        ]
        chosen = np.arange(CANDIDATES)
        np.testing.assert_allclose(calls[1](chosen), calls[0](chosen), rtol=0, atol=1e-5)
        plain, folded = lane_ms(calls, items, turns)
        fold = self.tables[1].fold
        assert fold is not None
        record = self.tables[0].description.record.itemsize
        return (
            f"| {self.shape.label} | {first / everything:.0%} | {record:,}, {4 * fold.width:,} "
            f"| {plain:.2f} ms, {folded:.2f} ms | {plain / folded:.2f} × |"
        )


def paired(store: Store, shape: Shape, items: int) -> Pair:
    """Publish a shape twice, each with its table."""
    made = [artifact(store, shape, f"{shape.name}{suffix}") for suffix in ("", "-folded")]
    tables = [table(store, version, shape, items, fold=i == 1) for i, version in enumerate(made)]
    plain, folded = (load(version, torch.device("cpu")) for version in made)
    return Pair(shape, plain, folded, (tables[0], tables[1]))


def over_http(
    server: Server, pairs: Sequence[Pair], arguments: argparse.Namespace, folder: Path
) -> Iterator[str]:
    """Yield the rows of the second table."""
    for pair in pairs:
        found: dict[str, list[tuple[float, float]]] = {}
        for number in range(arguments.rounds + 1):
            for model in (pair.plain, pair.folded):
                name = model.manifest.name
                bodies = [_body(model, arguments.items, seed) for seed in range(BODIES)]
                path = f"/v1/models/{name}/score"
                post = Post(path, bodies[0], {"content-type": "application/json"})
                if number == 0:
                    _check_same(server, pair, bodies[0])
                before = cpu_s(server.process.pid)
                seconds = arguments.seconds if number else 1  # the first round only warms up
                headers = {"x-request-timeout-ms": "60000"}
                sent = wrk(
                    server.url, post, arguments.connections, seconds, folder, headers, bodies
                )
                used_s = settled(lambda: cpu_s(server.process.pid)) - before
                found.setdefault(name, []).append((sent.rate, used_s / sent.requests * 1e6))
        (rate, cpu_us), (folded_rate, folded_us) = (
            tuple(median(figures[k] for figures in found[model.manifest.name][1:]) for k in (0, 1))
            for model in (pair.plain, pair.folded)
        )
        yield (
            f"| {pair.shape.label} | {rate:,.0f}, {folded_rate:,.0f} | {folded_rate / rate:.2f} × "
            f"| {cpu_us:,.0f} µs, {folded_us:,.0f} µs | {cpu_us / folded_us:.2f} × |"
        )


def _body(model: Model, items: int, seed: int) -> bytes:
    keys = np.random.default_rng(seed).choice(items, CANDIDATES, replace=False)
    user = {name: column[0] for name, column in model.golden.batch.user.items()}
    sent = {"user": user, "candidates": keys} if user else {"candidates": keys}
    return orjson.dumps(sent, option=orjson.OPT_SERIALIZE_NUMPY)


def _check_same(server: Server, pair: Pair, body: bytes) -> None:
    """Stop if the answers to one request differ, or if the folded rows do not serve."""
    answers = []
    for model in (pair.plain, pair.folded):
        card = httpx.get(f"{server.url}/v1/models/{model.manifest.name}").json()
        folded = card["tables"][0]["folded"]
        assert (folded is not None and folded["serves"]) == (model is pair.folded), folded
        path = f"{server.url}/v1/models/{model.manifest.name}/score"
        answer = httpx.post(path, content=body, timeout=60).json()
        answers.append([answer["scores"][task] for task in TASKS])
    np.testing.assert_allclose(answers[1], answers[0], rtol=0, atol=1e-5)


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="over HTTP (default: 3)")
    parser.add_argument("--seconds", type=int, default=3, help="of one of them (default: 3)")
    parser.add_argument("--connections", type=int, default=8, help="(default: 8)")
    parser.add_argument("--items", type=int, default=100_000, help="of a table (default: 100000)")
    parser.add_argument("--turns", type=int, default=300, help="of a lane (default: 300)")
    arguments = parser.parse_args()
    print(f"{usable_cores()} cores, torch {torch.__version__}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = Store(folder / "store")
        pairs = [paired(store, shape, arguments.items) for shape in SHAPES]
        print(f"\none request of {CANDIDATES} keys, {arguments.items:,} items\n")
        print("| network | left out | bytes per item: features, folded | a lane | faster |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for pair in pairs:
            print(pair.row(arguments.items, arguments.turns))
        require_wrk()
        print(f"\nover HTTP, {arguments.connections} connections\n")
        print("| network | requests/s: features, folded | | CPU time of a request | |")
        print("| --- | ---: | ---: | ---: | ---: |")
        with standalone_server(store.folder, folder / "log") as server:
            for row in over_http(server, pairs, arguments, folder):
                print(row)


if __name__ == "__main__":
    main()
