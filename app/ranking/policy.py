"""A policy: a named way to fuse a candidate's task scores into its rank score.

    formula = "power_product"
    weights = { click = 1.0, like = 0.5 }
    bounds = { like = [0.0, 3.0] }       # what a request may set; without bounds, any weight

This module checks a policy's fields. `app.ranking.formulas` computes with them.
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
"""Bounds weights on both sides, so that no weighted sum of scores overflows float64."""
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # refuses true and "1"
Weight = Annotated[_Number, Field(ge=-LARGEST_WEIGHT, le=LARGEST_WEIGHT)]
Exponent = Annotated[_Number, Field(ge=0, le=100)]
Offset = Annotated[_Number, Field(ge=0, le=LARGEST_WEIGHT)]
Interval = tuple[Weight, Weight]

ANY_WEIGHT = (-LARGEST_WEIGHT, LARGEST_WEIGHT)

_OMITTED_WHEN_NONE = ("bounds", "multiplier", "alpha", "beta", "expression", "models", "shadow")


class Policy(BaseModel):
    """A formula and its weights. A task without a weight is ignored.

    Let sₖ be the calibrated score of task k, wₖ its weight, and rₖ the candidate's position when
    the request's candidates are sorted by sₖ, from 1; equal scores share a position.

    - `weighted_sum` is Σ wₖ·sₖ.
    - `power_product` is Π max(sₖ, ε)^wₖ (PLE, RecSys'20, eq. 1). If `multiplier` names a candidate
      feature m, the product is multiplied by max(m, ε).
    - `rank_position` is Σ wₖ / (rₖ^αₖ + βₖ). It depends on the order of scores only, so badly
      calibrated scores do not change it. αₖ is 1 and βₖ is 0 unless `alpha` and `beta` set them.
    - `expression` is arithmetic over tasks and weights (`app.ranking.expression`).

    Attributes:
        bounds: the lowest and highest weight that a request may set, by name. A request may not
            set a weight that is not named here. None lets a request set every weight.
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
    def _check_expression(cls, text: str | None) -> str | None:
        if text is not None:
            parse(text)
        return text

    @model_validator(mode="after")
    def _check_fields_of_formula(self) -> Self:
        for field, formula in (
            ("multiplier", "power_product"),
            ("alpha", "rank_position"),
            ("beta", "rank_position"),
            ("expression", "expression"),
        ):
            if getattr(self, field) is not None and self.formula != formula:
                raise ValueError(f"{field} is for formula {formula}, not {self.formula}")
        if self.formula == "expression":
            if self.expression is None:
                raise ValueError('formula expression needs the key "expression"')
            read = set(self.compiled_expression.weights)
            if missing := sorted(read - set(self.weights)):
                raise ValueError(f"weights: w.{missing[0]} of the expression has no weight")
            if unused := sorted(set(self.weights) - read):
                raise ValueError(f"weights: the expression does not read w.{unused[0]}")
        elif not self.weights:
            raise ValueError("weights: at least one is needed")
        for field in ("alpha", "beta"):
            if unknown := sorted(set(getattr(self, field) or ()) - set(self.weights)):
                raise ValueError(f'{field}: "{unknown[0]}" has no weight')
        return self

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        for name, (low, high) in (self.bounds or {}).items():
            if self.formula == "expression" and name not in self.weights:
                raise ValueError(f"bounds: the expression does not read w.{name}")
            if not low <= high:
                raise ValueError(f"bounds.{name}: must be [low, high]")
            weight = self.weights.get(name, 0.0)  # a missing weight counts as 0
            if not low <= weight <= high:
                raise ValueError(
                    f"weights.{name}: {weight:g} is outside its bounds, {low:g} to {high:g}"
                )
        return self

    @cached_property
    def compiled_expression(self) -> Expression:
        """The compiled expression; only for the formula `expression`."""
        assert self.expression is not None
        return parse(self.expression)

    @property
    def tasks(self) -> frozenset[str]:
        """The tasks that the policy reads, or can read once a request sets a weight."""
        if self.formula == "expression":
            return frozenset(self.compiled_expression.tasks)
        return frozenset(self.weights) | frozenset(self.bounds or ())

    def adjustable(self, tasks: tuple[str, ...]) -> dict[str, Interval]:
        """Return the weights that a request may set, each with its bounds."""
        if self.bounds is not None:
            return dict(self.bounds)
        return dict.fromkeys(self.weights if self.formula == "expression" else tasks, ANY_WEIGHT)

    def reweighted(self, overrides: Mapping[str, float]) -> "Policy":
        """Return a copy with some weights replaced. The caller checks bounds."""
        return self.model_copy(update={"weights": {**self.weights, **overrides}})

    @model_serializer(mode="wrap")
    def _omit_unset_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if v is not None or k not in _OMITTED_WHEN_NONE}
