"""Calibration: a monotone map that turns a task's score into an accurate probability or value.

A model trained on sampled negatives, or on old data, can order candidates well and still be wrong
about how likely a click is. A formula that adds or multiplies tasks needs accurate probabilities.

Every method keeps the order of a task's scores; parameters that would reverse it are refused.
Calibrated scores are finite: before a logit, a probability is clipped to
[`MIN_PROBABILITY`, 1 - `MIN_PROBABILITY`].

- `platt`: Platt's sigmoid (1999) over the score's logit, for probabilities.
- `isotonic`: straight lines through the knots of a pool-adjacent-violators fit (Zadrozny and Elkan,
  2002).
- `scale`: a factor, for scores with a unit.

`app.tuning.calibrate` finds the parameters. In TOML or JSON, a calibration is one of:

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

MIN_PROBABILITY = 1e-9
MAX_KNOTS = 1000

_Strict = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # refuses true and "1"
Number = Annotated[_Strict, Field(ge=-1e6, le=1e6)]
Positive = Annotated[_Strict, Field(ge=1e-6, le=1e6)]
Score = Annotated[_Strict, Field(ge=-3.4e38, le=3.4e38)]


class _Method(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NoCalibration(_Method):
    """Leaves the score unchanged."""

    method: Literal["none"] = "none"

    def __call__(self, scores: Scores) -> Calibrated:
        """Calibrate the scores `[n]` of one task; returns `[n]` float64."""
        return scores.astype(np.float64)


class Platt(_Method):
    """σ(slope · logit(p) + intercept), for probabilities."""

    method: Literal["platt"]
    slope: Positive
    intercept: Number

    def __call__(self, scores: Scores) -> Calibrated:
        """Calibrate the scores `[n]` of one task; returns `[n]` float64."""
        p = np.clip(scores.astype(np.float64), MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        logit = self.slope * (np.log(p) - np.log1p(-p)) + self.intercept
        decay = np.exp(-np.abs(logit))  # at most 1, so it cannot overflow
        calibrated: Calibrated = np.where(logit >= 0, 1.0, decay) / (1.0 + decay)
        return calibrated


class Isotonic(_Method):
    """Straight lines through knots; constant before the first knot and after the last."""

    method: Literal["isotonic"]
    scores: tuple[Score, ...] = Field(min_length=1, max_length=MAX_KNOTS)
    calibrated: tuple[Score, ...] = Field(min_length=1, max_length=MAX_KNOTS)

    @model_validator(mode="after")
    def _check_knots(self) -> Self:
        if len(self.scores) != len(self.calibrated):
            raise ValueError(
                f"{len(self.scores)} scores but {len(self.calibrated)} calibrated values"
            )
        if not np.all(np.diff(self.scores) > 0):
            raise ValueError("scores must be strictly ascending")
        if not np.all(np.diff(self.calibrated) >= 0):
            raise ValueError("calibrated must be ascending")
        return self

    def __call__(self, scores: Scores) -> Calibrated:
        """Calibrate the scores `[n]` of one task; returns `[n]` float64."""
        return np.interp(scores, self.scores, self.calibrated)


class Scale(_Method):
    """factor · score."""

    method: Literal["scale"]
    factor: Positive

    def __call__(self, scores: Scores) -> Calibrated:
        """Calibrate the scores `[n]` of one task; returns `[n]` float64."""
        return scores * np.float64(self.factor)


Calibration = Annotated[NoCalibration | Platt | Isotonic | Scale, Field(discriminator="method")]

NO_CALIBRATION = NoCalibration()
