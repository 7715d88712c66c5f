"""Golden examples: requests, and the outputs of the program when it was published.

Loading runs them again: the program must give the same outputs on the machine that serves.
`golden.safetensors` holds `user.<feature>`, `candidate.<feature>`, `row_to_request`, `raw` and
`scores`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as parse, save as serialise

from app.artifacts.columns import Column, ModelInputs, column_dtype, column_shape
from app.artifacts.manifest import Description, Device
from app.artifacts.program import Program, error_summary, scores
from app.errors import ArtifactInvalid


@dataclass(frozen=True, slots=True)
class Golden:
    """A batch of requests with its raw outputs `[B, K]` and its scores `[B, K]`, float32."""

    batch: ModelInputs
    raw: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]

    @classmethod
    def record(cls, program: Program, batch: ModelInputs) -> Self:
        """Run `batch` and keep its outputs.

        Raises:
            ArtifactInvalid: the program failed, its outputs are not as described, or it changed its
                inputs.
        """
        raw = _run(program, batch, "golden requests")
        return cls(batch, raw, scores(raw, program.description.tasks))

    def to_bytes(self) -> bytes:
        """Return the content of `golden.safetensors`."""
        tensors: dict[str, Column] = {
            **{f"user.{name}": column for name, column in self.batch.user.items()},
            **{f"candidate.{name}": column for name, column in self.batch.candidate.items()},
            "row_to_request": self.batch.row_to_request,
            "raw": self.raw,
            "scores": self.scores,
        }
        return serialise({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})

    @classmethod
    def from_bytes(cls, content: bytes, description: Description) -> Self:
        """Parse `golden.safetensors`. Every tensor must fit the description.

        Raises:
            ArtifactInvalid: a tensor is missing, or has another dtype or shape.
        """
        try:
            tensors = parse(content)
        except (SafetensorError, KeyError) as error:  # KeyError: a dtype that NumPy lacks
            raise ArtifactInvalid(f"golden.safetensors: cannot be parsed: {error}") from error
        take = partial(_take, tensors)
        row_to_request = take("row_to_request", np.int64, (None,))
        rows = len(row_to_request)
        if rows == 0 or row_to_request.min() < 0:
            raise ArtifactInvalid(
                "golden.safetensors: row_to_request must not be empty or negative"
            )
        requests = int(row_to_request.max()) + 1
        user = {
            feature.name: take(
                f"user.{feature.name}", column_dtype(feature), column_shape(feature, requests)
            )
            for feature in description.user_inputs
        }
        candidate = {
            feature.name: take(
                f"candidate.{feature.name}", column_dtype(feature), column_shape(feature, rows)
            )
            for feature in description.candidate_inputs
        }
        expected = (rows, len(description.tasks))
        return cls(
            ModelInputs(user, candidate, row_to_request),
            raw=take("raw", np.float32, expected),
            scores=take("scores", np.float32, expected),
        )

    @property
    def requests(self) -> int:
        """The number of requests."""
        return len(np.unique(self.batch.row_to_request))

    def check(self, program: Program) -> float:
        """Run all requests as one batch, then each alone, and compare with the recorded outputs.

        Returns:
            The largest difference, `|y - g| / (1 + |g|)`.

        Raises:
            ArtifactInvalid: an output differs by more than the manifest's tolerance, or the program
                failed or changed its inputs.
        """
        tolerance = program.description.precision.tolerance.get(device_name(program))
        if tolerance is None:
            raise ArtifactInvalid(
                f"model.json: precision.tolerance has no entry for {program.device.type}"
            )
        how = "all requests in one batch"
        largest = self._compare(program, self.batch, slice(None), tolerance, how)
        row_to_request = self.batch.row_to_request
        for request, batch in zip(np.unique(row_to_request), self.batch.requests(), strict=True):
            mine = row_to_request == request
            difference = self._compare(program, batch, mine, tolerance, f"request {request} alone")
            largest = max(largest, difference)
        return largest

    def check_repeated(self, program: Program, rows: int) -> float:
        """Run the examples again and again in one batch of at least `rows` rows, as `check` does.

        Returns, Raises: as `check`.
        """
        batch = self.batch
        times = -(-rows // batch.rows)
        requests = batch.request_count
        row_to_request = np.concatenate([batch.row_to_request + i * requests for i in range(times)])
        large = ModelInputs(
            {name: np.concatenate([column] * times) for name, column in batch.user.items()},
            {name: np.concatenate([column] * times) for name, column in batch.candidate.items()},
            row_to_request if batch.user else np.zeros_like(row_to_request),
        )
        repeated = np.tile(np.arange(batch.rows), times)
        tolerance = program.description.precision.tolerance[device_name(program)]
        how = f"a batch of {len(repeated)} rows"
        return self._compare(program, large, repeated, tolerance, how)

    def _compare(
        self,
        program: Program,
        batch: ModelInputs,
        rows: slice | npt.NDArray[np.bool_ | np.int64],
        tolerance: float,
        how: str,
    ) -> float:
        largest = 0.0
        raw = _run(program, batch, f"golden check, {how}")
        for what, outputs, golden in (
            ("raw output", raw, self.raw[rows]),
            ("score", scores(raw, program.description.tasks), self.scores[rows]),
        ):
            error_ratio = np.abs(outputs - golden) / (1 + np.abs(golden))  # [B, K]
            worst = float(np.max(error_ratio))
            if not worst <= tolerance:  # true for NaN as well
                k = int(np.argmax(error_ratio)) % len(program.description.tasks)
                raise ArtifactInvalid(
                    f"golden check, {how}: {what} of task {program.description.tasks[k].name} "
                    f"differs by {worst:.3g}, tolerance {tolerance:g} on {program.device.type}"
                )
            largest = max(largest, worst)
        return largest


def device_name(program: Program) -> Device:
    """Return the name of the program's device in `Precision.tolerance`."""
    return "cuda" if program.device.type == "cuda" else "cpu"


def _run(program: Program, batch: ModelInputs, how: str) -> npt.NDArray[np.float32]:
    """Return the raw outputs of a batch, whose columns must be unchanged afterwards."""
    columns = {**batch.user, **batch.candidate, "row_to_request": batch.row_to_request}
    before = {name: column.tobytes() for name, column in columns.items()}
    try:
        raw = program.run(batch)
    except (RuntimeError, ValueError) as error:
        raise ArtifactInvalid(f"{how}: the program failed: {error_summary(error)}") from error
    for name, column in columns.items():
        if column.tobytes() != before[name]:
            raise ArtifactInvalid(f"{how}: the program changes the tensor that it is given: {name}")
    return raw


def _take(
    tensors: dict[str, Column],
    name: str,
    dtype: type[np.float32] | type[np.int64],
    shape: tuple[int | None, ...],
) -> Column:
    tensor = tensors.get(name)
    if tensor is None:
        raise ArtifactInvalid(f"golden.safetensors: tensor {name!r} is missing")
    fits = len(tensor.shape) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype != dtype or not fits:
        raise ArtifactInvalid(
            f"golden.safetensors: {name} is {tensor.dtype} {tensor.shape}, "
            f"expected {np.dtype(dtype)} {shape}"
        )
    return tensor
