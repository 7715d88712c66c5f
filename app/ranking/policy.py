"""A policy: a named way to fuse a candidate's task scores into its rank score.

    formula = "power_product"
    weights = { click = 1.0, like = 0.5 }
    bounds = { like = [0.0, 3.0] }       # what a request may set; without bounds, any weight

A policy is a value: what it says is checked here, how it computes is `app.ranking.formulas`.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from app.ranking.expression import Expression, parse

Formula = Literal["weighted_sum", "power_product", "rank_position", "expression"]
LARGEST_WEIGHT = 1e6
"""Bounds weights on both sides, so that no sum of weighted scores leaves float64."""
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # no true, no "1"
Weight = Annotated[_Number, Field(ge=-LARGEST_WEIGHT, le=LARGEST_WEIGHT)]
Exponent = Annotated[_Number, Field(ge=0, le=100)]
Offset = Annotated[_Number, Field(ge=0, le=LARGEST_WEIGHT)]
Interval = tuple[Weight, Weight]

ANY_WEIGHT = (-LARGEST_WEIGHT, LARGEST_WEIGHT)

_OPTIONAL = ("bounds", "multiplier", "alpha", "beta", "expression", "models", "shadow")


class Policy(BaseModel):
    """Weights, and the formula that applies them; a task without a weight does not count.

    With sₖ the calibrated score of task k, wₖ its weight, and rₖ the candidate's place among the
    request's candidates by sₖ, from 1, equal scores sharing a place:

    - `weighted_sum` is Σ wₖ·sₖ.
    - `power_product` is Π max(sₖ, ε)^wₖ (PLE, RecSys'20, eq. 1), times max(m, ε) where
      `multiplier` names a candidate's feature m.
    - `rank_position` is Σ wₖ / (rₖ^αₖ + βₖ): robust to scores that are off. αₖ is 1 and βₖ is 0
      unless `alpha` and `beta` say more.
    - `expression` is any arithmetic (`app.ranking.expression`); its `w.name` are the weights.

    Attributes:
        bounds: lowest and highest weight that a request may set, by name; a name that is missing
            may not be set at all. None lets a request set every weight.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("default", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    formula: Formula = "weighted_sum"
    weights: Mapping[str, Weight] = Field(default={})
    bounds: Mapping[str, Interval] | None = None
    multiplier: str | None = Field(None, min_length=1, max_length=64)
    alpha: Mapping[str, Exponent] | None = None
    beta: Mapping[str, Offset] | None = None
    expression: str | None = None

    @field_validator("expression")
    @classmethod
    def _expression_compiles(cls, text: str | None) -> str | None:
        if text is not None:
            parse(text)
        return text

    @model_validator(mode="after")
    def _formula_has_what_it_needs(self) -> Self:
        for field, formula in (
            ("multiplier", "power_product"),
            ("alpha", "rank_position"),
            ("beta", "rank_position"),
            ("expression", "expression"),
        ):
            if getattr(self, field) is not None and self.formula != formula:
                raise ValueError(f"{field} belongs to {formula}, not to {self.formula}")
        if self.formula == "expression":
            if self.expression is None:
                raise ValueError("formula expression needs an expression")
            read = set(self.compiled.weights)
            if missing := sorted(read - set(self.weights)):
                raise ValueError(f"the expression reads w.{missing[0]}, which has no weight")
            if unused := sorted(set(self.weights) - read):
                raise ValueError(f"the expression does not read w.{unused[0]}")
        elif not self.weights:
            raise ValueError("weights: there must be at least one")
        for field in ("alpha", "beta"):
            if strangers := sorted(set(getattr(self, field) or ()) - set(self.weights)):
                raise ValueError(f"{field}: {strangers[0]!r} has no weight")
        return self

    @model_validator(mode="after")
    def _weights_lie_within_bounds(self) -> Self:
        for name, (low, high) in (self.bounds or {}).items():
            if self.formula == "expression" and name not in self.weights:
                raise ValueError(f"bounds: the expression does not read w.{name}")
            if not low <= high:
                raise ValueError(f"bounds.{name}: must be [low, high]")
            if not low <= self.weights.get(name, 0.0) <= high:  # without a weight it is 0
                raise ValueError(f"weights.{name}: lies outside its bounds, {low:g} to {high:g}")
        return self

    @cached_property
    def compiled(self) -> Expression:
        """The expression, where the formula is one."""
        assert self.expression is not None
        return parse(self.expression)

    @property
    def tasks(self) -> frozenset[str]:
        """The tasks that the policy reads or may read."""
        if self.formula == "expression":
            return frozenset(self.compiled.tasks)
        return frozenset(self.weights) | frozenset(self.bounds or ())

    def adjustable(self, tasks: tuple[str, ...]) -> dict[str, Interval]:
        """Return the weights that a request may set, each with its bounds."""
        if self.bounds is not None:
            return dict(self.bounds)
        return dict.fromkeys(self.weights if self.formula == "expression" else tasks, ANY_WEIGHT)

    def reweighted(self, overrides: Mapping[str, float]) -> "Policy":
        """Return this policy with some weights replaced; bounds are the caller's to keep."""
        return self.model_copy(update={"weights": {**self.weights, **overrides}})

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        return {k: v for k, v in written.items() if v is not None or k not in _OPTIONAL}
