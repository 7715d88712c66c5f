"""Matrix products that choose between oneDNN and MKL by their size, as TorchScript functions.

They replace operators in the graph of a module (`app.artifacts.onednn`). The last argument of each,
`work`, is the number of multiplications from which on a product is large. What a function does not
support, it leaves to the operator that it replaces.
"""
# ruff: noqa: SLF001  (PyTorch offers the operator to its own compiler only)

import torch
from torch import Tensor

FEWEST_ROWS = 16
"""A product of fewer rows is always left to MKL: it reads the weights, and computes little."""


def is_large(rows: int, parameters: int, work: int) -> bool:
    """Whether a product of `rows` times inputs × outputs `parameters` runs with oneDNN.

    A number of rows that is no padded size, as lists may have, is left to MKL: each one would get
    kernels of its own. The numbers are those of `app.artifacts.onednn.padded_rows`.
    """
    if rows < 16 or rows * parameters < work:
        return False
    step = 32
    if rows <= 64:
        step = 4
    elif rows <= 128:
        step = 8
    elif rows <= 256:
        step = 16
    return rows % step == 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, work: int) -> Tensor:
    """`x Wᵀ + b`; lists of rows `[B, L, in]` are left to MKL."""
    is_matrix = x.dim() == 2 and weight.dim() == 2
    is_float = x.dtype == torch.float32 and weight.dtype == torch.float32
    if is_matrix and is_float and is_large(x.size(0), weight.numel(), work):
        return product(x, weight, bias)
    return torch.nn.functional.linear(x, weight, bias)


def addmm(bias: Tensor, x: Tensor, weight: Tensor, work: int) -> Tensor:
    """`b + x W` with one bias for all rows."""
    is_for_all_rows = bias.dim() == 1 and bias.size(0) == weight.size(1)
    is_float = x.dtype == torch.float32
    if is_for_all_rows and is_float and is_large(x.size(0), weight.numel(), work):
        return product(x, weight.t(), bias)
    return torch.addmm(bias, x, weight)


def mm(x: Tensor, weight: Tensor, work: int) -> Tensor:
    """`x W`."""
    if is_large(x.size(0), weight.numel(), work) and x.dtype == torch.float32:
        return product(x, weight.t(), None)
    return torch.mm(x, weight)


def matmul(x: Tensor, weight: Tensor, work: int) -> Tensor:
    """`x W` of two matrices."""
    is_matrix = x.dim() == 2 and weight.dim() == 2
    is_float = x.dtype == torch.float32
    if is_matrix and is_float and is_large(x.size(0), weight.numel(), work):
        return product(x, weight.t(), None)
    return torch.matmul(x, weight)


def bmm(x: Tensor, weight: Tensor, work: int) -> Tensor:
    """`x_e W_e` of stacked matrices, `[E, B, in]` and `[E, in, out]`, one after the other."""
    count, parameters = x.size(0), weight.size(1) * weight.size(2)
    if not is_large(x.size(1), parameters, work) or x.dtype != torch.float32 or count == 0:
        return torch.bmm(x, weight)
    parts = [product(x[e], weight[e].t(), None) for e in range(count)]
    return torch.stack(parts) if count > 1 else parts[0].unsqueeze(0)


def baddbmm(bias: Tensor, x: Tensor, weight: Tensor, work: int) -> Tensor:
    """`b_e + x_e W_e` of stacked matrices; the bias is `[E, 1, out]`, or has a row for each row."""
    count, parameters = x.size(0), weight.size(1) * weight.size(2)
    if not is_large(x.size(1), parameters, work) or x.dtype != torch.float32 or count == 0:
        return torch.baddbmm(bias, x, weight)
    if bias.dim() != 3 or bias.size(0) != count:
        return torch.baddbmm(bias, x, weight)
    if bias.size(1) == 1 and bias.size(2) == weight.size(2):
        parts = [product(x[e], weight[e].t(), bias[e].reshape(-1)) for e in range(count)]
    else:
        parts = [product(x[e], weight[e].t(), None).add_(bias[e]) for e in range(count)]
    return torch.stack(parts) if count > 1 else parts[0].unsqueeze(0)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x Wᵀ + b` with oneDNN, in float32.

    `relu` stays an operator of its own: the one that oneDNN can append turns NaN into 0.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
