"""A log holds what the published artifact says of held-out rows, beside what came of them."""

import numpy as np
import pyarrow.parquet as parquet
import pytest

from app.artifacts.store import Store
from app.tuning.log_file import read_log
from models import __main__ as cli, data
from models.training import experiment
from tests import TINY_EXPERIMENT

KINDS = {"click": "binary", "like": "binary", "dwell": "duration"}


def test_log_has_scores_and_labels_of_held_out_rows(store, tmp_path, capsys):
    path = tmp_path / "logs" / "log.parquet"
    flags = ["--config", str(TINY_EXPERIMENT), "--store", str(store.folder), "--out", str(path)]
    assert cli.main(["log", *flags]) == 0
    assert "scored by tiny/1" in capsys.readouterr().out
    log = read_log(path, KINDS)  # type: ignore[arg-type]
    test = data.generate(experiment.read(TINY_EXPERIMENT).data).test
    assert log.requests == test.requests
    assert np.array_equal(log.request, test.row_to_request.numpy())
    for name, label in test.labels.items():
        assert np.array_equal(log.outcomes[name], label.double().numpy(), equal_nan=True)


def test_the_scores_are_those_that_the_service_gives(store, tmp_path):
    """The first request, by the naive way through `model.ts`."""
    from tests.support.direct import direct_scores

    flags = ["--config", str(TINY_EXPERIMENT), "--store", str(store.folder)]
    cli.main(["log", *flags, "--out", str(tmp_path / "log.parquet")])
    log = read_log(tmp_path / "log.parquet", KINDS)  # type: ignore[arg-type]
    test = data.generate(experiment.read(TINY_EXPERIMENT).data).test
    first = test.row_to_request == 0
    recent = test.user["recent_items"][0]
    user = {
        "user_id": int(test.user["user_id"][0]),
        "age_bucket": int(test.user["age_bucket"][0]),
        "recent_items": recent[recent >= 0].tolist(),
        "activity": test.user["activity"][0].tolist(),
    }
    candidates = {name: column[first].tolist() for name, column in test.candidate.items()}
    (artifact,) = Store(store.folder).artifacts()
    expected = direct_scores(artifact, {"user": user, "candidates": candidates})
    for k, task in enumerate(log.tasks):
        assert log.scores[log.request == 0, k] == pytest.approx(expected[task], rel=1e-4)


def test_the_validation_rows_come_on_request(store, tmp_path):
    flags = ["--config", str(TINY_EXPERIMENT), "--store", str(store.folder)]
    cli.main(["log", *flags, "--validation", "--out", str(tmp_path / "log.parquet")])
    splits = data.generate(experiment.read(TINY_EXPERIMENT).data)
    table = parquet.read_table(tmp_path / "log.parquet")
    assert table.num_rows == splits.validation.rows + splits.test.rows
    assert len(set(table["request_id"].to_pylist())) == (
        splits.validation.requests + splits.test.requests
    )


def test_model_that_is_not_in_the_store_is_reported(tmp_path, capsys):
    flags = ["--config", str(TINY_EXPERIMENT), "--store", str(tmp_path)]
    assert cli.main(["log", *flags, "--out", str(tmp_path / "log.parquet")]) == 2
    assert capsys.readouterr().err == f'{tmp_path}: model "tiny" not found (models: none)\n'
