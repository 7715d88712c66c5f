"""A program: a TorchScript module called as its manifest says, on one device."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.artifacts.columns import ModelInputs
from app.artifacts.manifest import Argument, Description, RequestCall, RowsCall, TaskOutput

Raw = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]

_LARGEST_EXPONENT = np.float32(80)  # exp(88.8) leaves float32


class Program:
    """Runs batches through a module. Any thread may call it; it keeps no state between calls."""

    def __init__(
        self, module: torch.jit.ScriptModule, description: Description, device: torch.device
    ) -> None:
        self.description = description
        self.device = device
        self._module = module
        outputs = [task.output for task in description.tasks]
        self._is_matrix = all(o.path is None and o.column == k for k, o in enumerate(outputs))

    def run(self, batch: ModelInputs) -> Raw:
        """Return the raw outputs, `[B, K]` float32, one column a task; not to be written to.

        Raises:
            ValueError: the module gave something else than one number per row and task.
            RuntimeError: the module raised.
        """
        with torch.inference_mode():
            raw: Raw = self._stacked(self.call(batch), batch.rows).cpu().numpy()
            return raw

    def outputs(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> Tensor:
        """Return the raw outputs, `[B, K]` float32, of inputs that lie on the program's device.

        Everything is queued on the device's current stream, and nothing waits for it, unless the
        module does.

        Raises:
            ValueError, RuntimeError: as `run`.
        """
        with torch.inference_mode():
            returned = self._call(user, candidate, row_to_request)
            return self._stacked(returned, len(row_to_request))

    def call(self, batch: ModelInputs) -> object:
        """Return what the module itself returns, on its device.

        Raises:
            RuntimeError: the module raised.
        """
        with torch.inference_mode():
            user = {name: torch.from_numpy(array) for name, array in batch.user.items()}
            candidate = {name: torch.from_numpy(array) for name, array in batch.candidate.items()}
            row_to_request = torch.from_numpy(batch.row_to_request)
            if self.device.type != "cpu":
                user = {name: tensor.to(self.device) for name, tensor in user.items()}
                candidate = {name: tensor.to(self.device) for name, tensor in candidate.items()}
                row_to_request = row_to_request.to(self.device)
            return self._call(user, candidate, row_to_request)

    def _stacked(self, returned: object, rows: int) -> Tensor:
        whole = (rows, len(self.description.tasks))
        if self._is_matrix and isinstance(returned, Tensor) and returned.shape == whole:
            return returned.to(torch.float32)  # as it is: to take it apart is 30 µs
        columns = [_column(returned, task, rows) for task in self.description.tasks]  # K of [B]
        return torch.stack(columns, dim=1).to(torch.float32)  # [B, K]

    def _call(
        self, user: dict[str, Tensor], candidate: dict[str, Tensor], row_to_request: Tensor
    ) -> object:
        call = self.description.call
        try:
            with nullcontext() if self.device.type == "cpu" else _as_written():
                if isinstance(call, RequestCall):
                    return self._module(user, candidate, row_to_request)
                tiled = {name: column[row_to_request] for name, column in user.items()}  # [B, ·]
                return self._call_rows(call, tiled | candidate)
        except torch.jit.Error as error:  # a `raise` in the module; it is no RuntimeError
            raise RuntimeError(str(error)) from error

    def _call_rows(self, call: RowsCall, features: dict[str, Tensor]) -> object:
        packed = {argument.name: _pack(argument, features) for argument in call.arguments}
        return self._module(packed) if call.style == "dict" else self._module(*packed.values())


def _as_written() -> AbstractContextManager[None]:
    """Let TorchScript run the operators of a module one after the other, in this thread.

    On a GPU its executor would profile the first runs, fuse operators, and compile them again for
    other shapes: in the capture of a graph that is an error, and in a graph there are no launches
    left to save.
    """
    context: AbstractContextManager[None] = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    return context


def cause(error: Exception) -> str:
    """Return the line of a program's error that says what went wrong.

    What a module raised stands below TorchScript's own traceback; what is wrong with a call stands
    above the declaration that it does not fit.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].startswith("forward()") else lines[-1]


def scores(raw: Raw, tasks: tuple[TaskOutput, ...]) -> Scores:
    """Turn raw outputs `[B, K]` into scores `[B, K]`: each task's link, then its clamp."""
    result = np.empty_like(raw)
    for k, task in enumerate(tasks):
        column = _inverse_link(raw[:, k], task.link)
        result[:, k] = column if task.clamp is None else np.clip(column, *task.clamp)
    return result


def _inverse_link(raw: Raw, link: str) -> Raw:
    score: Raw = raw
    if link == "sigmoid":
        # σ(x) = 1 / (1 + e⁻ˣ), where e⁻ˣ is kept finite; exact to float32 for small probabilities.
        score = np.reciprocal(1 + np.exp(np.minimum(-raw, _LARGEST_EXPONENT)))
    elif link == "exp":
        score = np.exp(np.minimum(raw, _LARGEST_EXPONENT))
    elif link == "expm1":
        score = np.expm1(np.minimum(raw, _LARGEST_EXPONENT))
    return score


def _pack(argument: Argument, features: dict[str, Tensor]) -> Tensor:
    dtype = torch.float32 if argument.dtype == "float32" else torch.int64
    parts = [features[name].to(dtype) for name in argument.pack]
    if argument.rank == 1:
        return parts[0].reshape(parts[0].shape[0])  # [B, 1] or [B] → [B]
    return torch.cat([part.reshape(part.shape[0], -1) for part in parts], dim=1)  # [B, width]


def _column(returned: object, task: TaskOutput, rows: int) -> Tensor:
    found = returned
    path = task.output.path
    if path is not None:
        try:
            if isinstance(returned, Tensor):  # an index would pick a candidate, not a task
                raise TypeError
            found = returned[path]  # type: ignore[index]  # what cannot be indexed is refused
        except (TypeError, KeyError, IndexError):
            raise ValueError(f"task {task.name}: the module's output has no {path!r}") from None
    if isinstance(found, Tensor):
        if found.ndim == 1:
            found = found.unsqueeze(1)  # [B] → [B, 1]
        if found.ndim == 2 and found.shape[0] == rows and found.shape[1] > task.output.column:
            return found[:, task.output.column]
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise ValueError(
        f"task {task.name}: the output is {shape} for {rows} rows, column {task.output.column}"
    )
