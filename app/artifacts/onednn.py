"""Run the matrix products of a frozen module with oneDNN where it is faster than MKL.

PyTorch for x86 contains both libraries, and multiplies float32 matrices with MKL. On processors of
AMD, MKL leaves half of the vector units unused: 500 rows times a matrix of 256 × 128 take 290 µs,
and 140 µs with oneDNN (AMD EPYC, AVX-512). Other processors may differ. A small product is slower
with oneDNN, because each call has a fixed cost of some 10 µs.

So a process measures once how large a product must be (`least_work`), and the graph of a module
gets both: each product decides by its size when it runs. The results differ by the rounding of
float32 sums.

oneDNN compiles a kernel for each number of rows, which takes 0.4 ms for each layer. So that no
request waits for that, batches are padded to a few sizes (`padded_rows`), and a version runs each
of them before it serves. Networks in bf16 need the same: PyTorch always runs those with oneDNN.
"""
# ruff: noqa: ANN401, SLF001  (PyTorch has the graph's types in `torch._C`, untyped)

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from app.artifacts import onednn_products as products
from app.artifacts.effects import UNDECLARED_VIEWS
from app.artifacts.onednn_products import FEWEST_ROWS

_SMALL_SIZES = (0, 1, 2, 4, 8, 12, 16)
_CACHED_KERNELS = 4096
"""Kernels that a process keeps, of all models: a network has some 200, of 0.1 MB each, which its
versions share. oneDNN's own default is 1,024."""

_WORTH = 1.3  # a gain below this is lost again by padding, and by products in parts
_WIDTH = 128  # inputs and outputs of the products that are measured: those of a hidden layer
_ROWS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
_TURNS = 7


class _Product(NamedTuple):
    """What replaces an operator, how many of its arguments that takes, and which is the weight."""

    function: Callable[..., Tensor]
    arguments: int
    weight: int


_PRODUCTS: Mapping[str, _Product] = {
    "aten::linear": _Product(products.linear, 3, 1),
    "aten::addmm": _Product(products.addmm, 3, 2),
    "aten::mm": _Product(products.mm, 2, 1),
    "aten::matmul": _Product(products.matmul, 2, 1),
    "aten::bmm": _Product(products.bmm, 2, 1),
    "aten::baddbmm": _Product(products.baddbmm, 3, 2),
    "aten::baddbmm_": _Product(products.baddbmm, 3, 2),
}
_VIEWS = frozenset(f"aten::{name}" for name in ("slice", "select", "t", "transpose", "contiguous"))


