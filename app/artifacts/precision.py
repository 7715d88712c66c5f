"""In which precision an artifact computes, and how near that came to full precision."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from app.artifacts.inputs import Name, Value

Device = Literal["cpu", "cuda"]
PrecisionName = Literal["fp32", "bf16", "fp16", "int8-embeddings"]
"""What weights and activations are held in. Of `int8-embeddings`, the embedding tables are int8,
a scale a row, and everything else is fp32. Softmax and logits are fp32 in each."""
Tolerance = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Change = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FULL: Mapping[Device, float] = {"cpu": 1e-5, "cuda": 1e-4}
"""How far fp32 may be from fp32 on another machine, or in another batch."""


class Parity(Value):
    """How far reduced precision is from fp32 on held-out rows.

    A change of `g` to `y` is `|y - g| / (1 + |g|)`, as where golden examples are checked.

    Attributes:
        rows: held-out rows that were compared.
        raw_change: the largest change of a raw output, per task.
        score_change: the largest change of a score, per task.
        auc_change: how far the AUC of a binary task moved, or the XAUC of a duration.
        top_50_overlap: of the 50 best candidates in fp32, the share that stays among the 50 best.
        kendall_tau: the rank correlation of the rank scores, Kendall's τ-b.
    """

    rows: int = Field(ge=1)
    raw_change: Mapping[Name, Change]
    score_change: Mapping[Name, Change]
    auc_change: Mapping[Name, Change]
    top_50_overlap: float = Field(ge=0, le=1)
    kendall_tau: float = Field(ge=-1, le=1)


class Precision(Value):
    """In which precision the module computes, and how near its answers must come to the golden.

    An output `y` matches its golden `g` where `|y - g| <= tolerance * (1 + |g|)`. A precision
    other than fp32 states its parity.
    """

    name: PrecisionName = "fp32"
    tolerance: dict[Device, Tolerance] = Field(default=dict(FULL))
    parity: Parity | None = None

    @model_validator(mode="after")
    def _reduced_precision_has_parity(self) -> Self:
        if (self.name == "fp32") != (self.parity is None):
            raise ValueError("parity is stated where precision is reduced, and only there")
        return self

    @classmethod
    def reduced(cls, name: PrecisionName, parity: Parity) -> Self:
        """Return a precision whose tolerance is twice what parity cost, and never under fp32's."""
        worst = max([*parity.raw_change.values(), *parity.score_change.values()])
        tolerance = {device: max(full, 2 * worst) for device, full in FULL.items()}
        return cls(name=name, tolerance=tolerance, parity=parity)
