"""Networks in reduced precision, made of trained ones.

bf16 and fp16 halve weights and activations; softmax and logits stay in fp32, which the layers see
to themselves. ``int8-embeddings`` makes the embedding tables a quarter as large, and leaves
everything else in fp32: the tables are most of a ranking network's memory, and its gathers.
"""

import copy

import torch
from torch import Tensor, nn

from app.artifacts.manifest import PrecisionName
from models.networks.features import InputColumns


def reduced(network: nn.Module, precision: PrecisionName) -> nn.Module:
    """A copy of ``network`` in evaluation mode, without gradients, in ``precision``."""
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    if precision == "bf16":
        return copied.to(torch.bfloat16)
    if precision == "fp16":
        return copied.to(torch.float16)
    if precision == "int8-embeddings":
        for module in copied.modules():
            if isinstance(module, InputColumns):
                tables, scales = zip(*map(quantised, module.tables), strict=True)
                module.tables = nn.ParameterList(
                    nn.Parameter(each, requires_grad=False) for each in (*tables, *scales)
                )
    return copied


def quantised(table: Tensor) -> tuple[Tensor, Tensor]:
    """An embedding table ``[rows, width]`` as int8 ``[rows, width]`` and scales ``[rows, 1]``.

    A row is its int8 numbers, from -127 to 127, times its float32 scale: row-wise quantisation
    without an offset, for embeddings are centred.
    """
    largest = table.detach().float().abs().amax(1, keepdim=True)  # [rows, 1]
    scale = torch.where(largest > 0, largest / 127, 1)  # [rows, 1]
    return (table.detach().float() / scale).round().to(torch.int8), scale
