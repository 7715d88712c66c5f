"""Find tensors that a module from elsewhere can be called with, by calling it.

Each argument has a list of forms, the likeliest first: an id, a list of ids, numbers, a length, a
mask, in some dtype and rank. Combinations are tried in the order of their likelihood. Widths are
found on the way: PyTorch's error messages name the numbers that do not fit. A combination counts if
every output has one row per row, and if no row depends on the others.
"""

import heapq
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from app.artifacts.program import DTYPES, unoptimised
from app.errors import ArtifactInvalid
from app.importing.signature import Signature, Slot

Kind = Literal["id", "list", "dense", "length", "mask", "padding", "matrix"]
LISTS = re.compile(r"hist|seq|list|recent|behavi|click(s|ed)|session|past|last|items$|ids$", re.I)
MASKS = re.compile(r"mask|valid|present", re.I)
PADDINGS = re.compile(r"pad", re.I)
LENGTHS = re.compile(r"len|count|num_", re.I)

_ROWS, _LENGTH, _WIDTH = 5, 7, 3
_SHORT = (1, 2, 4)
_MOST_CALLS = 4000
_MOST_REPAIRS = 60
_LONGEST_LIST = 1024
_WIDEST = 4096
_PRODUCT = re.compile(r"shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)")
_NUMBER = re.compile(r"\d+")
_NO_ROWS = "its outputs do not have one row for each row"
_MIXES = "the outputs of a row change with the other rows"


@dataclass(frozen=True, slots=True)
class Form:
    """What an argument may hold, and how."""

    kind: Kind
    dtype: str
    rank: Literal[1, 2] = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """The length of every id list, and the width of each slot that holds numbers."""

    length: int
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """Forms and sizes with which a module runs.

    Attributes:
        forms: of each slot.
        sizes: `length` is the largest that works, at most `USUAL_LENGTH` if any does.
        any_length: whether longer lists would work, too.
    """

    forms: tuple[Form, ...]
    sizes: Sizes
    any_length: bool = False


USUAL_LENGTH = 50


class Caller:
    """Calls a module with generated tensors."""

    def __init__(self, module: torch.jit.ScriptModule, signature: Signature) -> None:
        """Prepare calls of `module`, which is in `eval` mode."""
        self.signature = signature
        self.calls = 0
        self._module = module

    def outputs(
        self,
        forms: Sequence[Form],
        sizes: Sizes,
        *,
        rows: int = _ROWS,
        filled: bool = False,
        one_row: int | None = None,
    ) -> object:
        """Return what the module returns.

        Args:
            forms: of each slot.
            sizes: of lists and widths.
            rows: of the batch.
            filled: put ids where lists are padded; lengths and masks stay.
            one_row: call it with this row of the batch only.

        Raises:
            RuntimeError: the module raised.
        """
        self.calls += 1
        random = torch.Generator().manual_seed(rows)
        lengths = torch.randint(1, sizes.length + 1, (rows, 1), generator=random)
        real = torch.arange(sizes.length) < lengths  # [rows, L]
        arguments = [
            _tensor(slot, form, width, real, random, filled=filled)
            for slot, form, width in zip(self.signature.slots, forms, sizes.widths, strict=True)
        ]
        if one_row is not None:
            arguments = [argument[one_row : one_row + 1] for argument in arguments]
        try:
            with torch.inference_mode(), unoptimised():
                if self.signature.is_dict:
                    names = [slot.name for slot in self.signature.slots]
                    return self._module(dict(zip(names, arguments, strict=True)))
                return self._module(*arguments)
        except (torch.jit.Error, ValueError, IndexError) as error:
            raise RuntimeError(str(error)) from error

    def runs(self, forms: Sequence[Form], sizes: Sizes) -> bool:
        """Return whether a call succeeds, with one row per row in every output."""
        try:
            return _has_rows(self.outputs(forms, sizes), _ROWS)
        except RuntimeError:
            return False


