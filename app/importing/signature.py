"""What the graph of a module from elsewhere says about its arguments.

An argument that indexes an embedding holds ids, and the rows of that table are its vocabulary; one
that a linear layer multiplies has the layer's width. The values of an argument are followed through
operators that keep them (`to`, `unsqueeze`, `view`, …) and through columns that are taken out of a
matrix.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from app.errors import ArtifactInvalid

_KEEP = frozenset(
    f"aten::{name}"
    for name in (
        *("to", "long", "int", "float", "double", "type_as", "contiguous", "clone", "detach"),
        *("squeeze", "unsqueeze", "view", "reshape", "flatten", "expand", "expand_as", "repeat"),
        *("clamp", "clip", "clamp_min", "clamp_max", "masked_fill", "nan_to_num", "alias"),
    )
)
_COMPARE = frozenset(f"aten::{name}" for name in ("ne", "eq", "gt", "ge", "lt", "le"))
_INTEGER_TYPES = (3, 4)  # torch.int32 and torch.int64 in a graph
_MOST_STEPS = 12


@dataclass(frozen=True, slots=True)
class Table:
    """An embedding table that an argument indexes: its rows, and the row of padding if stated."""

    rows: int
    padding: int | None = None

    def with_(self, other: "Table | None") -> "Table":
        """Both tables as one: ids must fit the smaller."""
        if other is None:
            return self
        padding = self.padding if self.padding is not None else other.padding
        return Table(min(self.rows, other.rows), padding)


@dataclass(slots=True)
class Slot:
    """One tensor that a module takes: a positional argument, or an entry of its dict.

    Attributes:
        name: of the argument, or the key.
        table: the table that the whole tensor indexes.
        columns: the tables that ranges of its columns index, by first and last column, exclusive.
        whole: ranges of its columns that are cast to integers: ids, or lengths.
        width: the columns that a layer multiplies or normalises.
        compared: numbers that the values are compared with: usually the row of padding.
        is_used: whether anything reads it.
    """

    name: str
    table: Table | None = None
    columns: dict[tuple[int, int], Table] = field(default_factory=dict)
    whole: set[tuple[int, int]] = field(default_factory=set)
    width: int | None = None
    compared: list[float] = field(default_factory=list)
    is_used: bool = False

    @property
    def lengths(self) -> list[int]:
        """Columns that seem to be lengths: whole numbers that index no table, if it has lists."""
        has_list = any(last - first > 1 for first, last in self.columns)
        single = (first for first, last in self.whole - self.columns.keys() if last - first == 1)
        return sorted(single) if has_list else []


@dataclass(frozen=True, slots=True)
class Signature:
    """How a module is called.

    Attributes:
        is_dict: whether it takes one dict of tensors.
        slots: its tensors.
        positions: the rows of tables that no argument indexes: of positions in a list, perhaps.
        optional: the names of arguments with a default, which are left out.
    """

    is_dict: bool
    slots: tuple[Slot, ...]
    positions: tuple[int, ...]
    optional: tuple[str, ...] = ()


def read_signature(module: torch.jit.ScriptModule) -> Signature:
    """Read the arguments of `forward`, and what the graph says about each.

    Args:
        module: in `eval` mode.

    Raises:
        ArtifactInvalid: an argument is neither a tensor nor a dict of tensors.
    """
    schema = module.forward.schema  # type: ignore[attr-defined]
    frozen = torch.jit.freeze(module) if hasattr(module, "training") else module
    graph = frozen.inlined_graph
    arguments = list(zip(schema.arguments[1:], list(graph.inputs())[1:], strict=True))
    required = [
        (argument, value) for argument, value in arguments if not argument.has_default_value()
    ]
    kinds = [str(argument.type) for argument, _ in required]
    if kinds == ["Dict[str, Tensor]"]:
        reads = _keys(required[0][1])
        by_name = {name: Slot(name) for name, _ in reads}
        for name, value in reads:
            _follow(value, by_name[name])
        slots, is_dict = tuple(by_name.values()), True
    else:
        for (argument, _), kind in zip(required, kinds, strict=True):
            if kind != "Tensor":
                raise ArtifactInvalid(
                    f'its argument "{argument.name}" is {kind}; arguments must be tensors, or one '
                    "dict of tensors: wrap the module in one that takes tensors"
                )
        slots, is_dict = tuple(Slot(argument.name) for argument, _ in required), False
        for slot, (_, value) in zip(slots, required, strict=True):
            _follow(value, slot)
    if not slots:
        raise ArtifactInvalid("its forward() takes no tensors")
    optional = tuple(argument.name for argument, _ in arguments if argument.has_default_value())
    return Signature(is_dict, slots, _positions(graph, slots), optional)


def _keys(dictionary: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
    """The constant keys that are read from a dict argument, with the value of each read."""
    reads = []
    for use in dictionary.uses():
        if use.user.kind() == "aten::__getitem__":
            key, value = list(use.user.inputs())[1].toIValue(), use.user.output()
            if isinstance(key, str):
                reads.append((key, value))
    return reads


def _follow(value: Any, slot: Slot) -> None:  # noqa: ANN401
    """Record what is done with a value, and with values that hold the same numbers."""
    todo: list[tuple[Any, tuple[int, int] | None, int]] = [(value, None, 0)]
    while todo:
        current, columns, steps = todo.pop()
        for use in current.uses():
            slot.is_used = True
            node = use.user
            _record(node, use.offset, columns, slot)
            if steps < _MOST_STEPS:
                todo += [(out, kept, steps + 1) for out, kept in _kept(node, use.offset, columns)]


def _record(node: Any, offset: int, columns: tuple[int, int] | None, slot: Slot) -> None:  # noqa: ANN401
    kind, inputs = node.kind(), list(node.inputs())
    casts = kind in ("aten::long", "aten::int") or (
        kind == "aten::to" and inputs[1].toIValue() in _INTEGER_TYPES
    )
    if casts and columns is not None:
        slot.whole.add(columns)
    table = (
        _table(node) if (offset, kind) in ((1, "aten::embedding"), (0, "aten::one_hot")) else None
    )
    if table is not None and columns is None:
        slot.table = table.with_(slot.table)
    elif table is not None and columns is not None:
        slot.columns[columns] = table.with_(slot.columns.get(columns))
    elif kind in _COMPARE and offset == 0:
        bound = inputs[1].toIValue()
        slot.compared += [bound] if isinstance(bound, int | float) else []
    elif offset == 0 and columns is None:
        weight = None
        if kind in ("aten::linear", "aten::batch_norm"):
            weight = inputs[1].toIValue()
            weight = weight if isinstance(weight, torch.Tensor) else inputs[-1].toIValue()
        if isinstance(weight, torch.Tensor):
            slot.width = weight.shape[-1]


def _table(node: Any) -> Table | None:  # noqa: ANN401
    """The table of an embedding or of a one-hot encoding; None if its size is not a constant."""
    inputs = [argument.toIValue() for argument in node.inputs()]
    if node.kind() == "aten::one_hot":
        return Table(inputs[1]) if isinstance(inputs[1], int) and inputs[1] > 0 else None
    if not isinstance(inputs[0], torch.Tensor):
        return None
    has_padding = isinstance(inputs[2], int) and inputs[2] >= 0
    return Table(inputs[0].shape[0], inputs[2] if has_padding else None)


def _kept(
    node: Any,  # noqa: ANN401
    offset: int,
    columns: tuple[int, int] | None,
) -> Iterator[tuple[Any, tuple[int, int] | None]]:
    """The outputs of an operator that hold the numbers of its input, and which columns of it."""
    kind = node.kind()
    if offset != 0:
        return
    if kind in _KEEP:
        yield node.output(), columns
    elif kind in ("aten::select", "aten::slice"):
        _, dim, *bounds = [argument.toIValue() for argument in node.inputs()]
        if dim == 0 and kind == "aten::slice":
            yield node.output(), columns
        elif dim in (1, -1) and columns is None:
            yield node.output(), _columns(kind, bounds)


def _columns(kind: str, bounds: list[Any]) -> tuple[int, int] | None:
    first = bounds[0] or 0
    if kind == "aten::select":
        return (first, first + 1) if first >= 0 else None
    last = sys.maxsize if bounds[1] is None else bounds[1]
    return None if first < 0 or last < 0 or (first == 0 and last >= 2**31) else (first, last)


def _positions(graph: Any, slots: Iterable[Slot]) -> tuple[int, ...]:  # noqa: ANN401
    known = [table for slot in slots for table in (slot.table, *slot.columns.values())]
    tables = [_table(node) for node in graph.findAllNodes("aten::embedding")]
    used = {table.rows for table in known if table is not None}
    return tuple(sorted({table.rows for table in tables if table is not None} - used))
