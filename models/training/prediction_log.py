"""Write a log of held-out requests: the scores of a published version, and the labels.

`gatehouse fit-calibration` and `gatehouse tune` read such tables. A service would log them from its
traffic; here a published version scores the held-out part of a labelled data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from app.artifacts.columns import ModelInputs
from app.artifacts.loader import Model, load
from app.artifacts.program import scores
from app.artifacts.store import Store
from app.errors import did_you_mean
from models import data
from models.data import DataInvalid, Dataset
from models.training.experiment import Experiment, ExperimentInvalid

ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class LogSummary:
    """What was written to a log."""

    model: str
    requests: int
    rows: int


def write(
    experiment: Experiment, store: Store, path: Path, *, validation: bool = False
) -> LogSummary:
    """Score held-out requests with the newest version of a model and write them as Parquet.

    Args:
        experiment: names the model and the data.
        store: contains the model.
        path: of the table; columns `request_id`, and for each task `score_<task>` and, if the data
            has the label, `outcome_<task>`, null where it is not defined.
        validation: include the validation requests, which were used for early stopping only.

    Raises:
        ExperimentInvalid: the store has no version of the model.
        DataInvalid: the data cannot be read, or pyarrow is not installed.
        ArtifactInvalid: the version cannot be loaded.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataInvalid("writing a log needs pyarrow: pip install -e '.[data]'") from None
    versions = [artifact for artifact in store.artifacts() if artifact.model == experiment.name]
    if not versions:
        known = sorted({artifact.model for artifact in store.artifacts()})
        raise ExperimentInvalid(
            f'{store.folder}: model "{experiment.name}" not found '
            f"(models: {', '.join(known) or 'none'}){did_you_mean(experiment.name, known)}"
        )
    model = load(versions[-1], torch.device("cpu"))
    splits = data.generate(experiment.data, experiment.tasks)
    parts = {"validation": splits.validation} if validation else {}
    parts["test"] = splits.test
    tables = [pa.table(_columns(model, name, part)) for name, part in parts.items()]
    whole = pa.concat_tables(tables)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(whole, path)
    return LogSummary(str(model), sum(part.requests for part in parts.values()), whole.num_rows)


def _columns(model: Model, name: str, dataset: Dataset) -> dict[str, Any]:
    scored = np.concatenate(list(_scores(model, dataset)))  # [B, K]
    requests = dataset.row_to_request.numpy()  # [B]
    columns: dict[str, Any] = {"request_id": [f"{name}-{request}" for request in requests]}
    for k, task in enumerate(model.manifest.task_names):
        columns[f"score_{task}"] = scored[:, k]
        if task in dataset.labels:
            columns[f"outcome_{task}"] = _outcome(dataset.labels[task].numpy())
    return columns


def _outcome(label: npt.NDArray[np.float32]) -> Any:  # noqa: ANN401  (pyarrow has no types)
    import pyarrow as pa

    return pa.array(label, mask=np.isnan(label))


def _scores(model: Model, dataset: Dataset) -> Iterator[npt.NDArray[np.float32]]:
    for part in dataset.batches(ROWS_AT_ONCE):
        batch = ModelInputs(
            user={name: column.numpy() for name, column in part.user.items()},
            candidate={name: column.numpy() for name, column in part.candidate.items()},
            row_to_request=part.row_to_request.numpy(),
        )
        yield scores(model.program.run(batch), model.manifest.tasks)
