"""Copies of item tables in the memory of a GPU: a batch of keys copies positions, not rows.

A lane gathers a batch there if all of its candidates come from one table, whatever else their
requests send. Any other batch is collated on the host, from the same table.

A copy belongs to one view of a table, which never changes. A delta makes another view: it shares
the rows of the table and has the changed rows of its own. A copy lives as long as its view, which
requests and lanes hold, so its memory is free as soon as the last request is done with it.
"""

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.artifacts.loader import Model
from app.artifacts.program import error_summary
from app.artifacts.tables.segment import Records
from app.artifacts.tables.table import Table
from app.engine.batch import Chunk
from app.engine.gpu.arena import padding

logger = logging.getLogger(__name__)

_STAGING = 16 * 2**20  # bytes; no record is larger
_REMEMBERED = 64  # tables that did not fit


class Memory(Protocol):
    """The memory of a device, and a queue of copies to it; used by one thread at a time."""

    def scope(self) -> AbstractContextManager[None]:
        """Make the queue the current one of this thread."""

    def host_bytes(self, size: int) -> Tensor:
        """Return host memory that the device copies from, uint8 `[size]`."""

    def device_bytes(self, size: int) -> Tensor:
        """Return device memory, uint8 `[size]`."""


@dataclass(frozen=True, slots=True, eq=False)
class _BaseRows:
    """The rows of a table without deltas, on the device.

    Attributes:
        records: int64 `[n + 2, W]`: the defaults, the n rows of the table, then padding.
        record: the type of a record, W 64-bit words.
        layout: the same for tables whose records have the same fields.
    """

    records: Tensor
    record: np.dtype[np.void]
    layout: str

    def fields(self, records: Tensor) -> Mapping[str, Tensor]:
        """Return the columns of records, int64 `[B, W]`, as views: `[B, …]` for each feature."""
        assert self.record.fields is not None
        numbers = records.view(torch.float32)  # [B, 2W]
        columns = {}
        for name, (dtype, offset, *_) in self.record.fields.items():
            words = records if dtype.base.kind == "i" else numbers
            start = offset // words.element_size()
            count = math.prod(dtype.shape)
            part = words[:, start : start + count]  # [B, count]
            columns[name] = part.view(len(records), *dtype.shape)
        return columns


@dataclass(frozen=True, slots=True, eq=False)
class DeviceRows:
    """The rows of one view of a table on the device. Row `p + 1` is the row at position `p`.

    Attributes:
        base: the rows that are the same for all views of a table.
        changed: int64 `[c, W]`, the rows of deltas: those from row `padding + 1` on; None without
            deltas.
    """

    base: _BaseRows
    changed: Tensor | None

    @property
    def padding(self) -> int:
        """The row of padding: a candidate of unknown ids, whose numbers are zero."""
        return len(self.base.records) - 1


@dataclass(frozen=True, slots=True, eq=False)
class SharedTable:
    """Where all candidates of a batch come from.

    Attributes:
        rows: on the device.
        names: the features that come from there; the requests send the others.
    """

    rows: DeviceRows
    names: frozenset[str]


