"""Calibration: a monotone map that makes a task's score mean what it says.

A model that was trained on sampled negatives, or on yesterday, orders well and still misjudges how
likely a click is; a formula that adds or multiplies tasks needs probabilities that are ones. Every
method here keeps the order of a task's scores: parameters that would turn it are refused. Scores
stay finite: a probability of 0 or 1 is taken for one within `SMALLEST_DOUBT` of it.

`platt` is Platt's sigmoid (1999) over the score's logit; `isotonic` is what pool-adjacent-violators
gives (Zadrozny and Elkan, 2002), drawn through its knots by straight lines; `scale` is a factor,
for scores with a unit. How the parameters are found is not known here.

As TOML or JSON, one of:

    {method = "none"}
    {method = "platt", slope = 1.1, intercept = -0.2}
    {method = "isotonic", scores = [0.0, 0.1, 0.9], calibrated = [0.0, 0.05, 0.8]}
    {method = "scale", factor = 0.7}
"""

from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Scores = npt.NDArray[np.floating]
Calibrated = npt.NDArray[np.float64]

SMALLEST_DOUBT = 1e-9
MOST_KNOTS = 1000

_Strict = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # no true, no "1"
Number = Annotated[_Strict, Field(ge=-1e6, le=1e6)]
Positive = Annotated[_Strict, Field(ge=1e-6, le=1e6)]
Score = Annotated[_Strict, Field(ge=-3.4e38, le=3.4e38)]


class _Method(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Uncalibrated(_Method):
    """The score as the model gave it."""

    method: Literal["none"] = "none"

    def __call__(self, scores: Scores) -> Calibrated:
        """Return `[n]` float64 for the scores `[n]` of one task."""
        return scores.astype(np.float64)


class Platt(_Method):
    """σ(slope · logit(p) + intercept), for probabilities."""

    method: Literal["platt"]
    slope: Positive
    intercept: Number

    def __call__(self, scores: Scores) -> Calibrated:
        """Return `[n]` float64 for the scores `[n]` of one task."""
        p = np.clip(scores.astype(np.float64), SMALLEST_DOUBT, 1 - SMALLEST_DOUBT)
        logit = self.slope * (np.log(p) - np.log1p(-p)) + self.intercept
        sure = np.exp(-np.abs(logit))  # at most 1: it cannot overflow
        calibrated: Calibrated = np.where(logit >= 0, 1.0, sure) / (1.0 + sure)
        return calibrated


class Isotonic(_Method):
    """Straight lines through knots; beyond the first and the last it is level."""

    method: Literal["isotonic"]
    scores: tuple[Score, ...] = Field(min_length=1, max_length=MOST_KNOTS)
    calibrated: tuple[Score, ...] = Field(min_length=1, max_length=MOST_KNOTS)

    @model_validator(mode="after")
    def _is_monotone(self) -> Self:
        if len(self.scores) != len(self.calibrated):
            raise ValueError(
                f"{len(self.scores)} scores and {len(self.calibrated)} calibrated values"
            )
        if not np.all(np.diff(self.scores) > 0):
            raise ValueError("scores must rise from knot to knot")
        if not np.all(np.diff(self.calibrated) >= 0):
            raise ValueError("calibrated must not fall from knot to knot")
        return self

    def __call__(self, scores: Scores) -> Calibrated:
        """Return `[n]` float64 for the scores `[n]` of one task."""
        return np.interp(scores, self.scores, self.calibrated)


class Scale(_Method):
    """factor · score."""

    method: Literal["scale"]
    factor: Positive

    def __call__(self, scores: Scores) -> Calibrated:
        """Return `[n]` float64 for the scores `[n]` of one task."""
        return scores * np.float64(self.factor)


Calibration = Annotated[Uncalibrated | Platt | Isotonic | Scale, Field(discriminator="method")]

UNCALIBRATED = Uncalibrated()