def find(caller: Caller, float_type: str) -> Fit:
    """Find forms and sizes with which the module runs.

    Args:
        caller: of the module.
        float_type: the dtype of its weights.

    Raises:
        ArtifactInvalid: none were found; the message has the error of the likeliest call.
    """
    slots = caller.signature.slots
    may_list = any(slot.table is not None for slot in slots)
    choices = [_forms(slot, float_type, may_list=may_list) for slot in slots]
    reason, mixes = "", False
    for forms in _likeliest_first(choices):
        if not _have_lists(forms):
            continue
        fit, error = _fitted(caller, forms)
        if fit is not None:
            return _longest(caller, _with_polarity(caller, fit))
        reason, mixes = reason or error, mixes or error == _MIXES
        if caller.calls > _MOST_CALLS:
            break
    if mixes:
        raise ArtifactInvalid(
            f"it runs for {_ROWS} rows, but the outputs of a row change with the other rows of the "
            "batch (a softmax, a mean or a norm over dim 0?); a row must have the same outputs in "
            "every batch"
        )
    raise ArtifactInvalid(
        "no tensors were found with which it runs for 5 rows (is the batch size of a trace part of "
        "its graph?); describe it by hand (gatehouse import --help); "
        f"the first call failed: {reason}"
    )


def _forms(slot: Slot, float_type: str, *, may_list: bool) -> list[Form]:
    """The forms that an argument may have, the likeliest first."""
    floats = [float_type, "float64" if float_type == "float32" else "float32"]
    if slot.columns:
        return [Form("matrix", dtype) for dtype in (*floats, "int64")]
    if slot.table is not None:
        single = [Form("id", "int64", 1), Form("id", "int64", 2)]
        several = [Form("list", "int64")]
        is_list = LISTS.search(slot.name) is not None or bool(slot.compared)
        forms = [*several, *single] if is_list else [*single, *several]
        return [*forms, *(replace(form, dtype="int32") for form in forms)]
    dense = [Form("dense", dtype, rank) for dtype in floats for rank in (2, 1)]
    if not may_list:
        return dense
    kind: Kind = "padding" if PADDINGS.search(slot.name) else "mask"
    masks = [Form(kind, dtype) for dtype in ("bool", floats[0], "int64", "int32", floats[1])]
    lengths = [
        Form("length", dtype, rank) for dtype in ("int64", floats[0], "int32") for rank in (1, 2)
    ]
    if MASKS.search(slot.name) or PADDINGS.search(slot.name):
        return [*masks, *lengths, *dense]
    if LENGTHS.search(slot.name):
        return [*lengths, *dense, *masks]
    return [*dense, *masks, *lengths]


def _likeliest_first(choices: Sequence[Sequence[Form]]) -> Iterator[tuple[Form, ...]]:
    """Yield combinations by the sum of their positions in the lists."""
    start = (0,) * len(choices)
    queue, seen = [(0, start)], {start}
    while queue:
        cost, positions = heapq.heappop(queue)
        yield tuple(forms[position] for forms, position in zip(choices, positions, strict=True))
        for i, position in enumerate(positions):
            further = (*positions[:i], position + 1, *positions[i + 1 :])
            if position + 1 < len(choices[i]) and further not in seen:
                seen.add(further)
                heapq.heappush(queue, (cost + 1, further))


def _have_lists(forms: Sequence[Form]) -> bool:
    """Whether there is a list for lengths and masks, which are derived from one."""
    kinds = {form.kind for form in forms}
    return "list" in kinds or kinds.isdisjoint(("length", "mask", "padding"))


