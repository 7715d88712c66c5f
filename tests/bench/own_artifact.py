"""The network of `tests.bench.http` as Gatehouse runs it best: bf16, the user once, keys of tables.

Its sizes are those of the reference model, but half of its 100 numbers are the user's and half the
candidate's, as in a ranking model; items and users are in tables. `python -m tests.bench.peers` has
it beside peers that get 100 numbers for each candidate. Its requests are all the same, as theirs.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import torch

from app.artifacts.columns import ModelInputs
from app.artifacts.inputs import DenseInput
from app.artifacts.loader import load
from app.artifacts.manifest import Description, Parity, Precision, RequestCall, TaskOutput
from app.artifacts.program import scores
from app.artifacts.publish import publish
from app.artifacts.store import Store
from app.artifacts.tables.description import TableColumn, TableKey, record_dtype
from app.artifacts.tables.publish import publish_table
from app.artifacts.tables.writer import TablePlan
from app.benchmarking.requests import Post
from app.ranking.agreement import kendall_tau, overlap
from app.ranking.policy import Policy
from models.export.precision import reduced
from models.networks.build import build
from models.networks.config import DenseFeature, NetworkConfig, Task
from tests.bench.http import TASKS

Scores = npt.NDArray[np.float32]

MODEL = "own"
USER, CANDIDATE = 50, 50
USERS, ITEMS = 1000, 100_000
_INPUTS = (
    DenseInput(name="user", side="user", dim=USER),
    DenseInput(name="x", side="candidate", dim=CANDIDATE),
)


def _table(kind: str) -> npt.NDArray[np.float32]:
    rows, width = (USERS, USER) if kind == "users" else (ITEMS, CANDIDATE)
    random = np.random.default_rng(len(kind))
    return random.random((rows, width), dtype=np.float32)


def _keys(rows: int) -> tuple[int, npt.NDArray[np.int64]]:
    """Return the user and the items of a request."""
    return 7, np.random.default_rng(rows).choice(ITEMS, rows, replace=False)


def request(rows: int) -> Post:
    """Return a request of keys in the binary form of V2."""
    user, items = _keys(rows)
    parts = {"user_id": np.array([user]), "item_id": items}
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "shape": [len(values)],
                    "datatype": "INT64",
                    "parameters": {"binary_data_size": values.nbytes},
                }
                for name, values in parts.items()
            ],
            "parameters": {"binary_data_output": True},
        }
    )
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    content = b"".join(values.tobytes() for values in parts.values())
    return Post(f"/v2/models/{MODEL}/infer", head + content, headers)


def publish_own(store: Path) -> Callable[[int], Scores]:
    """Publish the model and its tables; return what computes the scores of a request in process."""
    network = build(
        NetworkConfig(
            architecture="mmoe",
            num_experts=8,
            expert_hidden_units=(256, 128, 64),
            tower_hidden_units=(),
        ),
        [
            DenseFeature(name=feature.name, side=feature.side, dim=feature.dim)
            for feature in _INPUTS
        ],
        [Task(name=task, kind="binary") for task in TASKS],
        seed=0,
    ).eval()
    half = reduced(network, "bf16")
    outputs = tuple(
        TaskOutput(
            name=task, kind="binary", unit="probability", link="sigmoid", output={"column": k}
        )
        for k, task in enumerate(TASKS)
    )
    raw = []
    with torch.inference_mode():
        for form in (network, half):
            inputs = _inputs(500)
            user, candidate = (
                {name: torch.from_numpy(column) for name, column in side.items()}
                for side in (inputs.user, inputs.candidate)
            )
            found = form(user, candidate, torch.from_numpy(inputs.row_to_request))
            raw.append(found.float().numpy())
    before, after = raw
    first, second = (scores(logits, outputs).prod(1, dtype=np.float64) for logits in raw)  # [500]
    parity = Parity(
        rows=len(before),
        raw_change=_changes(before, after),
        score_change=_changes(scores(before, outputs), scores(after, outputs)),
        auc_change={},  # there are no labels
        top_50_overlap=overlap(first, second, 50),
        kendall_tau=kendall_tau(first, second),
    )
    description = Description(
        name=MODEL,
        architecture="mmoe",
        inputs=_INPUTS,
        call=RequestCall(),
        tasks=outputs,
        ranking=Policy(weights=dict.fromkeys(TASKS, 1.0)),
        precision=Precision.reduced("bf16", parity),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artifact = publish(Store(store), description, torch.jit.script(half), _inputs(5))
    for kind, key, feature in (("items", "item_id", _INPUTS[1]), ("users", "user_id", _INPUTS[0])):
        _publish_table(store, kind, key, feature)
    program = load(artifact, torch.device("cpu")).program
    return lambda rows: scores(program.run(_inputs(rows)), outputs)


def _changes(before: Scores, after: Scores) -> dict[str, float]:
    changes = (np.abs(after - before) / (1 + np.abs(before))).max(0)  # [K]
    return {task: float(changes[k]) for k, task in enumerate(TASKS)}


def _inputs(rows: int) -> ModelInputs:
    """Return the inputs of a request, as its tables have them."""
    user, items = _keys(rows)
    return ModelInputs(
        {"user": _table("users")[[user]]}, {"x": _table("items")[items]}, np.zeros(rows, np.int64)
    )


def _publish_table(store: Path, kind: str, key: str, feature: DenseInput) -> None:
    record = record_dtype([feature])
    values = _table(kind)
    records = np.zeros(len(values), record)
    records[feature.name] = values
    plan = TablePlan(
        model=store / MODEL,
        kind=kind,  # type: ignore[arg-type]
        key=TableKey(name=key, type="int64"),
        columns=(TableColumn(feature=feature),),
        defaults=np.zeros(1, record),
    )
    publish_table(plan, lambda writer: writer.add(np.arange(len(values)), records))
