"""Recorded requests on disk: Parquet files, each with the requests of one version of a model.

The files are in `<folder>/<model>/`. A file has one row for each request:

| column | content |
| --- | --- |
| `id` | random, as in the response's `x-record-id`; null unless the server gives ids |
| `time` | when it was answered (UTC) |
| `model`, `version`, `role` | what scored it, and the version's role in traffic |
| `status`, `duration_s`, `stages_s` | of the response; without features if it failed |
| `requested_policy`, `weights`, `top_k` | what it asked for; null if it asked for nothing |
| `policy` | that ranked it |
| `candidates` | their number, n |
| `kept` | their positions in the request, if a table dropped others; else null |
| `user.<feature>` | a number, an id, or a list of them |
| `candidate.<feature>` | a list with one entry per candidate |
| `score.<task>`, `rank_score` | lists of n scores |

Dense features are kept as the model got them, defaults included. Ids are kept as they were sent,
so that a version with another vocabulary can score them; an id that was not sent is null. Features
that come from an item or user table are kept as the table had them, except for hashed ids, which
cannot be read off it. Nothing else of a request is kept: no request id, no header, no candidate
key. An id of the record is made by the server, and says nothing to who has only the log.

A file is written under a name that starts with a dot, and renamed when it is complete. Needs
pyarrow.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.artifacts.columns import Column, Columns
from app.artifacts.encoding import Identity
from app.artifacts.inputs import DenseInput, IdListInput, Input
from app.artifacts.manifest import Manifest

SUFFIX = ".parquet"
NEEDS_PYARROW = (
    "recorded traffic needs pyarrow: pip install -e '.[data]'; an image has it if data is among "
    "the EXTRAS that it is built with"
)

Ids = Mapping[str, Any]
"""By feature: the id (or list of ids) of the user, or a list with one entry per candidate."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoredFeatures:
    """The features of a request that was scored, and its scores.

    Attributes:
        user: columns with one row, as the model got them.
        candidate: columns with n rows.
        ids: the ids as they were sent.
        scores: `[n, K]` float32.
        rank_score: `[n]` float32.
        requested_policy: the policy that the request names, if it names one.
        weights: the policy's weights, if the request sets some.
        top_k: of the request.
        kept: int64 `[n]`, the candidates' positions in the request, if others were not scored.
    """

    user: Columns
    candidate: Columns
    ids: Ids
    scores: npt.NDArray[np.float32]
    rank_score: npt.NDArray[np.float32]
    requested_policy: str | None = None
    weights: Mapping[str, float] | None = None
    top_k: int | None = None
    kept: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TrafficRecord:
    """A request as it goes into the log.

    Attributes:
        manifest: of the version that scored it.
        unix_s: when it was answered.
        role: of the version.
        status: of the response.
        duration_s: from its head to its response.
        policy: that ranked it, or empty.
        stages_s: seconds by stage.
        scored: its features and scores, if it was scored.
        size: about how many bytes of memory it takes.
        id: random; empty for none.
    """

    manifest: Manifest
    unix_s: float
    role: str
    status: int
    duration_s: float
    policy: str
    stages_s: Mapping[str, float]
    scored: ScoredFeatures | None
    size: int
    id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRequest:
    """A scored request from the log.

    Attributes:
        unix_s: when it was answered.
        version: that scored it.
        document: a native score request: `user`, `candidates`, and `ranking`.
        scores: of the candidates, `[n]` float32 by task.
        rank_score: of the candidates, `[n]` float32.
        top_k: how many of the best were returned; None for all.
        id: of the record; empty for none.
        positions: of the candidates in the request as it was sent, `[n]`.
    """

    unix_s: float
    version: int
    document: dict[str, Any]
    scores: Mapping[str, npt.NDArray[np.float32]]
    rank_score: npt.NDArray[np.float32]
    top_k: int | None
    id: str
    positions: npt.NDArray[np.integer]


@dataclass(slots=True)
class SkippedFiles:
    """Files of a log that could not be read: how many, and why the first one."""

    count: int = 0
    reason: str = ""

    def add(self, path: Path, error: Exception) -> None:
        """Count a file."""
        self.count += 1
        reason = str(error).partition("\n")[0]
        self.reason = self.reason or f"{path.name}: {reason}"


