"""Feature columns: the typed arrays of a request, a batch or a golden example.

A column has one row per user or per candidate. A dense feature is float32 `[n, dim]`, an id int64
`[n]`, an id list int64 `[n, max_length]`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.artifacts.inputs import DenseInput, IdInput, Input

Column = npt.NDArray[Any]
Columns = Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """The inputs of one batch: `R` requests with `B` candidates in total.

    Attributes:
        user: columns with `R` rows.
        candidate: columns with `B` rows.
        row_to_request: int64 `[B]`, the user row of each candidate row.
        folded: float32 `[B, H]`, what the program's `fold` makes of the candidates; their columns
            are then missing. There may be more rows, so that padding needs no copy. None for a
            batch that has the columns.
    """

    user: Columns
    candidate: Columns
    row_to_request: npt.NDArray[np.int64]
    folded: npt.NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        """The number of candidates, `B`."""
        return len(self.row_to_request)

    @property
    def request_count(self) -> int:
        """The number of requests, `R`; 1 for a model without user features."""
        return next((len(column) for column in self.user.values()), 1)

    def requests(self) -> Iterable["ModelInputs"]:
        """Yield each request that has candidates as a batch of its own."""
        for request in np.unique(self.row_to_request):
            mine = self.row_to_request == request
            yield ModelInputs(
                user={name: column[request : request + 1] for name, column in self.user.items()},
                candidate={name: column[mine] for name, column in self.candidate.items()},
                row_to_request=np.zeros(int(mine.sum()), dtype=np.int64),
            )


def column_dtype(feature: Input) -> type[np.float32] | type[np.int64]:
    """Return the dtype of a feature's column: float32 of numbers, int64 of ids."""
    return np.float32 if isinstance(feature, DenseInput) else np.int64


def column_shape(feature: Input, rows: int) -> tuple[int, ...]:
    """Return the shape of a column: `(rows, dim)`, `(rows,)` or `(rows, max_length)`."""
    if isinstance(feature, DenseInput):
        return (rows, feature.dim)
    if isinstance(feature, IdInput):
        return (rows,)
    return (rows, feature.max_length)
