"""Scale dense features inside the network, so that callers send raw values.

A column ``x`` becomes ``(f(clip(fill(x))) - mean) / deviation``: a missing value (NaN) is replaced
by the median, the value is clipped to the range of the training set, and ``f`` is the identity or
``sign(x)·log1p(|x|)`` for a column with a heavy tail. The constants are fitted on training rows
(:meth:`DenseScaling.fit`), are part of the state dict, and stay in float32 in a network in reduced
precision, since raw values such as 123,456 do not fit bf16.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.networks.config import DenseFeature, Scaling

HEAVY_TAIL = 10.0
"""A column whose largest value is this many standard deviations is scaled by its logarithm: normal
and uniform columns stay below 5, amounts of money and counts are usually above."""

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ColumnScale:
    """The constants of one column; the default changes nothing.

    `fills` says whether NaN becomes `fill`, `had_missing` whether a training row was NaN.
    """

    fill: float = 0.0
    fills: bool = False
    had_missing: bool = False
    low: float = float("-inf")
    high: float = float("inf")
    is_log: bool = False
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def fit(cls, values: Column, feature: DenseFeature) -> "ColumnScale":
        """Fit the constants of one column on training rows ``[n]``, NaN where missing."""
        known = values[np.isfinite(values)]
        if len(known) == 0:
            return cls(fills=feature.fills_missing)
        low, high = feature.clip or (float("-inf"), float("inf"))
        if feature.scaling != "none" and feature.clip is None:
            low, high = float(known.min()), float(known.max())
        fill, fills = float(np.median(known)), feature.fills_missing
        had_missing = len(known) < len(values)
        if feature.scaling == "none":
            return cls(fill, fills, had_missing, low, high)
        clipped = np.clip(known, low, high)
        is_log = takes_log(clipped, feature.scaling)
        scaled = signed_log(clipped) if is_log else clipped
        deviation = float(scaled.std())
        mean, deviation = float(scaled.mean()), deviation if deviation > 0 else 1.0
        return cls(fill, fills, had_missing, low, high, is_log, mean, deviation)


def takes_log(values: Column, scaling: Scaling) -> bool:
    """Whether a column is scaled by its logarithm: as configured, or if its tail is heavy."""
    if scaling != "auto":
        return scaling == "log"
    deviation = float(values.std())
    return bool(np.abs(values - values.mean()).max() > HEAVY_TAIL * deviation > 0)


def signed_log(values: Column) -> Column:
    """``sign(x)·log1p(|x|)``."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


class DenseScaling(nn.Module):
    """Scale the dense columns of one side ``[., D]``; indicators of missing values come last."""

    fill: Tensor
    fills: Tensor
    had_missing: Tensor
    low: Tensor
    high: Tensor
    is_log: Tensor
    mean: Tensor
    deviation: Tensor
    indicated: Tensor

    def __init__(self, features: Sequence[DenseFeature]) -> None:
        super().__init__()
        self.features = [(feature.name, feature.dim) for feature in features]
        self._configured = {feature.name: feature for feature in features}
        dim = sum(feature.dim for feature in features)
        indicated = [f.missing_indicator for f in features for _ in range(f.dim)]
        self.has_indicators = any(indicated)
        self.width = dim + sum(indicated)
        for name, constant in asdict(ColumnScale()).items():
            self.register_buffer(name, torch.full((dim,), constant))  # [D]
        indicated_columns = torch.tensor(indicated).nonzero().flatten()
        self.register_buffer("indicated", indicated_columns, persistent=False)  # [indicators]

    def forward(self, x: Tensor) -> Tensor:
        """Scaled values of raw ``x`` ``[., D]``: ``[., D + indicators]``."""
        missing = x.isnan()
        filled = torch.where(missing & self.fills, self.fill, x)
        clipped = torch.minimum(torch.maximum(filled, self.low), self.high)
        logarithm = clipped.sign() * clipped.abs().log1p()
        scaled = (torch.where(self.is_log, logarithm, clipped) - self.mean) / self.deviation
        if not self.has_indicators:
            return scaled
        return torch.cat([scaled, missing.index_select(1, self.indicated).to(scaled.dtype)], 1)

    def fit(self, sample: Mapping[str, Tensor]) -> None:
        """Fit the constants on raw training rows, ``[n, dim]`` by feature name."""
        columns: list[ColumnScale] = []
        for name, dim in self.features:
            values = sample[name].double().numpy() if name in sample else np.empty((0, dim))
            columns += [ColumnScale.fit(column, self._configured[name]) for column in values.T]
        for name in asdict(ColumnScale()):
            getattr(self, name).copy_(torch.tensor([getattr(column, name) for column in columns]))

    def defaults(self) -> dict[str, tuple[float, ...]]:
        """The fill values of every feature that is filled and was missing in training rows."""
        dims = [dim for _, dim in self.features]
        parts = zip(
            self.features,
            torch.split(self.fill, dims),
            torch.split(self.fills & self.had_missing, dims),
            strict=True,
        )
        return {name: tuple(fill.tolist()) for (name, _), fill, missing in parts if missing.any()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the buffers, but never below float32."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self.named_buffers():
            if value.is_floating_point() and value.element_size() < before[name].element_size():
                setattr(self, name, before[name].to(value.device))
        return self