def _fitted(caller: Caller, forms: tuple[Form, ...]) -> tuple[Fit | None, str]:
    """Look for sizes with which the forms run; return them, or the first error."""
    slots = caller.signature.slots
    widths = tuple(_first_width(slot, form) for slot, form in zip(slots, forms, strict=True))
    queue, seen = [Sizes(_LENGTH, widths)], {Sizes(_LENGTH, widths)}
    reason = ""
    for sizes in itertools.islice(_growing(queue), _MOST_REPAIRS):
        try:
            fault = _fault(caller, forms, sizes)
            if not fault:
                return Fit(forms, sizes), ""
            reason = fault if fault == _MIXES else reason or fault
        except RuntimeError as error:
            reason = reason or str(error).strip().splitlines()[-1]
            for further in _repairs(str(error), forms, sizes, caller.signature):
                if further not in seen:
                    seen.add(further)
                    queue.append(further)
    return None, reason


def _growing(queue: list[Sizes]) -> Iterator[Sizes]:
    """Yield a list's elements, with those that are added meanwhile."""
    position = 0
    while position < len(queue):
        yield queue[position]
        position += 1


def _first_width(slot: Slot, form: Form) -> int:
    if form.kind == "matrix":
        bounded = [last for _, last in (*slot.columns, *slot.whole) if last < _WIDEST]
        return max([*bounded, 1])
    if form.kind == "dense" and form.rank == 2:
        return slot.width or _WIDTH
    return 1


def _repairs(
    message: str, forms: Sequence[Form], sizes: Sizes, signature: Signature
) -> Iterator[Sizes]:
    """Yield other sizes that an error message suggests."""
    free = [
        i
        for i, (form, slot) in enumerate(zip(forms, signature.slots, strict=True))
        if form.rank == 2 and (form.kind == "matrix" or (form.kind == "dense" and not slot.width))
    ]
    if product := _PRODUCT.search(message):
        missing = int(product[2]) - int(product[1])
        for i in free:
            width = sizes.widths[i] + missing
            if 1 <= width <= _WIDEST:
                yield replace(sizes, widths=_replaced(sizes.widths, i, width))
    last_line = message.strip().splitlines()[-1]
    numbers = {int(digits) for digits in _NUMBER.findall(last_line) if len(digits) < 5}
    lengths = numbers
    if "out of range" in last_line:  # lists may be longer than a table of positions
        lengths = numbers | {*signature.positions, *_SHORT}
    has_list = any(form.kind == "list" for form in forms)
    for length in sorted(lengths - {0}, reverse=True):
        if has_list and length <= _LONGEST_LIST:
            yield replace(sizes, length=length)
    for number in sorted(numbers - {0}):
        for i in free:
            yield replace(sizes, widths=_replaced(sizes.widths, i, number))


def _replaced(widths: tuple[int, ...], position: int, width: int) -> tuple[int, ...]:
    return (*widths[:position], width, *widths[position + 1 :])


def _fault(caller: Caller, forms: Sequence[Form], sizes: Sizes) -> str:
    """Say if an output lacks one row per row, or if a row depends on the others; "" if neither.

    Raises:
        RuntimeError: the module raised.
    """
    together = caller.outputs(forms, sizes)
    if not _has_rows(together, _ROWS):
        return _NO_ROWS
    alone = caller.outputs(forms, sizes, one_row=1)
    if not _has_rows(alone, 1):
        return _NO_ROWS
    is_same = all(
        torch.allclose(whole[1:2], part, rtol=1e-3, atol=1e-5, equal_nan=True)
        for whole, part in zip(tensors(together), tensors(alone), strict=True)
    )
    return "" if is_same else _MIXES


def _has_rows(returned: object, rows: int) -> bool:
    outputs = tensors(returned)
    return bool(outputs) and all(output.ndim >= 1 and len(output) == rows for output in outputs)


def tensors(returned: object) -> list[Tensor]:
    """Return the tensors in what a module returned."""
    if isinstance(returned, Tensor):
        return [returned]
    if isinstance(returned, dict):
        return [tensor for value in returned.values() for tensor in tensors(value)]
    if isinstance(returned, tuple | list):
        return [tensor for value in returned for tensor in tensors(value)]
    return []


