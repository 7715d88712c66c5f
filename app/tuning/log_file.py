"""Read a log from Parquet, CSV with a header, or JSON lines, and report every bad column.

`app.tuning.log` describes the columns. Needs pyarrow, which is in the extra `tune`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import TuningError, did_you_mean
from app.tuning.log import Floats, Log

SCORE, OUTCOME, REQUEST, POSITION = "score_", "outcome_", "request_id", "position"
MAX_PROBLEMS = 20

Kind = Literal["binary", "duration", "regression"]


class LogInvalid(TuningError):
    """A log cannot be used. `problems` has one line for each bad column."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        super().__init__(f"{path}: {problems[0]}")
        self.problems = [f"{path}: {problem}" for problem in problems[:MAX_PROBLEMS]]


def read_log(path: Path, tasks: Mapping[str, Kind]) -> Log:
    """Read and check a log.

    The rows of a request may be anywhere in the file. In the log they are together, and requests
    are in the order of their first rows.

    Args:
        path: a file that ends in .parquet, .csv or .jsonl.
        tasks: the model's tasks and their kinds. Each task must have a score. The score of a binary
            task must be a probability, and its outcome 0 or 1. The outcome of a duration must be
            0 seconds or more.

    Raises:
        LogInvalid: a column is missing or wrong; it names every such column and its first bad row.
        TuningError: the file cannot be read as a table, or pyarrow is not installed.
    """
    table = _table(path)
    problems: list[str] = []
    needed = [REQUEST, *(SCORE + task for task in tasks)]
    missing = [name for name in needed if name not in table.column_names]
    outcomes = [name for name in table.column_names if name.startswith(OUTCOME)]
    ignored = set(table.column_names) - {*needed, *outcomes, POSITION}
    problems += [f"column {name} is missing{did_you_mean(name, ignored)}" for name in missing]
    if not outcomes:
        problems.append(f"no outcome column: at least one name must begin with {OUTCOME}")
    if table.num_rows == 0:
        problems.append("the table has no rows")
    if problems:
        raise LogInvalid(path, problems)
    scores = [_score(table, task, kind, problems) for task, kind in tasks.items()]
    by_name = {n.removeprefix(OUTCOME): _outcome(table, n, tasks, problems) for n in outcomes}
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
        outcomes={name: outcome[rows] for name, outcome in by_name.items()},
        positions=None if positions is None else positions[rows],
    )


def _table(path: Path) -> Any:  # noqa: ANN401  (pyarrow has no types)
    try:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.json
        import pyarrow.parquet
    except ImportError:
        raise TuningError("reading logs needs pyarrow: pip install -e '.[tune]'") from None
    readers = {
        ".parquet": pyarrow.parquet.read_table,
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise TuningError(
            f"{path}: unknown kind of file; a log's name ends in {', '.join(readers)}"
        )
    try:
        table = reader(path)
        names = table.column_names
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise TuningError(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from None
    except OSError as error:
        raise TuningError(f"{path}: {error.strerror or error}") from None
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise TuningError(f"{path}: duplicate column {duplicates[0]}")
    return table


def _requests(table: Any, problems: list[str]) -> tuple[npt.NDArray[np.int64], list[str]]:  # noqa: ANN401
    """Return the request of each row, `[n]`, and the requests' ids."""
    import pyarrow as pa

    column = table.column(REQUEST).combine_chunks()
    if pa.types.is_nested(column.type):
        problems.append(f"column {REQUEST}: must be strings or integers, not {column.type}")
        return np.zeros(table.num_rows, np.int64), []
    _check(~column.is_null().to_numpy(False), REQUEST, "must not be empty", problems)
    encoded = column.dictionary_encode()
    indices = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return indices, [str(value) for value in encoded.dictionary.to_pylist()]


def _score(
    table: Any,  # noqa: ANN401
    task: str,
    kind: Kind,
    problems: list[str],
) -> npt.NDArray[np.float32]:
    numbers = _numbers(table, SCORE + task, problems)
    with np.errstate(over="ignore"):
        score = numbers.astype(np.float32)
    if kind == "binary":  # a likely mistake is to log the value before the sigmoid
        rule = "must be a probability, from 0 to 1"
        _check(~np.isfinite(numbers) | ((score >= 0) & (score <= 1)), SCORE + task, rule, problems)
    else:
        is_in_range = np.isfinite(score) | ~np.isfinite(numbers)
        _check(is_in_range, SCORE + task, "is too large for float32", problems)
    return score


def _outcome(table: Any, name: str, tasks: Mapping[str, Kind], problems: list[str]) -> Floats:  # noqa: ANN401
    outcome = _numbers(table, name, problems, may_be_empty=True)
    kind = tasks.get(name.removeprefix(OUTCOME), "regression")
    undefined = np.isnan(outcome)
    if kind == "binary":
        _check(undefined | (outcome == 0) | (outcome == 1), name, "must be 0, 1 or empty", problems)
    elif kind == "duration":
        _check(undefined | (outcome >= 0), name, "must be 0 seconds or more, or empty", problems)
    if undefined.all():
        problems.append(f"column {name}: is empty in every row")
    return outcome


def _numbers(
    table: Any,  # noqa: ANN401
    name: str,
    problems: list[str],
    *,
    may_be_empty: bool = False,
) -> Floats:
    """Return a column as float64 `[n]`, NaN for empty cells."""
    import pyarrow as pa

    try:
        column = table.column(name).cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        problems.append(f"column {name}: must be numbers, not {table.column(name).type}")
        return np.zeros(table.num_rows)
    numbers: Floats = column.to_numpy()
    if not may_be_empty:
        _check(np.isfinite(numbers), name, "must be a finite number", problems)
    else:
        _check(~np.isinf(numbers), name, "must be a finite number or empty", problems)
    return numbers


def _check(good: npt.NDArray[np.bool_], name: str, rule: str, problems: list[str]) -> None:
    """Report a column's first bad row (from 1, without a header) and the number of the others."""
    bad = np.flatnonzero(~good)
    if len(bad):
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        problems.append(f"column {name}, row {bad[0] + 1}: {rule}{more}")
