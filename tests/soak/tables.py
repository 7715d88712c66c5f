"""Change item and user tables again and again under load, and check every response.

    python -m tests.soak.tables [--swaps 40] [--deltas 200] [--versions 5]

Callers send requests by keys to a real server without a pause: keys only, keys with overrides, and
V2. Meanwhile new tables, deltas, compacted tables and new versions of the model are published. Two
of three tables of items are folded for the newest version, and most of their deltas are. A row's
number says which table and which delta it is from, so that the model's scores identify them.
The soak checks that every request succeeds, that every row of a response is that of the table which
the response names, that each change serves within the time between two polls of the store, and that
memory does not grow.

The exit code is 0 if all checks pass.
"""

import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np

from app.artifacts.artifact_files import read_manifest
from app.artifacts.manifest import Manifest
from app.artifacts.store import Artifact, Store
from app.artifacts.tables.publish import compact
from tests.soak.__main__ import growth_mib, resident
from tests.soak.model import NAME, publish_echo
from tests.soak.under_load import callers, command, wait_for
from tests.support.model_tables import change_rows, publish_rows
from tests.support.server import Server, standalone_server

POLL_S = 0.2
ITEMS = range(200)
USERS = range(20)
_KEYS: dict[str, str] = {"items": "item_id", "users": "user_id"}
_FEATURES: dict[str, str] = {"items": "c", "users": "u"}

Kind = Literal["items", "users"]
Rows = dict[int, float]


@dataclass
class Tables:
    """What every table that was ever published holds.

    Attributes:
        store: where they are.
        manifest: of the model.
        golden: rows by table and label, there before the table is.
        current: the newest label and rows, by table.
        state: counts changes; every number in a table is drawn from it.
        newest: version of the model.
        folded_for: the version that the newest table of items is folded for.
        folds: how often a folded table served so after a change, and why others did not.
    """

    store: Path
    manifest: Manifest
    golden: dict[tuple[str, str], Rows] = field(default_factory=dict)
    current: dict[str, tuple[int, int, Rows]] = field(default_factory=dict)
    state: int = 0
    newest: Artifact | None = None
    folded_for: Artifact | None = None
    folds: dict[str, int] = field(default_factory=dict)

    def publish(self, kind: Kind) -> str:
        """Publish a table with new numbers for all keys; return its label."""
        keys = ITEMS if kind == "items" else USERS
        version = self.current.get(kind, (0, 0, {}))[0] + 1
        rows = self._remember(kind, version, 0, {key: self._number(key) for key in keys})
        feature = _FEATURES[kind]
        if kind == "items":
            self.folded_for = self.newest if version % 3 else None
        publish_rows(
            self.store,
            self.manifest,
            kind,
            _KEYS[kind],
            {key: {feature: value} for key, value in rows.items()},
            self.folded_for if kind == "items" else None,
        )
        return str(version)

    def change(self, kind: Kind, keys: list[int]) -> str:
        """Publish a delta with new numbers for some keys; return its label."""
        version, delta, before = self.current[kind]
        changed = {key: self._number(key) for key in keys}
        self._remember(kind, version, delta + 1, before | changed)
        feature = _FEATURES[kind]
        rows = {key: {feature: value} for key, value in changed.items()}
        fold = self.folded_for if kind == "items" else None
        if self.state % 20 == 0 and fold is not None:  # as if the gate had refused this delta
            fold = self.folded_for = None
        change_rows(self.store, self.manifest, kind, _KEYS[kind], rows, fold=fold)
        return f"{version}.{delta + 1}"

    def compact(self, kind: Kind) -> str:
        """Publish the table and its deltas as a new table; return its label."""
        version, _, rows = self.current[kind]
        self._remember(kind, version + 1, 0, rows)
        compact(self.store / NAME, kind)
        return str(version + 1)

    def _number(self, key: int) -> float:
        return float(self.state * 1000 + key)

    def _remember(self, kind: str, version: int, delta: int, rows: Rows) -> Rows:
        self.state += 1
        label = f"{version}.{delta}" if delta else str(version)
        self.golden[kind, label] = rows
        self.current[kind] = version, delta, rows
        return rows


