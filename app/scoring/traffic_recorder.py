"""Records a sample of score calls as Parquet files, off the event loop.

The event loop appends a record to a bounded queue. A thread collects the records of each version,
and writes them as one complete file when they are large or old enough. When the disk is slow, the
queue fills up and records are dropped; when it is full or fails, the records of a file are dropped.
Both are counted. No request waits for the disk or fails because of it.

Replicas and processes can share a folder: the names of files are unique, and each process removes
the oldest files, whoever wrote them, before it writes one.
"""

import errno
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.artifacts.columns import Columns
from app.artifacts.encoding import Hashed
from app.artifacts.ids import feature_values, ids_of
from app.artifacts.inputs import DenseInput
from app.artifacts.loader import Model
from app.artifacts.traffic_log import (
    NEEDS_PYARROW,
    SUFFIX,
    Ids,
    ScoredFeatures,
    TrafficRecord,
    to_parquet,
)
from app.engine.request import TableUse
from app.errors import ConfigurationInvalid
from app.protocol.dialect import ParsedRequest
from app.ranking.batch import RankedRequest
from app.ranking.policies import ModelPolicies
from app.telemetry.requests import RequestRecord, stage_names

logger = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 32 << 20
"""Of records that wait for the thread."""
MAX_FILES = 2000
"""In the folder: a reader lists and opens them all."""
FILE_BYTES = 8 << 20
"""Of records in memory that make a file; it is a half to a tenth as large on disk."""
FILE_AGE_S = 30.0
"""How long a record waits for others until its file is written. A process that is killed loses
these records."""
COMPLAIN_EVERY_S = 60.0
_LOOK_EVERY_S = 1.0
_CLOSE_TIMEOUT_S = 5.0
_TEMPORARY_S = 3600.0  # a file of another process that is older was left by a crash
_RECORD_BYTES = 1000  # of one without features
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@dataclass(slots=True, eq=False)
class Recording:
    """What is kept of a call that is recorded, until its response is sent.

    Attributes:
        body_bytes: the size of its body.
        id: of the record, random; empty for none.
        ranked: its scores, once there are any.
    """

    body_bytes: int
    id: str = ""
    ranked: RankedRequest | None = None

    @property
    def header(self) -> bytes:
        """The line of the response's head that has the id."""
        return b"x-record-id: %b\r\n" % self.id.encode() if self.id else b""

    def record(
        self,
        record: RequestRecord,
        model: Model,
        policies: ModelPolicies,
        parsed: ParsedRequest | None,
    ) -> TrafficRecord:
        """Return the call as it goes into the log.

        Args:
            record: what metrics count of it.
            model: the version that scored it.
            policies: of that version.
            parsed: its body, if that was valid.
        """
        scored = None
        if self.ranked is not None and parsed is not None and record.status == 200:
            scored = _scored(self.ranked, model, policies, parsed)
        return TrafficRecord(
            model.manifest,
            time.time(),
            record.role,
            record.status,
            record.duration_s,
            record.policy,
            stage_names(record.stages) if record.stages else {},
            scored,
            _RECORD_BYTES + (0 if scored is None else self.body_bytes + scored.scores.nbytes),
            self.id,
        )


def _scored(
    ranked: RankedRequest, model: Model, policies: ModelPolicies, parsed: ParsedRequest
) -> ScoredFeatures:
    ranker = parsed.ranking.ranker
    name = ranker.policy.name
    is_reweighted = policies.by_name.get(name) is not ranker
    features, ids = parsed.features, parsed.ids or {}
    user, candidate = features.user, features.candidate
    if features.tables is not None:
        user = {
            feature.name: features.user_column(feature.name)
            for feature in model.manifest.user_inputs
        }
        candidate = {
            feature.name: features.candidate_column(feature.name)
            for feature in model.manifest.candidate_inputs
        }
        ids = _with_ids_of_tables(ids, model, features.tables, user, candidate)
    return ScoredFeatures(
        user,
        candidate,
        ids,
        ranked.scores,
        ranked.rank_score,
        None if ranker is policies.default else name,
        {weight: ranker.policy.weights.get(weight, 0.0) for weight in ranker.adjustable}
        if is_reweighted
        else None,
        parsed.ranking.top_k,
        None if features.tables is None else features.tables.kept,
    )


