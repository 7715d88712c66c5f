"""Labelled impressions in memory, grouped by request, and the batches for training.

A request is one user row and its candidate rows. A batch consists of whole requests and has the
layout in which the service calls the network: one user row per request. This module does not
depend on the source of the data.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

UNKNOWN = 0  # the id of everything that has no id
PADDING = -1  # fills an id list up to its max_length
ROW_WEIGHT = "row weight"  # the label with the weight of each row in the training loss


@dataclass(frozen=True, slots=True)
class Dataset:
    """`R` requests with `B` candidates in total, and their labels.

    Attributes:
        user: feature columns with `R` rows: dense float32 `[R, dim]`, id int64 `[R]`, id list
            int64 `[R, max_length]`.
        candidate: feature columns with `B` rows, likewise.
        row_to_request: int64 `[B]`, ascending: the user row that each candidate row belongs to.
        labels: float32 `[B]` by name; NaN for an undefined label.
        expected: float32 `[B]` by label name: for simulated data, the true expectation of the
            label. No prediction can be better.
        users: int64 `[R]`, the user of each request.
    """

    user: Mapping[str, Tensor]
    candidate: Mapping[str, Tensor]
    row_to_request: Tensor
    labels: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    users: Tensor

    @property
    def requests(self) -> int:
        """R."""
        return len(self.users)

    @property
    def rows(self) -> int:
        """B."""
        return len(self.row_to_request)

    def take(self, requests: Tensor) -> "Dataset":
        """Return the given requests, int64 `[r]`, in that order, with all their rows."""
        sizes = torch.bincount(self.row_to_request, minlength=self.requests)  # [R]
        starts = sizes.cumsum(0) - sizes  # [R]
        return self._take(requests, starts, sizes)

    def batches(self, rows: int, shuffle: torch.Generator | None = None) -> Iterator["Dataset"]:
        """Yield every request once, in batches of about `rows` rows.

        A batch ends with the request that reaches `rows`, so it may have some rows more.

        Args:
            rows: candidates per batch.
            shuffle: draws the order of the requests; the original order if `None`.
        """
        sizes = torch.bincount(self.row_to_request, minlength=self.requests)  # [R]
        starts = sizes.cumsum(0) - sizes  # [R]
        order = torch.arange(self.requests)
        if shuffle is not None:
            order = torch.randperm(self.requests, generator=shuffle)
        before = sizes[order].cumsum(0) - sizes[order]  # [R] rows ahead of each request
        _, requests_each = torch.unique_consecutive(before // rows, return_counts=True)
        for requests in torch.split(order, requests_each.tolist()):
            yield self._take(requests, starts, sizes)

    def _take(self, requests: Tensor, starts: Tensor, sizes: Tensor) -> "Dataset":
        mine = sizes[requests]  # [r]
        row_to_request = torch.repeat_interleave(torch.arange(len(requests)), mine)  # [b]
        # Row i of request q is row starts[q] + i of the dataset.
        shift = starts[requests] - (mine.cumsum(0) - mine)  # [r]
        rows = torch.arange(len(row_to_request)) + shift[row_to_request]  # [b]
        return Dataset(
            user={name: column[requests] for name, column in self.user.items()},
            candidate={name: column[rows] for name, column in self.candidate.items()},
            row_to_request=row_to_request,
            labels={name: label[rows] for name, label in self.labels.items()},
            expected={name: value[rows] for name, value in self.expected.items()},
            users=self.users[requests],
        )


def joined(datasets: Sequence[Dataset]) -> Dataset:
    """Concatenate datasets that have the same columns."""

    def columns(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    if len(datasets) == 1:
        return datasets[0]
    requests = torch.tensor([dataset.requests for dataset in datasets])
    shift = requests.cumsum(0) - requests  # requests ahead of each dataset
    return Dataset(
        user=columns([dataset.user for dataset in datasets]),
        candidate=columns([dataset.candidate for dataset in datasets]),
        row_to_request=torch.cat(
            [dataset.row_to_request + by for dataset, by in zip(datasets, shift, strict=True)]
        ),
        labels=columns([dataset.labels for dataset in datasets]),
        expected=columns([dataset.expected for dataset in datasets]),
        users=torch.cat([dataset.users for dataset in datasets]),
    )


class TrainingSet(Protocol):
    """Training requests, in memory (`Dataset`) or streamed."""

    @property
    def requests(self) -> int:
        """R."""
        ...

    @property
    def rows(self) -> int:
        """B."""
        ...

    def batches(self, rows: int, shuffle: torch.Generator | None = None) -> Iterator[Dataset]:
        """Yield every request once, in batches of about `rows` rows."""
        ...


@dataclass(frozen=True, slots=True)
class Splits:
    """The training set, the validation set for early stopping, and the test set.

    Attributes:
        train: requests to learn from.
        validation: requests for early stopping.
        test: requests for the final metrics.
        notes: messages about the data, shown before training.
        dense_sample: raw values of dense features on training rows, float32 `[n, dim]` by name,
            from which their scaling is fitted; empty for simulated data, which is not scaled.
    """

    train: TrainingSet
    validation: Dataset
    test: Dataset
    notes: tuple[str, ...] = ()
    dense_sample: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SplitsInMemory(Splits):
    """Splits with the training set in memory."""

    train: Dataset