@dataclass
class Calls:
    """What the callers saw.

    Attributes:
        tables: what the server may answer with.
        faults: what was wrong with responses.
        answered: labels that answered, by table.
        count: how many requests were answered.
        latencies_s: of all requests.
        is_over: tells the callers to end.
    """

    tables: Tables
    faults: list[str] = field(default_factory=list)
    answered: dict[str, set[str]] = field(default_factory=lambda: {"items": set(), "users": set()})
    count: int = 0
    latencies_s: list[float] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def run(self, url: str, caller: int) -> None:
        """Call until it is over."""
        drawn = random.Random(caller)
        with httpx.Client(base_url=url, timeout=30) as client:
            while not self.is_over.is_set():
                user = drawn.choice(USERS)
                keys = drawn.sample(ITEMS, drawn.randint(1, 60))
                sent, is_v2 = drawn.choice(_FORMS)(user, keys)
                path = f"/v2/models/{NAME}/infer" if is_v2 else f"/v1/models/{NAME}/score"
                began = time.perf_counter()
                response = client.post(path, json=sent)
                self.latencies_s.append(time.perf_counter() - began)
                self.count += 1
                if fault := self.fault(response, user, keys, is_v2=is_v2):
                    self.faults.append(fault)

    def fault(self, response: httpx.Response, user: int, keys: list[int], *, is_v2: bool) -> str:
        """Return what is wrong with a response, or an empty string."""
        if response.status_code != 200:
            return f"status {response.status_code}: {response.text}"
        document = response.json()
        if is_v2:
            named = document["parameters"]
            labels = {"items": named["items_table"], "users": named["users_table"]}
            scores = {output["name"]: output["data"] for output in document["outputs"]}
            version = int(document["model_version"])
        else:
            labels, scores = document["tables"], document["scores"]
            version = document["version"]
        for kind, label in labels.items():
            self.answered[kind].add(label)
        items = self.tables.golden.get(("items", labels["items"]))
        users = self.tables.golden.get(("users", labels["users"]))
        if items is None or users is None:
            return f"answered with tables that were never published: {labels}"
        own = [float(np.float32(items[key])) for key in keys]
        sums = [float(np.float32(users[user]) + np.float32(score)) for score in own]
        if scores["own"] != own or scores["sum"] != sums:
            return f"mixed answer of {labels}: {scores['own']}, expected {own}"
        if scores["version"] != [version] * len(keys):
            return f"mixed answer of version {version}: {scores['version']}"
        return ""


def _by_keys(user: int, keys: list[int]) -> tuple[dict[str, Any], bool]:
    return {"user": user, "candidates": keys}, False


def _by_columns(user: int, keys: list[int]) -> tuple[dict[str, Any], bool]:
    return {"user": {"user_id": user}, "candidates": {"item_id": keys}}, False


def _by_tensors(user: int, keys: list[int]) -> tuple[dict[str, Any], bool]:
    inputs = [
        {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [user]},
        {"name": "item_id", "shape": [len(keys)], "datatype": "INT64", "data": keys},
    ]
    return {"inputs": inputs}, True


_FORMS: list[Callable[[int, list[int]], tuple[dict[str, Any], bool]]] = [
    _by_keys,
    _by_keys,
    _by_columns,
    _by_tensors,
]


