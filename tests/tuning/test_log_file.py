"""The three formats hold the same log, and an error names the column and the row."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from app.errors import TuningError
from app.tuning.log_file import Kind, LogInvalid, read_log
from tests.tuning import worlds

KINDS: dict[str, Kind] = {"click": "binary", "like": "binary", "dwell": "duration"}


def assert_equal(one, other):
    assert one.tasks == other.tasks
    assert list(one.request_ids) == list(other.request_ids)
    assert np.array_equal(one.request, other.request)
    assert np.array_equal(one.scores, other.scores)
    assert one.outcomes.keys() == other.outcomes.keys()
    for name, outcome in one.outcomes.items():
        assert np.allclose(outcome, other.outcomes[name], equal_nan=True)


def test_every_file_format_gives_the_same_log(tmp_path):
    log = worlds.log(20)
    table = worlds.columns(log)
    path = worlds.write(tmp_path / "log.parquet", table)
    assert_equal(read_log(path, KINDS), log)
    pyarrow.csv.write_csv(pa.table(table), tmp_path / "log.csv")
    assert_equal(read_log(tmp_path / "log.csv", KINDS), log)
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert_equal(read_log(tmp_path / "log.jsonl", KINDS), log)


def test_rows_are_grouped_by_request_and_other_columns_ignored(tmp_path):
    path = worlds.write(
        tmp_path / "log.parquet",
        {
            "request_id": [7, 8, 7],
            "score_a": [0.1, 0.2, 0.3],
            "outcome_a": [True, False, None],
            "outcome_share": [0, 1, 2],
            "country": ["se", "no", "dk"],
            "position": [1, 1, 2],
        },
    )
    log = read_log(path, {"a": "binary"})
    assert log.positions is not None
    assert log.request_ids == ["7", "8"]
    assert log.request.tolist() == [0, 0, 1]
    assert log.scores[:, 0].tolist() == pytest.approx([0.1, 0.3, 0.2])
    assert log.outcomes["a"].tolist() == pytest.approx([1, float("nan"), 0], nan_ok=True)
    assert log.outcomes["share"].tolist() == [0, 2, 1]
    assert log.positions.tolist() == [1, 2, 1]


def test_every_bad_column_is_named_with_its_first_bad_row(tmp_path):
    table: dict[str, list[Any]] = {
        "request_id": ["a", None, "c"],
        "score_click": [0.5, float("nan"), None],
        "score_like": ["high", "low", "high"],
        "score_dwell": [1.0, float("inf"), 2.0],
        "outcome_click": [0.5, 1.0, 2.0],
        "outcome_like": [None, None, None],
        "outcome_dwell": [3.0, -1.0, None],
        "position": [1, 0, 2],
    }
    with pytest.raises(LogInvalid) as caught:
        read_log(worlds.write(tmp_path / "log.parquet", table), KINDS)
    found = [
        problem.removeprefix(f"{tmp_path / 'log.parquet'}: ") for problem in caught.value.problems
    ]
    assert sorted(found) == [
        "column outcome_click, row 1: must be 0, 1 or empty (and 1 more)",
        "column outcome_dwell, row 2: must be 0 seconds or more, or empty",
        "column outcome_like: is empty in every row",
        "column position, row 2: must be 1 or more",
        "column request_id, row 2: must not be empty",
        "column score_click, row 2: must be a finite number (and 1 more)",
        "column score_dwell, row 2: must be a finite number",
        "column score_like: must be numbers, not string",
    ]


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ({"score_click": [1.0]}, "column request_id is missing"),
        ({"request_id": [1], "score_click": [1.0]}, "column score_like is missing"),
        (
            {"request_id": [1], "score_lik": [1.0]},
            'column score_like is missing; did you mean "score_lik"?',
        ),
        ({"request_id": [1]}, "no outcome column: at least one name must begin with outcome_"),
        ({"request_id": []}, "the table has no rows"),
    ],
)
def test_a_missing_column_is_named(tmp_path, table, rule):
    with pytest.raises(LogInvalid) as caught:
        read_log(worlds.write(tmp_path / "log.parquet", table), KINDS)
    assert any(problem.endswith(rule) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("log.xlsx", b"", "name ends in .parquet, .csv, .jsonl"),
        ("log.parquet", b"not parquet", "cannot be read as parquet"),
        ("log.csv", b"a,b\n1\n", "cannot be read as csv"),
        ("log.csv", b"request_id,\xff\n1,2\n", "cannot be read as csv"),
        ("log.csv", b"a,b,a\n1,2,3\n", "duplicate column a"),
        ("log.jsonl", b"{", "cannot be read as jsonl"),
    ],
)
def test_a_file_that_is_not_a_table_is_an_error_of_one_line(tmp_path, name, content, rule):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TuningError, match=rule):
        read_log(tmp_path / name, KINDS)


def test_a_missing_file_is_an_error_of_one_line(tmp_path):
    with pytest.raises(TuningError, match=r"log\.csv: "):
        read_log(tmp_path / "log.csv", KINDS)


def test_scores_of_binary_tasks_are_probabilities_and_all_fit_float32(tmp_path):
    table: dict[str, list[Any]] = {
        "request_id": ["a", "a", "b"],
        "score_click": [0.0, 1.0, 1.5],
        "score_like": [-0.1, 0.5, 0.5],
        "score_dwell": [-3.0, 1.0, 1e300],
        "outcome_click": [0, 1, 0],
    }
    with pytest.raises(LogInvalid) as caught:
        read_log(worlds.write(tmp_path / "log.parquet", table), KINDS)
    found = [problem.partition("log.parquet: ")[2] for problem in caught.value.problems]
    assert found == [
        "column score_click, row 3: must be a probability, from 0 to 1",
        "column score_like, row 1: must be a probability, from 0 to 1",
        "column score_dwell, row 3: is too large for float32",
    ]


def test_nested_request_ids_are_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"request_id": {"a": 1}, "score_click": 0.5, "outcome_click": 1}')
    with pytest.raises(LogInvalid, match="request_id: must be strings or integers"):
        read_log(path, {"click": "binary"})
