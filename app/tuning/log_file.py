"""Reading a log from Parquet, CSV or JSON lines, and saying what is wrong in it and where.

Needs pyarrow, which is part of the extra `tune`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import TuningError
from app.tuning.log import Floats, Log

SCORE, OUTCOME, REQUEST, POSITION = "score_", "outcome_", "request_id", "position"
MOST_PROBLEMS = 20

Kind = Literal["binary", "duration", "regression"]


class LogInvalid(Exception):
    """A log cannot be used; `problems` has a line for each column that is wrong."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        super().__init__(f"{path}: {problems[0]}")
        self.problems = [f"{path}: {each}" for each in problems[:MOST_PROBLEMS]]


def read_log(path: Path, tasks: Mapping[str, Kind]) -> Log:
    """Read and check a log.

    Rows of one request need not stand together; they do afterwards, requests in the order of their
    first rows.

    Args:
        path: ends in .parquet, .csv or .jsonl.
        tasks: the model's tasks and their kinds: each must have a score, of a binary one a
            probability, and an outcome of theirs must be 0 or 1, or no less than 0 seconds.

    Raises:
        LogInvalid: with every column that is wrong, and the first row where it is.
        TuningError: the file is not there or is no table, or pyarrow is not installed.
    """
    table = _table(path)
    problems: list[str] = []
    needed = [REQUEST, *(SCORE + task for task in tasks)]
    missing = [name for name in needed if name not in table.column_names]
    problems += [f"column {name} is missing" for name in missing]
    outcomes = [name for name in table.column_names if name.startswith(OUTCOME)]
    if not outcomes:
        problems.append(f"there is no outcome: no column begins with {OUTCOME}")
    if table.num_rows == 0:
        problems.append("there are no rows")
    if problems:
        raise LogInvalid(path, problems)
    scores = [_score(table, task, kind, problems) for task, kind in tasks.items()]
    seen = {n.removeprefix(OUTCOME): _outcome(table, n, tasks, problems) for n in outcomes}
    positions = None
    if POSITION in table.column_names:
        positions = _numbers(table, POSITION, problems)
        _check(positions >= 1, POSITION, "must be 1 or more", problems)
    request, ids = _requests(table, problems)
    if problems:
        raise LogInvalid(path, problems)
    rows = np.argsort(request, kind="stable")
    return Log(
        tasks=tuple(tasks),
        request_ids=ids,
        request=request[rows],
        scores=np.stack(scores, axis=1)[rows],
        outcomes={name: outcome[rows] for name, outcome in seen.items()},
        positions=None if positions is None else positions[rows],
    )


def _table(path: Path) -> Any:  # noqa: ANN401  (pyarrow has no types)
    try:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.json
        import pyarrow.parquet
    except ImportError:
        raise TuningError("logs are read with pyarrow: pip install -e '.[tune]'") from None
    readers = {
        ".parquet": pyarrow.parquet.read_table,
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise TuningError(f"{path}: a log ends in {', '.join(readers)}")
    try:
        table = reader(path)
        names = table.column_names
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise TuningError(f"{path}: is no {path.suffix[1:]} table: {error}") from None
    except OSError as error:
        raise TuningError(f"{path}: {error.strerror or error}") from None
    if twice := [name for name in names if names.count(name) > 1]:
        raise TuningError(f"{path}: column {twice[0]} is there twice")
    return table


def _requests(table: Any, problems: list[str]) -> tuple[npt.NDArray[np.int64], list[str]]:  # noqa: ANN401
    """Return which request each row belongs to, `[n]`, and the requests' ids."""
    import pyarrow as pa

    column = table.column(REQUEST).combine_chunks()
    if pa.types.is_nested(column.type):
        problems.append(f"column {REQUEST}: must hold texts or integers, and holds {column.type}")
        return np.zeros(table.num_rows, np.int64), []
    _check(~column.is_null().to_numpy(False), REQUEST, "must not be empty", problems)
    encoded = column.dictionary_encode()
    indices = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return indices, [str(each) for each in encoded.dictionary.to_pylist()]


def _score(
    table: Any,  # noqa: ANN401
    task: str,
    kind: Kind,
    problems: list[str],
) -> npt.NDArray[np.float32]:
    numbers = _numbers(table, SCORE + task, problems)
    with np.errstate(over="ignore"):
        score = numbers.astype(np.float32)
    if kind == "binary":  # whoever logs what is before the sigmoid should be told
        rule = "must be a probability, from 0 to 1"
        _check(~np.isfinite(numbers) | ((score >= 0) & (score <= 1)), SCORE + task, rule, problems)
    else:
        fits = np.isfinite(score) | ~np.isfinite(numbers)
        _check(fits, SCORE + task, "must fit float32", problems)
    return score


def _outcome(table: Any, name: str, tasks: Mapping[str, Kind], problems: list[str]) -> Floats:  # noqa: ANN401
    outcome = _numbers(table, name, problems, may_be_empty=True)
    kind = tasks.get(name.removeprefix(OUTCOME), "regression")
    known = np.isnan(outcome)
    if kind == "binary":
        _check(known | (outcome == 0) | (outcome == 1), name, "must be 0, 1 or empty", problems)
    elif kind == "duration":
        _check(known | (outcome >= 0), name, "must be 0 or more, or empty (seconds)", problems)
    if known.all():
        problems.append(f"column {name}: is empty in every row")
    return outcome


def _numbers(
    table: Any,  # noqa: ANN401
    name: str,
    problems: list[str],
    *,
    may_be_empty: bool = False,
) -> Floats:
    """Return a column as float64 `[n]`, NaN where it is empty."""
    import pyarrow as pa

    try:
        column = table.column(name).cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        problems.append(f"column {name}: must hold numbers, and holds {table.column(name).type}")
        return np.zeros(table.num_rows)
    numbers: Floats = column.to_numpy()
    if not may_be_empty:
        _check(np.isfinite(numbers), name, "must be a finite number", problems)
    else:
        _check(~np.isinf(numbers), name, "must be a finite number or empty", problems)
    return numbers


def _check(good: npt.NDArray[np.bool_], name: str, rule: str, problems: list[str]) -> None:
    """Name a column's first bad row, counted from 1 without a header, and how many there are."""
    bad = np.flatnonzero(~good)
    if len(bad):
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        problems.append(f"column {name}, row {bad[0] + 1}: {rule}{more}")