def _with_polarity(caller: Caller, fit: Fit) -> Fit:
    """Turn each mask so that ids outside it do not matter."""
    for i, form in enumerate(fit.forms):
        if form.kind not in ("mask", "padding"):
            continue
        other: Kind = "padding" if form.kind == "mask" else "mask"
        turned = (*fit.forms[:i], replace(form, kind=other), *fit.forms[i + 1 :])
        if not _ignores_padding(caller, fit.forms, fit.sizes) and _ignores_padding(
            caller, turned, fit.sizes
        ):
            fit = replace(fit, forms=turned)
    return fit


def _ignores_padding(caller: Caller, forms: Sequence[Form], sizes: Sizes) -> bool:
    try:
        plain = tensors(caller.outputs(forms, sizes))
        filled = tensors(caller.outputs(forms, sizes, filled=True))
    except RuntimeError:
        return False
    return all(
        torch.allclose(output, other, rtol=1e-4, atol=1e-6)
        for output, other in zip(plain, filled, strict=True)
        if output.is_floating_point()
    )


def _longest(caller: Caller, fit: Fit) -> Fit:
    """Find the longest lists that a module takes, up to the usual length."""
    if not any(form.kind == "list" for form in fit.forms):
        return fit

    def takes(length: int) -> bool:
        return caller.runs(fit.forms, replace(fit.sizes, length=length))

    low, high = fit.sizes.length, max(USUAL_LENGTH, fit.sizes.length)
    if takes(high):
        return replace(fit, sizes=replace(fit.sizes, length=high), any_length=takes(2 * high))
    while low < high:  # the longest that works, by bisection
        middle = (low + high + 1) // 2
        low, high = (middle, high) if takes(middle) else (low, middle - 1)
    return replace(fit, sizes=replace(fit.sizes, length=low))


def padding_of(slot: Slot) -> int:
    """The row that pads a list: the table's, else a number that ids are compared with, else 0."""
    assert slot.table is not None
    if slot.table.padding is not None:
        return slot.table.padding
    rows = (int(row) for row in slot.compared if 0 <= row < slot.table.rows)
    return next(rows, 0)


def _tensor(
    slot: Slot, form: Form, width: int, real: Tensor, random: torch.Generator, *, filled: bool
) -> Tensor:
    """One argument: `[rows]` or `[rows, width]`; `real` says where lists have ids, `[rows, L]`."""
    rows, dtype = len(real), DTYPES[form.dtype]
    match form.kind:
        case "id":
            assert slot.table is not None
            ids = torch.randint(0, slot.table.rows, (rows, 1), generator=random)
        case "list":
            assert slot.table is not None
            ids = torch.randint(0, slot.table.rows, real.shape, generator=random)
            if not filled:
                ids = torch.where(real, ids, padding_of(slot))
        case "length":
            ids = real.sum(1, keepdim=True)
        case "mask":
            ids = real
        case "padding":
            ids = ~real
        case "dense" | "matrix":
            ids = torch.randn((rows, width), generator=random)
            _fill_columns(ids, slot, random)
    typed = ids.to(dtype)
    return typed.flatten() if form.rank == 1 else typed


def _fill_columns(matrix: Tensor, slot: Slot, random: torch.Generator) -> None:
    """Put ids, lists and their lengths into the columns of `[rows, width]` that hold them."""
    share = torch.rand((len(matrix), 1), generator=random)  # of each list that has ids
    for (first, last), table in slot.columns.items():
        column = matrix[:, first:last]
        width = column.shape[1]
        ids = torch.randint(0, table.rows, column.shape, generator=random)
        real = torch.arange(width) < (1 + share * width).floor()
        column[:] = torch.where(real, ids, table.padding or 0) if width > 1 else ids
        if width > 1:
            for position in slot.lengths:
                matrix[:, position] = real.sum(1)
