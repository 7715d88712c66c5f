"""Labelled impressions in memory, grouped by request, and the batches that training takes.

A request is one user row and its candidate rows. Batches are cut between requests, never through
one, so that a batch has the layout in which the service calls the network: the user's side once
per request. Nothing here knows where the data came from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

UNKNOWN = 0  # the id of everything that has none
PADDING = -1  # fills an id list up to its max_length


@dataclass(frozen=True, slots=True)
class Dataset:
    """`R` requests with `B` candidates between them, and what the users did.

    Attributes:
        user: feature columns with `R` rows: dense float32 `[R, dim]`, id int64 `[R]`, id list
            int64 `[R, max_length]`.
        candidate: feature columns with `B` rows, likewise.
        row_to_request: int64 `[B]`, ascending: the user row that each candidate row belongs to.
        labels: float32 `[B]` by name; NaN where a label is not defined.
        expected: float32 `[B]` by label name: the label's expectation under the process that made
            it, where that is known. No prediction can be better.
        users: int64 `[R]`, who made each request.
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

        A batch is full with the request that reaches `rows`, so it holds at most one request more.

        Args:
            rows: candidates a batch.
            shuffle: draws the order of the requests; as they stand where `None`.
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
    """One or more datasets behind each other; they have the same columns."""

    def columns(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    if len(datasets) == 1:
        return datasets[0]
    requests = torch.tensor([each.requests for each in datasets])
    shift = requests.cumsum(0) - requests  # requests ahead of each dataset
    return Dataset(
        user=columns([each.user for each in datasets]),
        candidate=columns([each.candidate for each in datasets]),
        row_to_request=torch.cat(
            [each.row_to_request + by for each, by in zip(datasets, shift, strict=True)]
        ),
        labels=columns([each.labels for each in datasets]),
        expected=columns([each.expected for each in datasets]),
        users=torch.cat([each.users for each in datasets]),
    )


class TrainingSet(Protocol):
    """Requests to learn from, in memory (`Dataset`) or not."""

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
    """What a network learns from, what stops the training, and what it is judged by.

    `notes` are lines for a person who wonders about the data.
    """

    train: TrainingSet
    validation: Dataset
    test: Dataset
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitsInMemory(Splits):
    """Splits of which the training set is in memory too."""

    train: Dataset
