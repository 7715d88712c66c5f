"""Programs: a TorchScript module, called as its manifest says, on one device."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.artifacts.columns import Columns, ModelInputs
from app.artifacts.inputs import IdListInput
from app.artifacts.manifest import (
    Argument,
    Derived,
    Description,
    GateLevel,
    RequestCall,
    RowsCall,
    TaskOutput,
)
from app.artifacts.onednn import padded_rows

Raw = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
GateWeights = npt.NDArray[np.float32]
"""The weights of one level, `[B, gates, experts]`."""

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
"""The dtypes of arguments by their names in a manifest."""

_GATE_TOLERANCE = 1e-3  # of a sum of weights
_LARGEST_EXPONENT = np.float32(80)  # exp(88.8) leaves float32


class Program:
    """Runs batches through a module. Any thread may call it; no state is kept between calls.

    Attributes:
        has_steady_cost: whether a call's cost depends on the number of rows alone.
        pads_from: `run` pads batches of so many rows or more, because each number of rows has
            kernels of its own; see `app.artifacts.onednn`. 0 if it pads none.
        large_from: in batches of so many rows, every product that may run with oneDNN does; 0 if
            none may.
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        description: Description,
        device: torch.device,
        *,
        copy_inputs: bool = False,
        has_steady_cost: bool = False,
        pads_from: int = 0,
        large_from: int = 0,
    ) -> None:
        """Wrap a module that does not change its own state (`app.artifacts.effects`).

        Args:
            module: in `eval` mode, on `device`.
            description: how it is called and what it returns.
            device: where it runs.
            copy_inputs: give the module its own copy of each tensor, because it writes to them.
            has_steady_cost: whether a call's cost is known to depend on the number of rows alone.
            pads_from: how many rows a batch has at least if `run` pads it; 0 to pad none.
            large_from: from how many rows on every product runs with oneDNN that may; 0 if none.
        """
        self.description = description
        self.device = device
        self._module = module
        self._copy_inputs = copy_inputs
        self.gates = description.gates
        self.has_steady_cost = has_steady_cost
        self.pads_from = pads_from
        self.large_from = large_from
        outputs = [task.output for task in description.tasks]
        self._lists = {
            input_.name: input_ for input_ in description.inputs if input_.kind == "id_list"
        }
        self._is_matrix = all(o.path is None and o.column == k for k, o in enumerate(outputs))

    def run(self, batch: ModelInputs) -> Raw:
        """Return the raw outputs, `[B, K]` float32, one column per task. Read-only.

        Raises:
            ValueError: the module did not return one number per row and task.
            RuntimeError: the module raised.
        """
        rows = batch.rows
        if self.pads_from:
            batch = self._padded(batch)
        with torch.inference_mode():
            raw: Raw = self._stacked(self.call(batch), batch.rows).cpu().numpy()
            return raw[:rows]

    def _padded(self, batch: ModelInputs) -> ModelInputs:
        """Return a batch with one of the sizes of `padded_rows`; its last row is repeated."""
        requests, rows = batch.request_count, batch.rows
        more_requests, more_rows = self.padded(requests), self.padded(rows)
        user, candidate, row_to_request = batch.user, batch.candidate, batch.row_to_request
        if more_requests > requests:
            user = {name: _lengthened(column, more_requests) for name, column in user.items()}
        if more_rows > rows:
            row_to_request = _lengthened(row_to_request, more_rows)
            candidate = {name: _lengthened(column, more_rows) for name, column in candidate.items()}
        folded = batch.folded
        if folded is not None and len(folded) < more_rows:
            folded = _lengthened(folded, more_rows)
        return ModelInputs(user, candidate, row_to_request, folded)

    def padded(self, rows: int) -> int:
        """Return the number of rows that `run` pads a batch of `rows` rows to."""
        return padded_rows(rows) if self.pads_from and rows >= self.pads_from else rows

    def outputs(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        """Return the raw outputs, `[B, K]` float32, of inputs on the program's device.

        All work is queued on the device's current stream. Only the module itself may wait for it.

        Raises:
            ValueError, RuntimeError: as `run`.
        """
        with torch.inference_mode():
            returned = self._call(user, candidate, row_to_request)
            return self._stacked(returned, len(row_to_request))

    def call(self, batch: ModelInputs) -> object:
        """Return what the module returns, unchanged, on its device.

        Raises:
            RuntimeError: the module raised.
        """
        with torch.inference_mode():
            if batch.folded is not None:
                return self._call_folded(batch, batch.folded)
            return self._call(*self._tensors(batch))

    def fold(self, candidate: Columns) -> Raw:
        """Return what the first layers make of candidates, float32 `[B, H]`, for any user.

        Raises:
            ValueError: the module did not return what the description says.
            RuntimeError: the module raised.
        """
        rows = len(next(iter(candidate.values())))
        tensors = {name: torch.from_numpy(column) for name, column in candidate.items()}
        with torch.inference_mode():
            if self._copy_inputs:
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            try:
                folded = self._module.fold({n: t.to(self.device) for n, t in tensors.items()})
            except torch.jit.Error as error:  # as in `_call`
                raise RuntimeError(str(error)) from error
            shape = (rows, self.description.folded_width)
            if not isinstance(folded, Tensor) or tuple(folded.shape) != shape:
                raise ValueError(f"fold must return {shape}, it returned {_shape_of(folded)}")
            raw: Raw = folded.to(torch.float32).cpu().numpy()
            return raw

    def gate_weights(self, batch: ModelInputs) -> list[GateWeights]:
        """Return the weight that each gate gives to each expert, by level.

        Raises:
            ValueError: the module did not return what the description says.
            RuntimeError: the module raised.
        """
        with torch.inference_mode():
            returned = self._gate_weights(*self._tensors(batch))
            if not isinstance(returned, list | tuple) or len(returned) != len(self.gates):
                raise ValueError(f"gate_weights must return {len(self.gates)} tensors, in a list")
            return [
                _weights(tensor, number, level, batch.rows)
                for number, (tensor, level) in enumerate(zip(returned, self.gates, strict=True), 1)
            ]

    def _tensors(self, batch: ModelInputs) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return a batch as tensors on the program's device."""
        user = {name: torch.from_numpy(array) for name, array in batch.user.items()}
        candidate = {name: torch.from_numpy(array) for name, array in batch.candidate.items()}
        row_to_request = torch.from_numpy(batch.row_to_request)
        if self.device.type != "cpu":
            user = {name: tensor.to(self.device) for name, tensor in user.items()}
            candidate = {name: tensor.to(self.device) for name, tensor in candidate.items()}
            row_to_request = row_to_request.to(self.device)
        return user, candidate, row_to_request

    def _call_folded(self, batch: ModelInputs, folded: Raw) -> object:
        user, candidate, row_to_request = self._tensors(batch)
        rows = torch.from_numpy(folded[: batch.rows]).to(self.device)
        if self._copy_inputs:
            user, _, row_to_request = _copies(user, candidate, row_to_request)
            rows = rows.clone()
        try:
            return self._module.score_folded(user, rows, row_to_request)
        except torch.jit.Error as error:  # as in `_call`
            raise RuntimeError(str(error)) from error

    def _gate_weights(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> object:
        if self._copy_inputs:
            user, candidate, row_to_request = _copies(user, candidate, row_to_request)
        try:
            with nullcontext() if self.device.type == "cpu" else unoptimised():
                return self._module.gate_weights(user, candidate, row_to_request)
        except torch.jit.Error as error:  # as in `_call`
            raise RuntimeError(str(error)) from error

    def _stacked(self, returned: object, rows: int) -> Tensor:
        whole = (rows, len(self.description.tasks))
        if self._is_matrix and isinstance(returned, Tensor) and returned.shape == whole:
            return returned.to(torch.float32)  # splitting and stacking it again takes 30 µs
        columns = [_column(returned, task, rows) for task in self.description.tasks]  # K of [B]
        return torch.stack(columns, dim=1).to(torch.float32)  # [B, K]

    def _call(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> object:
        call = self.description.call
        if self._copy_inputs:
            user, candidate, row_to_request = _copies(user, candidate, row_to_request)
        try:
            with nullcontext() if self.device.type == "cpu" else unoptimised():
                if isinstance(call, RequestCall):
                    return self._module(user, candidate, row_to_request)
                tiled = {name: column[row_to_request] for name, column in user.items()}  # [B, ·]
                return self._call_rows(call, tiled | candidate)
        except torch.jit.Error as error:  # a `raise` in the module; not a RuntimeError
            raise RuntimeError(str(error)) from error

    def _call_rows(self, call: RowsCall, features: dict[str, Tensor]) -> object:
        packed = {
            argument.name: _pack(argument, features, self._lists) for argument in call.arguments
        }
        return self._module(packed) if call.style == "dict" else self._module(*packed.values())


def _lengthened(column: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Return a column with more rows, which are copies of its last one."""
    longer = np.empty((rows, *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    longer[len(column) :] = column[-1]
    return longer


def _copies(
    user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    return (
        {name: tensor.clone() for name, tensor in user.items()},
        {name: tensor.clone() for name, tensor in candidate.items()},
        row_to_request.clone(),
    )


def _weights(tensor: object, number: int, level: GateLevel, rows: int) -> GateWeights:
    """Return the weights of one level, `[B, gates, experts]`, checked."""
    shape = (rows, len(level.gates), len(level.experts))
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
        raise ValueError(f"gate_weights: level {number} is {_shape_of(tensor)}, expected {shape}")
    weights: GateWeights = tensor.to(torch.float32).cpu().numpy()
    seen = np.zeros(shape[1:], np.bool_)
    for gate, experts in enumerate(level.sees):
        seen[gate, list(experts)] = True
    is_mixture = np.abs(weights.sum(2) - 1) <= _GATE_TOLERANCE  # [B, gates]; false for NaN
    if not is_mixture.all() or (weights[:, ~seen] != 0).any():
        raise ValueError(
            f"gate_weights: level {number}: the weights of a gate must sum to 1, "
            "and be 0 for experts that it does not see"
        )
    return weights


def unoptimised() -> AbstractContextManager[None]:
    """Run a module's operators one by one, in this thread.

    By default TorchScript's executor profiles the first runs, fuses operators, and compiles them
    again for other shapes. On a GPU that is an error while a graph is captured, and a graph has no
    launches left to save.
    """
    context: AbstractContextManager[None] = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    return context


def error_summary(error: Exception) -> str:
    """Return the line of a program's error that says what went wrong.

    An error that the module raised is below TorchScript's traceback. An error of the call itself is
    above the declaration of `forward()`.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].startswith("forward()") else lines[-1]


def scores(raw: Raw, tasks: tuple[TaskOutput, ...]) -> Scores:
    """Turn raw outputs `[B, K]` into scores `[B, K]`: apply each task's link, then its clamp."""
    result = np.empty_like(raw)
    for k, task in enumerate(tasks):
        column = _inverse_link(raw[:, k], task.link)
        result[:, k] = column if task.clamp is None else np.clip(column, *task.clamp)
    return result


def _inverse_link(raw: Raw, link: str) -> Raw:
    score: Raw = raw
    if link == "sigmoid":
        # σ(x) = 1 / (1 + e⁻ˣ) with e⁻ˣ kept finite: exact to float32 for small probabilities.
        score = np.reciprocal(1 + np.exp(np.minimum(-raw, _LARGEST_EXPONENT)))
    elif link == "exp":
        score = np.exp(np.minimum(raw, _LARGEST_EXPONENT))
    elif link == "expm1":
        score = np.expm1(np.minimum(raw, _LARGEST_EXPONENT))
    return score


def _pack(argument: Argument, features: dict[str, Tensor], lists: dict[str, IdListInput]) -> Tensor:
    """Return the tensor of an argument, `[B]` or `[B, width]`."""
    dtype = DTYPES[argument.dtype]
    parts = [
        (features[part] if isinstance(part, str) else _derived(part, features, lists)).to(dtype)
        for part in argument.pack
    ]
    if argument.rank == 1:
        return parts[0].reshape(parts[0].shape[0])  # [B, 1] or [B] → [B]
    return torch.cat([part.reshape(part.shape[0], -1) for part in parts], dim=1)  # [B, width]


def _derived(part: Derived, features: dict[str, Tensor], lists: dict[str, IdListInput]) -> Tensor:
    """Return the length `[B, 1]` of lists `[B, L]`, or their mask, padding or ids `[B, L]`."""
    ids, feature = features[part.of], lists[part.of]
    real, place = ids != feature.padding, _places(feature, ids.device)  # [B, L], [L]
    length = (real * place).amax(1, keepdim=True)  # [B, 1]
    match part.take:
        case "length":
            return length.clamp(min=part.at_least)
        case "ids":
            row = feature.padding if part.empty is None else part.empty
            return torch.where((length == 0) & (place == 1), row, ids)
    if part.at_least:
        real = real | ((place <= part.at_least) & (length < part.at_least))
    return real if part.take == "mask" else ~real


def _places(feature: IdListInput, device: torch.device) -> Tensor:
    """The place of each position of a list, from 1, counted from the side without padding."""
    places = torch.arange(1, feature.max_length + 1, device=device)  # [L]
    return places if feature.padding_side == "right" else places.flip(0)


def element(returned: object, path: int | str) -> object:
    """Return a part of what a module returned: an element, a value by key, or a field by name.

    Raises:
        TypeError, KeyError, IndexError: there is no such part.
    """
    if isinstance(returned, Tensor):  # its first index is a candidate, not a task
        raise TypeError
    if isinstance(path, str) and isinstance(returned, tuple):
        path = fields(returned).index(path) if path in fields(returned) else len(returned)
    return returned[path]  # type: ignore[index]  # a TypeError is expected


def fields(returned: tuple[object, ...]) -> tuple[str, ...]:
    """Return the field names of a named tuple; of another tuple, none."""
    names: tuple[str, ...] = getattr(returned, "_fields", ())
    return names


def _column(returned: object, task: TaskOutput, rows: int) -> Tensor:
    """Return the raw output of a task, `[B]`, from what the module returned.

    Raises:
        ValueError: it is not there, or has another shape than the manifest says.
    """
    output = returned
    path = task.output.path
    if path is not None:
        try:
            output = element(returned, path)
        except (TypeError, KeyError, IndexError):
            raise ValueError(f"task {task.name}: the module's output has no {path!r}") from None
    if isinstance(output, Tensor):
        if output.ndim == 1:
            output = output.unsqueeze(1)  # [B] → [B, 1]
        if output.ndim == 2 and output.shape[0] == rows and output.shape[1] > task.output.column:
            return output[:, task.output.column]
    raise ValueError(
        f"task {task.name}: the module returned {_shape_of(output)} for {rows} rows, "
        f"expected ({rows},) or ({rows}, columns) with column {task.output.column}"
    )


def _shape_of(returned: object) -> tuple[int, ...] | str:
    """Return the shape of a tensor, or the type of something else, for a message."""
    return tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