def padded_rows(rows: int) -> int:
    """Return the size that a batch is padded to: less than an eighth more, above 32 rows."""
    if rows <= FEWEST_ROWS:
        return next(size for size in _SMALL_SIZES if size >= rows)
    step = max(4, (1 << (rows - 1).bit_length()) >> 4)  # an eighth of the power of two below
    return -(-rows // step) * step


def padded_sizes(least: int, most: int) -> list[int]:
    """Return every size that batches of `least` to `most` rows are padded to, ascending."""
    sizes = [padded_rows(least)] if least <= most else []
    while sizes and sizes[-1] < most:
        sizes.append(padded_rows(sizes[-1] + 1))
    return sizes


def rewrite(graph: Any, work: int) -> tuple[int, int]:
    """Let the products of a frozen graph run with oneDNN where they are large.

    The graph must not have run yet: its executor would keep what it compiled. Products of two
    activations, which have no parameters, are left alone.

    Args:
        graph: a `torch.Graph`, changed in place.
        work: the least number of multiplications; see `least_work`.

    Returns:
        From how many rows on a product is large, and from how many on all are; 0 and 0 if there is
        no product.
    """
    sizes: list[int] = []
    for node in list(_nodes(graph)):
        product = _PRODUCTS.get(node.kind())
        if product is None or not _is_replaceable(node, product):
            continue
        size = _parameters(node.inputsAt(product.weight))
        if not size:
            continue
        sizes.append(size)
        graph.setInsertPoint(node)
        values = [*list(node.inputs())[: product.arguments], graph.insertConstant(work)]
        (result,) = graph.insertGraph(_graph_of(product.function), values)
        node.output().replaceAllUsesWith(result)
        node.destroy()
    graph.lint()
    if not sizes:
        return 0, 0
    first, last = (max(FEWEST_ROWS, -(-work // size)) for size in (max(sizes), min(sizes)))
    return first, last


def _is_replaceable(node: Any, product: _Product) -> bool:
    """Whether the function has the same result and the same effects."""
    inputs = list(node.inputs())
    more = inputs[product.arguments :]
    if node.kind() in ("aten::addmm", "aten::baddbmm", "aten::baddbmm_"):
        if any(scalar.toIValue() != 1 for scalar in more):  # `beta` and `alpha`
            return False
    elif more:  # an overload with an output or a dtype
        return False
    # `baddbmm_` writes to its first argument. Nobody sees that if it is a new tensor, used once.
    return node.kind() != "aten::baddbmm_" or (len(inputs[0].uses()) == 1 and _is_new(inputs[0]))


def _parameters(value: Any) -> int:
    """Return inputs × outputs of a weight, if it is a parameter or a part of one; else 0."""
    shape = _shape(value)
    return shape[-2] * shape[-1] if len(shape) >= 2 else 0


def _shape(value: Any) -> list[int]:
    """Return the shape of a parameter or of a part of it, the largest if it varies; else nothing.

    The number of stacked matrices may be too large: it does not count.
    """
    constant = value.toIValue()
    if isinstance(constant, Tensor):
        return list(constant.shape)
    node = value.node()
    if node.kind() == "prim::If":
        branches = [list(block.outputs()) for block in node.blocks()]
        return max((_shape(outputs[value.offset()]) for outputs in branches), key=prod)
    if node.kind() not in _VIEWS:
        return []
    shape = _shape(node.inputsAt(0))
    numbers = [argument.toIValue() for argument in list(node.inputs())[1:]]
    match node.kind(), numbers:
        case "aten::t", _:
            return shape[::-1]
        case "aten::transpose", [int(a), int(b)] if shape:
            shape[a], shape[b] = shape[b], shape[a]
        case "aten::select", [int(dim), *_] if shape:
            del shape[dim]
        case "aten::slice", [int(dim), int(start), int() | None as stop, int(step)] if shape:
            shape[dim] = len(range(shape[dim])[start:stop:step])
    return shape


def _is_new(value: Any) -> bool:
    """Whether a value is a tensor that an operator has just made, by the operator's schema."""
    schema = value.node().schema()
    if schema in ("", "(no schema)") or value.node().kind() in UNDECLARED_VIEWS:
        return False
    (returned,) = torch._C.parse_schema(schema).returns[:1] or (None,)
    return returned is not None and returned.alias_info is None


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


@cache
def _graph_of(function: Callable[..., Tensor]) -> Any:
    return torch.jit.script(function).inlined_graph


@cache
def least_work() -> int | None:
    """Return from how many multiplications on oneDNN is faster than MKL; None if it never is.

    A product has rows × inputs × outputs of them. Measured once per process, on the calling thread,
    in some 10 ms of one core.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # PyTorch was built without oneDNN
        return None
    _keep_kernels()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return _least_work()
    finally:
        torch.set_num_threads(threads)


def _keep_kernels() -> None:
    """Let oneDNN keep enough kernels; it reads the variable when it compiles the first one."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_CACHED_KERNELS))


@cache
def gain_of(dtype: torch.dtype) -> float:
    """Return the speed of a large product in a reduced precision, as a multiple of float32's.

    Below 1, the processor has no instructions for it: bf16 needs `avx512_bf16` or `amx_bf16`.
    Measured once per process, on the calling thread.
    """
    _keep_kernels()
    rows, weight = torch.zeros(_ROWS[-1], _WIDTH), torch.zeros(_WIDTH, _WIDTH)
    with torch.inference_mode():
        full_s, reduced_s = _shortest_s(
            partial(functional.linear, rows, weight),
            partial(functional.linear, rows.to(dtype), weight.to(dtype)),
        )
    return full_s / reduced_s


def _least_work() -> int | None:
    weight, bias = torch.zeros(_WIDTH, _WIDTH), torch.zeros(_WIDTH)
    for rows in _ROWS:
        x = torch.zeros(rows, _WIDTH)
        mkl_s, onednn_s = _shortest_s(
            partial(functional.linear, x, weight, bias),
            partial(torch.ops.mkldnn._linear_pointwise, x, weight, bias, "none", [], ""),
        )
        if mkl_s > _WORTH * onednn_s:
            return rows * _WIDTH * _WIDTH
    return None


def _shortest_s(*works: Callable[[], Tensor]) -> list[float]:
    """Return the shortest time (s) of each piece of work; they run in turns."""
    shortest = [float("inf")] * len(works)
    for turn in range(_TURNS + 1):  # the first turn compiles
        for at, work in enumerate(works):
            began = time.perf_counter()
            work()
            if turn:
                shortest[at] = min(shortest[at], time.perf_counter() - began)
    return shortest
