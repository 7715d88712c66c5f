"""Load TorchScript without copying its large tensors: they stay where the file was read to.

`torch.jit.load` holds the interpreter's lock until it has copied every tensor, 0.6 s per GB, and
meanwhile no request is served. So the file is split. `split` makes a small archive, in which each
large tensor keeps its shape but has a storage of only four numbers: every stride is 0.
`torch.jit.load` loads this archive. `attach` then gives each large tensor its memory, a view of the
bytes that were verified.

A TorchScript file is a ZIP archive. `data.pkl` and `constants.pkl` are pickles of the module and of
its constant tensors; the records `data/KEY` and `constants/KEY` are storages, not compressed. The
pickles are only parsed here, never run. A tensor that is not written as `torch.jit.save` writes it
stays in the archive.
"""

import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

LARGE = 2**16
"""Bytes; smaller tensors are loaded as they are."""

_DTYPES: Mapping[str, torch.dtype] = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
}
# They follow a tensor's number, so that no other tensor is mistaken for a placeholder.
_MARKS = (7, 1, 5)
_HELD = 1 + len(_MARKS)
_INTEGERS = frozenset(("BININT", "BININT1", "BININT2", "LONG1"))
_STRINGS = frozenset(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"))
_PUTS = frozenset(("BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("BINGET", "LONG_BINGET"))

# What a pickle may name. Other names may read tensors while they are loaded.
_HARMLESS = frozenset(
    (
        *("torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch BoolStorage"),
        *("torch ByteStorage", "torch.jit._pickle restore_type_tag"),
        *(f"torch.jit._pickle build_{kind}list" for kind in ("tensor", "int", "bool", "double")),
        *_DTYPES,
    )
)


class NotSplittable(ValueError):
    """A file cannot be split; it can still be loaded as a whole."""


@dataclass(frozen=True, slots=True)
class LargeTensor:
    """A tensor that was left out of the small archive.

    Attributes:
        record: the name of its storage.
        number: the number in its placeholder, unique among tensors of its type.
        offset: of the storage's first byte in the file.
        size: of the storage, bytes.
        storage_offset: of the tensor in its storage, elements.
    """

    record: str
    number: int
    dtype: torch.dtype
    offset: int
    size: int
    storage_offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class Split:
    """A file in two parts: a small archive, and the large tensors that are not in it."""

    archive: bytes
    tensors: list[LargeTensor] = field(default_factory=list)


def split(content: memoryview) -> Split:
    """Split a TorchScript file into a small archive and its large tensors.

    Raises:
        NotSplittable: it has no large tensor that can be left out, or an unknown form.
    """
    if content.readonly:
        raise NotSplittable("tensors cannot share memory that is not writable")
    try:
        with zipfile.ZipFile(_Reader(content)) as archive:
            return _split(content, archive)
    except Exception as error:  # not an archive, or not a pickle: torch.jit.load says what is wrong
        raise NotSplittable(str(error)) from error


def attach(module: torch.jit.ScriptModule, content: memoryview, parts: Split) -> None:
    """Give every placeholder in `module` its memory in `content`, on the placeholder's device.

    Raises:
        NotSplittable: some placeholder was not found, or something else refers to it. The module
            must not be used then.
    """
    missing = {(large.dtype, large.number): large for large in parts.tensors}
    storages: list[StorageWeakRef] = []
    for tensor in _tensors(module):
        number = _number(tensor)
        large = missing.get((tensor.dtype, number)) if number else None
        if large is None or tuple(tensor.shape) != large.shape:
            continue
        del missing[tensor.dtype, number]
        storages.append(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
        memory = torch.frombuffer(content, dtype=torch.uint8, count=large.size, offset=large.offset)
        storage = memory.to(tensor.device).untyped_storage()
        with torch.no_grad():
            tensor.set_(storage, large.storage_offset, large.shape, large.strides)
    if missing or not all(storage.expired() for storage in storages):  # type: ignore[no-untyped-call]
        raise NotSplittable("a large tensor is neither a parameter, a buffer nor a constant")


def _tensors(module: torch.jit.ScriptModule) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    graph: Any = module.inlined_graph  # its nodes are valid as long as it is
    for node in graph.findAllNodes("prim::Constant"):
        if node.hasAttribute("value") and node.kindOf("value") == "t":
            yield node.t("value")


def _number(tensor: Tensor) -> int:
    """Return the number in a placeholder, or 0 if the tensor is not a placeholder."""
    if tensor.layout != torch.strided or any(tensor.stride()) or not tensor.numel():
        return 0
    if tensor.untyped_storage().nbytes() != _HELD * tensor.element_size():
        return 0
    number, *marks = tensor.detach().as_strided((_HELD,), (1,), 0).tolist()
    return int(number) if tuple(marks) == _MARKS else 0


def _split(content: memoryview, archive: zipfile.ZipFile) -> Split:
    records = {record.filename: record for record in archive.infolist()}
    root = next(iter(records)).partition("/")[0]
    for name in records:
        is_code = name.startswith(f"{root}/code/") and name.endswith(".py")
        # Such a method would run on placeholders while the module is loaded.
        if is_code and b"__setstate__" in archive.read(name):
            raise NotSplittable("the module has a __setstate__ method")
    parts = Split(b"")
    pickles: dict[str, bytes] = {}
    taken: dict[torch.dtype, int] = {}
    for folder in ("data", "constants"):
        name = f"{root}/{folder}.pkl"
        pickled = archive.read(name)
        edits: list[tuple[int, int, bytes]] = []
        for storage in _storages(pickled):
            record = records.get(f"{root}/{folder}/{storage.key}")
            number = taken.get(storage.dtype, 0) + 1
            if record is None or not _is_plain(record, storage) or number > _largest(storage.dtype):
                continue
            offset = _data_offset(content, record)
            if offset % 16 or offset + record.file_size > len(content):
                continue
            taken[storage.dtype] = number
            edits += storage.edits
            parts.tensors.append(
                LargeTensor(
                    record.filename,
                    number,
                    storage.dtype,
                    offset,
                    record.file_size,
                    storage.storage_offset,
                    storage.shape,
                    storage.strides,
                )
            )
        pickles[name] = _edited(pickled, edits)
    if not parts.tensors:
        raise NotSplittable("there is no large tensor")
    parts.archive = _small_archive(archive, pickles, parts.tensors)
    return parts


def _largest(dtype: torch.dtype) -> int:
    """Return how many tensors of a type can have placeholders.

    TorchScript merges constants that are equal. Every element of a placeholder is its number, which
    the type must hold exactly.
    """
    return 100 if dtype.itemsize < 4 else 2**20


def _is_plain(record: zipfile.ZipInfo, storage: "_Storage") -> bool:
    return (
        record.compress_type == zipfile.ZIP_STORED
        and record.file_size == storage.count * storage.dtype.itemsize >= LARGE
    )


def _data_offset(content: memoryview, record: zipfile.ZipInfo) -> int:
    """Return where a record's data begins: after its local header (APPNOTE 4.3.7)."""
    header = content[record.header_offset : record.header_offset + 30]
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return record.header_offset + 30 + name + extra


def _small_archive(
    archive: zipfile.ZipFile, pickles: Mapping[str, bytes], tensors: Sequence[LargeTensor]
) -> bytes:
    numbers = {tensor.record: tensor for tensor in tensors}
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as small:
        for name in archive.namelist():
            if name in numbers:
                large = numbers[name]
                held = torch.tensor([large.number, *_MARKS], dtype=large.dtype)
                small.writestr(name, held.view(torch.uint8).numpy().tobytes())
            else:
                small.writestr(name, pickles[name] if name in pickles else archive.read(name))
    return written.getvalue()


@dataclass(frozen=True, slots=True)
class _Storage:
    """A storage in a pickle that exactly one tensor refers to.

    Attributes:
        count: its elements.
        edits: `(start, stop, replacement)` in the pickle, which make the tensor a placeholder.
    """

    key: str
    dtype: torch.dtype
    count: int
    storage_offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    edits: list[tuple[int, int, bytes]]


@dataclass(frozen=True, slots=True)
class _Operation:
    name: str
    argument: Any
    start: int
    stop: int


def _storages(pickled: bytes) -> list[_Storage]:
    """Find the storages in a pickle.

    Raises:
        NotSplittable: the pickle names a function that may read tensors.
    """
    operations = _operations(pickled)
    memo = _memo(operations)
    for operation in operations:
        if operation.name == "GLOBAL" and operation.argument not in _HARMLESS:
            module = str(operation.argument)
            if not module.startswith("__torch__") or module.startswith("__torch__.torch.classes"):
                raise NotSplittable(f"it names {module}")
    used = {operation.argument for operation in operations if operation.name in _GETS}
    storages = [
        _storage(operations, i, memo, used)
        for i, operation in enumerate(operations)
        if operation.name == "BINPERSID"
    ]
    return [storage for storage in storages if storage is not None]


def _operations(pickled: bytes) -> list[_Operation]:
    parsed = [(code.name, argument, at) for code, argument, at in pickletools.genops(pickled)]
    starts = [int(at or 0) for *_, at in parsed]
    stops = [*starts[1:], len(pickled)]
    return [
        _Operation(name, argument, start, stop)
        for (name, argument, _), start, stop in zip(parsed, starts, stops, strict=True)
    ]


def _memo(operations: Sequence[_Operation]) -> dict[int, Any]:
    """Return what each place of the memo holds: a string or a name."""
    return {
        put.argument: value.argument
        for value, put in pairwise(operations)
        if put.name in _PUTS and (value.name in _STRINGS or value.name == "GLOBAL")
    }


def _storage(
    operations: Sequence[_Operation], at: int, memo: Mapping[int, Any], used: set[Any]
) -> _Storage | None:
    """Read `(storage, type, key, device, count)`, then offset, shape and strides of its tensor."""
    before = [
        operation for operation in operations[max(0, at - 16) : at] if operation.name not in _PUTS
    ]
    if len(before) < 6 or before[-1].name != "TUPLE" or before[-2].name not in _INTEGERS:
        return None
    type_, key, _, count = before[-5:-1]
    dtype = _DTYPES.get(_value(type_, memo))
    after = at + 1
    if operations[after].name in _PUTS:
        if operations[after].argument in used:  # another tensor shares it
            return None
        after += 1
    offset, shape, strides = _layout(operations, after)
    if dtype is None or offset is None or len(shape) != len(strides) or not shape:
        return None
    zero, held = b"K\x00", bytes((ord("K"), _HELD))  # BININT1
    return _Storage(
        key=str(_value(key, memo)),
        dtype=dtype,
        count=count.argument,
        storage_offset=offset.argument,
        shape=tuple(number.argument for number in shape),
        strides=tuple(number.argument for number in strides),
        edits=[
            (count.start, count.stop, held),
            *((number.start, number.stop, zero) for number in (offset, *strides)),
        ],
    )


def _layout(
    operations: Sequence[_Operation], at: int
) -> tuple[_Operation | None, list[_Operation], list[_Operation]]:
    """Read an integer and two tuples of integers."""
    offset = operations[at]
    tuples: list[list[_Operation]] = []
    at += 1
    for _ in range(2):
        integers = []
        if operations[at].name != "MARK":
            return None, [], []
        at += 1
        while operations[at].name in _INTEGERS:
            integers.append(operations[at])
            at += 1
        if operations[at].name != "TUPLE":
            return None, [], []
        at += 1
        tuples.append(integers)
    return (offset if offset.name in _INTEGERS else None), tuples[0], tuples[1]


def _value(operation: _Operation, memo: Mapping[int, Any]) -> Any:  # noqa: ANN401
    return memo.get(operation.argument) if operation.name in _GETS else operation.argument


def _edited(content: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    pieces: list[bytes] = []
    done = 0
    for start, stop, replacement in sorted(edits):
        pieces += [content[done:start], replacement]
        done = stop
    return b"".join([*pieces, content[done:]])


class _Reader(io.RawIOBase):
    """A file over memory that is not copied, as `zipfile` needs one."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._content)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        """Copy the next bytes into `buffer`."""
        view = memoryview(buffer).cast("B")
        part = self._content[self._at : self._at + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)