def _with_ids_of_tables(
    sent: Ids, model: Model, tables: TableUse, user: Columns, candidate: Columns
) -> Ids:
    """Return the ids that were sent for scored candidates; those of tables are read off rows.

    A hash cannot be inverted: a hashed id that comes from a table is left out.
    """
    ids: dict[str, Any] = {}
    for feature in model.manifest.inputs:
        if isinstance(feature, DenseInput):
            continue
        is_of_user = feature.side == "user"
        if feature.name in sent:
            ids[feature.name] = values = sent[feature.name]
            if not is_of_user and tables.kept is not None:
                ids[feature.name] = [values[position] for position in tables.kept]
        elif not isinstance(feature.encoding, Hashed):
            columns = user if is_of_user else candidate
            count = len(columns[feature.name])
            values = feature_values(feature, columns, count, ids_of(model), shown_ids=None)
            ids[feature.name] = values[0] if is_of_user else values
    return ids


@dataclass(slots=True)
class _NextFile:
    """Records of one version that are not written yet.

    Attributes:
        began: clock time (s) of the first one.
        records: in the order of their responses.
        size: of them all (bytes).
    """

    began: float
    records: list[TrafficRecord] = field(default_factory=list)
    size: int = 0


class TrafficRecorder:
    """Records some requests in a folder; `add` is called on the event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        share: float,
        max_bytes: int,
        on_counted: Callable[[str, int], None],
        gives_ids: bool = False,
        file_age_s: float = FILE_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the thread.

        Args:
            folder: is created if it does not exist, also later.
            share: of the requests that are recorded, 0 to 1.
            max_bytes: of all files in the folder.
            on_counted: called with a result (`written`, `dropped`, `failed`) and a number of
                records, by any thread.
            gives_ids: whether each recorded request gets a random id.
            file_age_s: how long a record waits until it is written, at most (s).
            clock: counts seconds.

        Raises:
            ConfigurationInvalid: pyarrow is not installed, or the folder can never be written.
        """
        require_pyarrow()
        self._folder = folder
        self._share = share
        self._max_bytes = max_bytes
        self._on_counted = on_counted
        self._gives_ids = gives_ids
        self._file_age_s = file_age_s
        self._clock = clock
        self._process = uuid4().hex[:8]
        self._files = 0
        self._complained_at = -COMPLAIN_EVERY_S
        self._is_failing = False
        self._records: deque[TrafficRecord] = deque()
        self._added_bytes = 0  # changed on the event loop only
        self._done_bytes = 0  # changed on the thread only
        self._wake = threading.Event()
        self._is_closed = False
        self._check_folder()
        self._thread = threading.Thread(target=self._main, name="traffic-recorder", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<TrafficRecorder {self._folder}: {len(self._records)} records wait>"

    def takes_next(self) -> bool:
        """Decide whether the next request is recorded, at random."""
        return random.random() < self._share  # noqa: S311  (no secret)

    def begin(self, body_bytes: int) -> Recording:
        """Begin to record a call with a body of so many bytes."""
        return Recording(body_bytes, uuid4().hex if self._gives_ids else "")

    def add(self, record: TrafficRecord) -> None:
        """Queue a record, or count it as dropped. Takes no lock that the thread may hold."""
        queued_bytes = self._added_bytes - self._done_bytes
        if queued_bytes + record.size > MAX_QUEUED_BYTES:
            self._on_counted("dropped", 1)
            return
        self._records.append(record)
        self._added_bytes += record.size
        if queued_bytes < FILE_BYTES <= queued_bytes + record.size:
            self._wake.set()  # otherwise the thread wakes up by itself: once for many records

    def close(self) -> None:
        """Write what is queued and end the thread, unless the disk takes longer than 5 s."""
        self._is_closed = True
        self._wake.set()
        self._thread.join(_CLOSE_TIMEOUT_S)

    # The rest runs on the thread.

    def _main(self) -> None:
        files: dict[str, _NextFile] = {}  # by `name/version`
        is_closed = False
        while not is_closed:
            self._wake.wait(min(_LOOK_EVERY_S, self._file_age_s))
            self._wake.clear()
            is_closed = self._is_closed
            # What is a local variable here stays in memory while the thread waits.
            self._sort_into(files)
            self._write_due(files, all_are_due=is_closed)

    def _sort_into(self, files: dict[str, _NextFile]) -> None:
        """Move the queued records to the next file of their version."""
        while self._records:
            record = self._records.popleft()
            file = files.setdefault(record.manifest.label, _NextFile(self._clock()))
            file.records.append(record)
            file.size += record.size

    def _write_due(self, files: dict[str, _NextFile], *, all_are_due: bool) -> None:
        """Write and forget the files that are large or old enough."""
        is_much = sum(file.size for file in files.values()) >= MAX_QUEUED_BYTES // 2
        for label, file in list(files.items()):
            is_old = self._clock() - file.began >= self._file_age_s
            if file.size >= FILE_BYTES or is_old or is_much or all_are_due:
                del files[label]
                self._write(file.records)
                self._done_bytes += file.size

    def _write(self, records: list[TrafficRecord]) -> None:
        """Write records of one version as a file, or count them as failed."""
        try:
            self._write_file(records[0].manifest.name, to_parquet(records))
        except OSError as error:
            self._on_counted("failed", len(records))
            self._complain(f"cannot write recorded traffic: {error.strerror or error}")
        except Exception:
            self._on_counted("failed", len(records))
            now = self._clock()
            if now - self._complained_at >= COMPLAIN_EVERY_S:
                self._complained_at = now
                logger.exception("cannot record traffic")
        else:
            self._on_counted("written", len(records))
            if self._is_failing:
                self._is_failing = False
                logger.info("traffic is recorded again")

    def _complain(self, message: str) -> None:
        self._is_failing = True
        now = self._clock()
        if now - self._complained_at >= COMPLAIN_EVERY_S:
            self._complained_at = now
            logger.warning("%s; records are dropped until it works again", message)

    def _write_file(self, model: str, content: bytes) -> None:
        """Write a file of a model, after removing the oldest ones to make room for it.

        Raises:
            OSError: it cannot be written; nothing of it is left.
        """
        folder = self._folder / model
        folder.mkdir(parents=True, exist_ok=True)
        if len(content) > self._max_bytes:
            raise OSError(errno.EFBIG, f"a file of {len(content)} bytes is over the limit")
        self._make_room(len(content))
        self._files += 1
        at = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
        name = f"{at}-{self._process}-{self._files:06d}{SUFFIX}"
        temporary = folder / f".{name}"
        try:
            with temporary.open("wb", buffering=0) as file:
                view = memoryview(content)
                while view:
                    view = view[file.write(view) :]
            temporary.rename(folder / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _make_room(self, size: int) -> None:
        """Remove the oldest files until one of `size` bytes fits in."""
        files = sorted(_files_in(self._folder))
        total = sum(bytes_ for _, bytes_, _ in files)
        while files and (total + size > self._max_bytes or len(files) >= MAX_FILES):
            _, bytes_, path = files.pop(0)
            with suppress(FileNotFoundError):  # another process was faster
                path.unlink()
            total -= bytes_

    def _check_folder(self) -> None:
        """Refuse a folder that a person must correct; a full disk may have room later.

        Raises:
            ConfigurationInvalid: it cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            if error.errno in _UNUSABLE:
                where = f'record: folder "{self._folder}" cannot be written'
                raise ConfigurationInvalid(f"{where}: {error.strerror}") from None


def require_pyarrow() -> None:
    """Import the library that reads and writes recorded traffic.

    Raises:
        ConfigurationInvalid: it is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ConfigurationInvalid(f"record: {NEEDS_PYARROW}") from None


def _files_in(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """Yield the files of all models: what orders them by age, size (bytes), path.

    Temporary files that a killed process left behind are removed an hour later.
    """
    for model in folder.iterdir():
        if not model.is_dir():
            continue
        for path in model.iterdir():
            if path.suffix != SUFFIX:
                continue
            with suppress(FileNotFoundError):  # another process was faster
                status = path.stat()
                if not path.name.startswith("."):
                    yield path.name, status.st_size, path
                elif time.time() - status.st_mtime > _TEMPORARY_S:
                    path.unlink()