def to_parquet(records: Sequence[TrafficRecord]) -> bytes:
    """Return the content of a file with records of one version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = records[0].manifest
    scored = [record.scored for record in records]
    columns: dict[str, Any] = {
        "id": pa.array([record.id or None for record in records], pa.string()),
        "time": pa.array([int(r.unix_s * 1e6) for r in records], pa.timestamp("us", "UTC")),
        "model": pa.array([manifest.name] * len(records)),
        "version": pa.array([manifest.version] * len(records), pa.int64()),
        "role": pa.array([r.role for r in records]),
        "status": pa.array([r.status for r in records], pa.int16()),
        "duration_s": pa.array([r.duration_s for r in records], pa.float32()),
        "stages_s": _map(pa, [r.stages_s for r in records], pa.float32()),
        "policy": pa.array([r.policy or None for r in records], pa.string()),
        "requested_policy": pa.array(
            [None if s is None else s.requested_policy for s in scored], pa.string()
        ),
        "weights": _map(pa, [None if s is None else s.weights for s in scored], pa.float64()),
        "top_k": pa.array([None if s is None else s.top_k for s in scored], pa.int64()),
        "candidates": pa.array([None if s is None else len(s.scores) for s in scored], pa.int32()),
        "kept": pa.array([None if s is None else s.kept for s in scored], pa.list_(pa.int32())),
    }
    for feature in manifest.inputs:
        columns[f"{feature.side}.{feature.name}"] = _feature_column(pa, feature, scored)
    for k, task in enumerate(manifest.task_names):
        parts = [None if s is None else s.scores[:, k] for s in scored]
        columns[f"score.{task}"] = _lists(pa, parts, np.float32)
    ranked = [None if s is None else s.rank_score for s in scored]
    columns["rank_score"] = _lists(pa, ranked, np.float32)
    buffer = io.BytesIO()
    # Dictionaries only where values repeat: floats never do, and trying costs most of the time.
    repeated = ["model", "role", "policy", "requested_policy"]
    repeated += [f"{f.side}.{f.name}" for f in manifest.inputs if not isinstance(f, DenseInput)]
    pq.write_table(
        pa.table(columns),
        buffer,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in repeated if not pa.types.is_nested(columns[name].type)],
        write_statistics=False,
    )
    return buffer.getvalue()


def _map(pa: Any, mappings: Sequence[Mapping[str, float] | None], arrow_type: Any) -> Any:  # noqa: ANN401
    entries = [None if mapping is None else list(mapping.items()) for mapping in mappings]
    return pa.array(entries, pa.map_(pa.string(), arrow_type))


def _lists(pa: Any, parts: Sequence[Column | None], dtype: type[np.generic]) -> Any:  # noqa: ANN401
    """Return a column of lists, from arrays `[n]` or `[n, dim]`; None becomes null."""
    real = [array for array in parts if array is not None]
    lengths = [0 if array is None else len(array) for array in parts]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.concatenate(real) if real else np.empty(0, dtype)
    values = pa.array(flat.reshape(-1))
    if flat.ndim == 2 and flat.shape[1] > 1:
        values = pa.FixedSizeListArray.from_arrays(values, flat.shape[1])
    mask = pa.array([array is None for array in parts])
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)


def _feature_column(pa: Any, feature: Input, scored: Sequence[ScoredFeatures | None]) -> Any:  # noqa: ANN401
    name, is_of_user = feature.name, feature.side == "user"
    if isinstance(feature, DenseInput):
        if not is_of_user:
            parts = [None if s is None else s.candidate[name] for s in scored]
            if all(array is None for array in parts):
                inner = pa.float32() if feature.dim == 1 else pa.list_(pa.float32(), feature.dim)
                return pa.nulls(len(parts), pa.list_(inner))
            return _lists(pa, parts, np.float32)
        rows = [None if s is None else s.user[name][0] for s in scored]  # [dim] each
        if feature.dim == 1:
            return pa.array([None if r is None else float(r[0]) for r in rows], pa.float32())
        return pa.array([None if r is None else r.tolist() for r in rows], pa.list_(pa.float32()))
    arrow_type = pa.string() if feature.encoding.id_type is str else pa.int64()
    if isinstance(feature, IdListInput):
        arrow_type = pa.list_(arrow_type)
    if not is_of_user:
        arrow_type = pa.list_(arrow_type)
    return pa.array([None if s is None else _ids(feature, s) for s in scored], arrow_type)


def _ids(feature: Input, scored: ScoredFeatures) -> object:
    """Return the ids as they were sent; those of an `identity` encoding can be read off rows."""
    sent = scored.ids.get(feature.name)
    if sent is not None and feature.side == "candidate" and len(sent) != len(scored.scores):
        sent = None  # some of the candidates that were sent were not scored
    if sent is not None or isinstance(feature, DenseInput | IdListInput):
        return sent
    if not isinstance(feature.encoding, Identity):
        return None
    columns = scored.user if feature.side == "user" else scored.candidate
    rows = columns[feature.name].tolist()
    return rows[0] if feature.side == "user" else rows


def log_files(folder: Path, model: str) -> list[Path]:
    """Return the complete files of a model's log, the newest last; none if there is no folder.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        files = [file for file in (folder / model).iterdir() if file.suffix == SUFFIX]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(file for file in files if not file.name.startswith("."))


