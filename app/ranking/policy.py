"""A policy: a named way to fuse a candidate's task scores into its rank score."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Formula = Literal["weighted_sum", "power_product"]
LARGEST_WEIGHT = 1e6
"""Bounds weights on both sides, so that no sum of weighted scores leaves float64."""
Weight = Annotated[float, Field(ge=-LARGEST_WEIGHT, le=LARGEST_WEIGHT, allow_inf_nan=False)]


class Policy(BaseModel):
    """Weights per task and the formula that applies them; a task without a weight does not count.

    `weighted_sum` is Σ wₖ·sₖ. `power_product` is Π max(sₖ, ε)^wₖ (PLE, RecSys'20, eq. 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("default", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    formula: Formula = "weighted_sum"
    weights: Mapping[str, Weight] = Field(min_length=1)

    def reweighted(self, overrides: Mapping[str, float]) -> "Policy":
        """Return this policy with some weights replaced."""
        return self.model_copy(update={"weights": {**self.weights, **overrides}})