class DeviceTables:
    """The item tables that have a copy on one device.

    One thread at a time calls `place`; any thread may call the others.
    """

    def __init__(self, memory: Memory, budget: int) -> None:
        """Copy to `memory`, a queue of its own; all copies together have `budget` bytes."""
        self._memory = memory
        self._budget = budget
        self._copies: WeakKeyDictionary[Table, DeviceRows] = WeakKeyDictionary()
        self._lock = threading.Lock()  # of `_copies`, where it is iterated over or changed
        self._no_room: dict[str, int] = {}  # by the id of a table: bytes in use when it had none
        self._excluded: WeakSet[Model] = WeakSet()

    def bytes(self) -> int:
        """Return how much memory all copies take, with those that only running requests hold."""
        with self._lock:
            copies = list(self._copies.values())
        tensors = {id(copy.base): copy.base.records.nbytes for copy in copies}
        changed = sum(copy.changed.nbytes for copy in copies if copy.changed is not None)
        return sum(tensors.values()) + changed

    def place(self, table: Table) -> None:
        """Copy a table to the device, unless it has a copy; log it if there is no room for it.

        A table that cannot be copied stays on the host, where it serves as well. Calling again
        tries again once memory was given back. It takes as long as the table's bytes need.
        """
        if table in self._copies:
            return
        base, used = self._base_of(table), self.bytes()
        size = _size(table, with_base=base is None)
        before = self._no_room.get(table.description.id)
        if before is not None and used >= before:
            return
        try:
            if size > self._budget - used:
                reason = f"{used / 1e6:,.1f} MB of {self._budget / 1e6:,.1f} MB are in use"
                raise torch.OutOfMemoryError(reason)
            with self._memory.scope():
                copy = self._copied(table, base)
        except RuntimeError as error:  # out of memory, or the device is lost
            self._stays(table, size, used, error)
            return
        with self._lock:
            self._copies[table] = copy
        self._no_room.pop(table.description.id, None)
        if base is None:
            logger.info("%s is in the GPU's memory, %.1f MB", _label(table), size / 1e6)

    def _stays(self, table: Table, size: int, used: int, error: Exception) -> None:
        """Log that a table stays on the host, unless that was done before."""
        if table.description.id not in self._no_room:
            logger.warning(
                "%s stays in the host's memory: the GPU has no room for its %.1f MB: %s",
                _label(table),
                size / 1e6,
                error_summary(error),
            )
        self._no_room[table.description.id] = used
        while len(self._no_room) > _REMEMBERED:
            del self._no_room[next(iter(self._no_room))]

    def shared(self, model: Model, chunks: Sequence[Chunk]) -> SharedTable | None:
        """Return the table that all candidates of a batch come from, if it has a copy here."""
        tables = chunks[0].features.tables
        first = None if tables is None else tables.candidate
        if first is None or not isinstance(first.table, Table) or model in self._excluded:
            return None
        for chunk in chunks:
            tables = chunk.features.tables
            rows = None if tables is None else tables.candidate
            if rows is None or rows.table is not first.table or rows.names != first.names:
                return None
        copy = self._copies.get(first.table)
        return None if copy is None else SharedTable(copy, first.names)

    def exclude(self, model: Model, error: Exception) -> None:
        """Gather the batches of a version on the host from now on; log why, once."""
        if model not in self._excluded:
            self._excluded.add(model)
            logger.warning(
                "model %s gathers its candidates on the host: %s", model, error_summary(error)
            )

    def _base_of(self, table: Table) -> _BaseRows | None:
        with self._lock:
            copies = list(self._copies.items())
        return next((copy.base for known, copy in copies if known.base is table.base), None)

    def _copied(self, table: Table, base: _BaseRows | None) -> DeviceRows:
        """Copy what the device does not have of a table."""
        records, changed = table.base.records, table.changed_records
        staging = self._memory.host_bytes(max(_STAGING, records.dtype.itemsize))
        if base is None:
            base = _BaseRows(
                self._rows(len(records) + 1, records.dtype),
                records.dtype,
                repr(records.dtype),
            )
            _upload(records[-1:], base.records[:1], staging)
            _upload(records[:-1], base.records[1:-1], staging)
            _upload(_padding_record(table), base.records[-1:], staging)
        if not len(changed):
            return DeviceRows(base, None)
        copy = self._rows(len(changed), records.dtype)
        _upload(changed, copy, staging)
        return DeviceRows(base, copy)

    def _rows(self, count: int, record: np.dtype[np.void]) -> Tensor:
        """Return device memory for so many records, int64 `[count, W]`."""
        content = self._memory.device_bytes(count * record.itemsize)
        return content.view(torch.int64).view(count, record.itemsize // 8)


def _label(table: Table) -> str:
    return f"table {table.kind}/{table.label} of model {table.description.model}"


def _size(table: Table, *, with_base: bool) -> int:
    """Return how many bytes of a table are to be copied."""
    rows = len(table.changed_records) + (len(table.base.records) + 1 if with_base else 0)
    return rows * table.base.records.dtype.itemsize


def _upload(records: Records, target: Tensor, staging: Tensor) -> None:
    """Copy records `[n]` to the device, int64 `[n, W]`, through memory that it can read fast."""
    size = records.dtype.itemsize
    content = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), size)
    to = target.view(torch.uint8).view(len(records), size)
    at_once = len(staging) // size
    for start in range(0, len(records), at_once):
        rows = content[start : start + at_once]  # [k, size]
        part = staging[: rows.size].view(len(rows), size)
        np.copyto(part.numpy(), rows)
        to[start : start + len(rows)].copy_(part)  # waits until it is there


def _padding_record(table: Table) -> npt.NDArray[np.void]:
    record = np.zeros(1, table.base.records.dtype)
    for column in table.description.columns:
        record[column.feature.name] = padding(column.feature)
    return record