@dataclass(slots=True)
class TrafficLog:
    """Reads the scored requests of one model, whichever processes wrote them.

    Attributes:
        folder: of the log.
        model: the model's name.
        skipped: files that could not be read so far.
    """

    folder: Path
    model: str
    skipped: SkippedFiles = field(default_factory=SkippedFiles)

    def requests(self) -> Iterator[RecordedRequest]:
        """Yield the requests, the newest first; damaged files are skipped.

        Raises:
            ModuleNotFoundError: pyarrow is not installed.
            OSError: the folder cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in reversed(log_files(self.folder, self.model)):
            try:
                # Not the path: pyarrow would read a dataset and add columns from folder names.
                with path.open("rb") as file:
                    table = pq.read_table(file, use_threads=False)
                yield from _requests(table)
            except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
                self.skipped.add(path, error)


def _requests(table: Any) -> Iterator[RecordedRequest]:  # noqa: ANN401
    """Yield the scored requests of a file, the last one first, each when it is needed."""
    names: list[str] = table.column_names
    columns = {name: table.column(name).combine_chunks() for name in names}
    versions = columns["version"].to_pylist()
    statuses = columns["status"].to_pylist()
    times = columns["time"].cast("int64").to_pylist()
    policies = columns["requested_policy"].to_pylist()
    weights = columns["weights"].to_pylist()
    limits = columns["top_k"].to_pylist()
    counts = columns["candidates"].to_pylist()
    ids = columns["id"].to_pylist() if "id" in columns else [None] * len(counts)
    for row in reversed(range(table.num_rows)):
        if statuses[row] != 200 or not counts[row]:
            continue
        document: dict[str, Any] = {"user": {}, "candidates": {}}
        scores = {}
        for name in names:
            side, _, feature = name.partition(".")
            if side == "score":
                scores[feature] = _array(columns[name], row)
            elif side == "user" and (value := columns[name][row].as_py()) is not None:
                document["user"][feature] = value
            elif side == "candidate" and columns[name][row].is_valid:
                document["candidates"][feature] = _candidates(columns[name], row)
        asked = {
            "policy": policies[row],
            "weights": dict(weights[row]) if weights[row] else None,
            "top_k": limits[row],
        }
        asked = {name: value for name, value in asked.items() if value is not None}
        if asked:
            document["ranking"] = asked
        rank_score = _array(columns["rank_score"], row)
        at_s = times[row] / 1e6
        positions = np.arange(counts[row])
        if "kept" in columns and columns["kept"][row].is_valid:
            positions = columns["kept"][row].values.to_numpy()
        yield RecordedRequest(
            at_s,
            versions[row],
            document,
            scores,
            rank_score,
            limits[row],
            ids[row] or "",
            positions,
        )


def _array(column: Any, row: int) -> npt.NDArray[np.float32]:  # noqa: ANN401
    array: npt.NDArray[np.float32] = column[row].values.to_numpy()
    return array


def _candidates(column: Any, row: int) -> Any:  # noqa: ANN401
    """Return a feature's values: a matrix `[n, dim]` of numbers, or a list of ids."""
    import pyarrow as pa

    values = column[row].values
    if pa.types.is_floating(values.type):
        return values.to_numpy().reshape(len(values), 1)
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten().to_numpy().reshape(len(values), values.type.list_size)
    return values.to_pylist()