def soak(swaps: int, deltas: int, versions: int, *, most_growth_mib: float) -> list[str]:
    """Run the soak, print what happened and return the failed checks."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = Store(folder / "store")
        artifact = publish_echo(store)
        tables = Tables(store.folder, read_manifest(artifact), newest=artifact)
        tables.publish("items")
        tables.publish("users")
        flags = ("--store-poll-s", str(POLL_S), "--slow-request-ms", "60000")
        with standalone_server(store.folder, folder / "log", *flags) as server:
            calls = Calls(tables)
            with callers(calls.run, server.url, calls.is_over):
                took, memory = _change(server, store, tables, swaps, deltas, versions)
            failed = calls.faults[:20] + _summary(calls, took)
            print(f"folded tables after a change: {tables.folds}")
            if "folded" not in tables.folds:
                failed.append("no table served folded")
            growth = growth_mib(memory)
            print(f"memory grew by {growth:.1f} MiB over the second half of the changes")
            if growth > most_growth_mib:
                failed.append(f"memory grew by {growth:.1f} MiB: {memory}")
            document = httpx.get(f"{server.url}/v1/models").json()
            if document["refused"] or document["refused_tables"]:
                failed.append(f"refused: {document['refused']} {document['refused_tables']}")
            if code := server.terminate():
                failed.append(f"exit code {code}")
    return failed


def _change(
    server: Server, store: Store, tables: Tables, swaps: int, deltas: int, versions: int
) -> tuple[dict[str, list[float]], list[int]]:
    """Publish tables, deltas and versions in random order; return how long each took to serve."""
    drawn = random.Random(0)
    changes = ["swap"] * swaps + ["delta"] * deltas + ["version"] * versions
    drawn.shuffle(changes)
    took: dict[str, list[float]] = {}
    memory: list[int] = []
    for change in changes:
        kind: Kind = drawn.choice(("items", "items", "users"))
        name = change
        if change == "version":
            tables.newest = published = publish_echo(store)
            began = time.monotonic()
            wait_for(server, partial(_is_version, published.version))
        else:
            has_delta = tables.current[kind][1] > 0
            if change == "swap" and has_delta and drawn.random() < 0.5:
                name, label = "compact", tables.compact(kind)
            elif change == "swap":
                label = tables.publish(kind)
            else:
                keys = ITEMS if kind == "items" else USERS
                label = tables.change(kind, drawn.sample(keys, drawn.randint(1, 10)))
            began = time.monotonic()
            wait_for(server, partial(_is_serving, (kind, label)))
        took.setdefault(name, []).append(time.monotonic() - began)
        card = httpx.get(f"{server.url}/v1/models/{NAME}").json()
        for folded in [table["folded"] for table in card["tables"] if table["folded"]]:
            served = "folded" if folded["serves"] else folded["problem"]
            tables.folds[served] = tables.folds.get(served, 0) + 1
        memory.append(resident(server.process.pid))
    return took, memory


def _serving(card: Any) -> set[tuple[str, str]]:
    return {(table["table"], table["version"]) for table in card["tables"]}


def _is_version(version: int, card: Any) -> bool:
    return bool(card["version"] == version)


def _is_serving(at: tuple[str, str], card: Any) -> bool:
    return at in _serving(card)


def _summary(calls: Calls, took: dict[str, list[float]]) -> list[str]:
    """Print what happened; return failed checks."""
    p50_s, p99_s = np.quantile(calls.latencies_s, [0.5, 0.99])
    print(f"{calls.count:,} requests, p50 {p50_s * 1e3:.1f} ms, p99 {p99_s * 1e3:.1f} ms")
    for change, seconds in took.items():
        print(
            f"{len(seconds)} x {change}: serves after {np.mean(seconds):.3f} s in the mean, "
            f"{max(seconds):.3f} s at most"
        )
    labels = {kind: len(answered) for kind, answered in calls.answered.items()}
    print(f"{len(calls.faults)} faults; {labels} versions of tables answered")
    failed = []
    if labels["items"] < 2:
        failed.append("only one version of the items table answered")
    return failed


if __name__ == "__main__":
    sys.exit(command(str(__doc__), {"swaps": 40, "deltas": 200, "versions": 5}, soak))
