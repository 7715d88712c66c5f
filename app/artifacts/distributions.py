"""Distributions of features and scores, in a few bins: those of the training data, to be compared.

The comparison is the population stability index, PSI = Σ (a - e) · ln(a / e) over the bins, with
the expected shares e and the actual ones a (Siddiqi, Credit Risk Scorecards, 2006). 0 is no change;
as a rule of thumb, 0.1 is a moderate change and 0.25 a large one.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from app.artifacts.value import Value

QUANTILE_BINS = 10
TOP_IDS = 19
MOST_BINS = 20
_LEAST_SHARE = 1e-4  # of a bin that was empty: the logarithm of 0 is infinite

Counts = npt.NDArray[np.int64]
Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(max_length=MOST_BINS)]
Edge = Annotated[float, Field(allow_inf_nan=False)]


class _Bins(Value):
    shares: Shares
    """Of the values in each bin; their sum is 1."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> Self:
        if abs(sum(self.shares) - 1) > 1e-3:
            raise ValueError(f"shares must add up to 1, not {sum(self.shares):g}")
        return self

    def stability_index(self, counts: Counts) -> float:
        """Return the population stability index of the counts of recent values, one per bin."""
        expected = np.maximum(np.array(self.shares), _LEAST_SHARE)
        actual = np.maximum(counts / max(1, counts.sum()), _LEAST_SHARE)
        expected, actual = expected / expected.sum(), actual / actual.sum()
        return float(np.sum((actual - expected) * np.log(actual / expected)))


class NumberBins(_Bins):
    """Bins of numbers: bin i has those above edge i - 1, up to edge i; the last has all above."""

    kind: Literal["number"] = "number"
    edges: tuple[Edge, ...]

    @model_validator(mode="after")
    def _edges_ascend(self) -> Self:
        if len(self.shares) != len(self.edges) + 1:
            raise ValueError("there must be one share more than edges")
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must ascend")
        return self

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> Self | None:
        """Return bins of about equally many values, NaN left out; None if there are no others."""
        values = values[np.isfinite(values)].astype(np.float32)
        if not len(values):
            return None
        inner = np.linspace(0, 1, QUANTILE_BINS + 1)[1:-1]
        edges = np.unique(np.quantile(values, inner).astype(np.float32))  # repeated values
        counts = _number_counts(edges, values)
        # A float32 in decimal digits, so that JSON has few.
        return cls(edges=tuple(float(str(edge)) for edge in edges), shares=_shares(counts))

    def counts(self, column: npt.NDArray[np.generic]) -> Counts:
        """Return how many of the values are in each bin."""
        return _number_counts(np.array(self.edges, np.float32), column.reshape(-1))


class IdBins(_Bins):
    """Bins of ids: one for each of the most frequent rows of an embedding table, one for the rest.

    Padding is not counted.
    """

    kind: Literal["id"] = "id"
    rows: tuple[int, ...]
    padding: int | None = None

    @model_validator(mode="after")
    def _rows_differ(self) -> Self:
        if len(self.shares) != len(self.rows) + 1:
            raise ValueError("there must be one share more than rows")
        if any(a >= b for a, b in zip(self.rows, self.rows[1:], strict=False)):
            raise ValueError("rows must ascend")
        return self

    @classmethod
    def of(
        cls, rows: npt.NDArray[np.int64], *, unknown: int | None, padding: int | None = None
    ) -> Self | None:
        """Return bins of the most frequent rows; None if there are no rows.

        Args:
            rows: of any shape.
            unknown: the row of unknown ids, which has a bin of its own whether frequent or not.
            padding: what stands for no id, in lists.
        """
        flat = rows.reshape(-1)
        flat = flat if padding is None else flat[flat != padding]
        if not len(flat):
            return None
        ids, counts = np.unique(flat, return_counts=True)
        frequent = {int(id_) for id_ in ids[np.argsort(-counts, kind="stable")[:TOP_IDS]]}
        if unknown is not None and unknown not in frequent:
            if len(frequent) == TOP_IDS:
                frequent.discard(int(ids[np.argsort(-counts, kind="stable")[TOP_IDS - 1]]))
            frequent.add(unknown)
        kept = np.array(sorted(frequent), np.int64)
        shares = _shares(_id_counts(kept, flat))
        return cls(rows=tuple(kept.tolist()), shares=shares, padding=padding)

    def counts(self, column: npt.NDArray[np.generic]) -> Counts:
        """Return how many of the ids are in each bin."""
        flat = column.reshape(-1)
        if self.padding is not None:
            flat = flat[flat != self.padding]
        return _id_counts(np.array(self.rows, np.int64), flat)


Bins = Annotated[NumberBins | IdBins, Field(discriminator="kind")]


class Distributions(Value):
    """What a version's inputs and scores were like in training: on held-out rows."""

    features: Mapping[str, Bins] = Field(default={})
    """By feature. The numbers of a vector are pooled."""
    scores: Mapping[str, NumberBins] = Field(default={})
    """By task, before calibration."""


def _shares(counts: Counts) -> tuple[float, ...]:
    return tuple(round(float(share), 6) for share in counts / counts.sum())


def _number_counts(edges: npt.NDArray[np.float32], values: npt.NDArray[np.generic]) -> Counts:
    bins = np.searchsorted(edges, values, side="left")  # a bin includes its upper edge
    return np.bincount(bins, minlength=len(edges) + 1)


def _id_counts(rows: npt.NDArray[np.int64], ids: npt.NDArray[np.generic]) -> Counts:
    at = np.searchsorted(rows, ids)
    at[at == len(rows)] = 0
    is_listed = rows[at] == ids
    return np.bincount(np.where(is_listed, at, len(rows)), minlength=len(rows) + 1)
