"""The trial of a module from elsewhere: run it, and find out whether it can serve.

It runs with 1, 2 and 257 rows of generated features that keep to their vocabularies. A batch holds
rows of many requests. So a module must take any number of rows, and what it returns for a row may
not depend on the others.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.artifacts.columns import Column, ModelInputs
from app.artifacts.effects import effects
from app.artifacts.inputs import DenseInput, IdListInput, Input
from app.artifacts.loader import load_module, load_program
from app.artifacts.manifest import Description, Output, Precision
from app.artifacts.program import Program, Raw, element, error_summary, fields
from app.errors import ArtifactInvalid, did_you_mean
from app.importing.description import ForeignModel, ForeignTask
from app.importing.influence import refuse_misused_inputs
from app.importing.samples import generate, one_row

CPU = torch.device("cpu")
GOLDEN_SIZES = (1, 2, 3, 5, 8, 16, 32)
"""The numbers of candidates of the golden requests."""
TRIAL_SIZES = {1: (1,), 2: (2,), 257: (*GOLDEN_SIZES, 190)}
"""The numbers of candidates of the requests in each trial batch, by the batch's rows."""
USUAL_BATCH_SIZES = (*range(3, 65), 100, 128, 200, 256, 500, 512, 1000, 1024, 2048, 4096)
"""Batch sizes that modules are likely traced with; tried to name the one that was."""
NOT_TORCHSCRIPT = (
    "not a TorchScript file (pickled modules and state_dicts are not read); write one with "
    "torch.jit.save(torch.jit.trace(module.eval(), example), path)"
)


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of a trial: all that publishing needs."""

    description: Description
    requests: ModelInputs


def examine(content: bytes, model: ForeignModel) -> Trial:
    """Run a module and find out whether it can serve, and where its outputs are.

    Args:
        content: the bytes of a TorchScript file.
        model: its description.

    Raises:
        ArtifactInvalid: it cannot serve; the message is the reason.
    """
    try:
        module = load_module(content, CPU)
    except ArtifactInvalid as error:
        raise ArtifactInvalid(f"{NOT_TORCHSCRIPT} ({error})") from error
    graph = module.inlined_graph
    _refuse_training_mode(graph)
    devices = _devices(graph)
    if others := sorted(devices - {"cpu"}):
        raise ArtifactInvalid(
            f"the device {others[0]} is a constant of its graph: trace it on the CPU"
        )
    copy_inputs = _refuse_side_effects(module)
    # A device in the graph stays there wherever the module is loaded: it can serve on CPUs only.
    precision = Precision(tolerance={"cpu": 1e-5}) if devices else Precision()
    outputs = _outputs(module, model, copy_inputs=copy_inputs)
    description = model.description(outputs, precision)
    raw = _run_all_sizes(Program(module, description, CPU, copy_inputs=copy_inputs), model)
    program = load_program(content, description, CPU)  # frozen, as it is served
    _refuse_dependent_rows(program, generate(model, TRIAL_SIZES[257]), raw)
    refuse_misused_inputs(program, model)
    return Trial(description, generate(model, GOLDEN_SIZES))


def _refuse_side_effects(module: torch.jit.ScriptModule) -> bool:
    """Refuse a module that changes its own state; return whether it changes its inputs."""
    module_effects = effects(module, module)
    if hasattr(module, "training"):
        module_effects = effects(module, torch.jit.freeze(module))
    if module_effects.problem:
        raise ArtifactInvalid(module_effects.problem)
    return module_effects.inputs


def _refuse_training_mode(graph: torch._C.Graph) -> None:
    for operator, position, name in (("batch_norm", 5, "BatchNorm"), ("dropout", 2, "dropout")):
        for node in _nodes(graph, f"aten::{operator}"):
            arguments = [
                argument.toIValue() for argument in node.inputs()
            ]  # None if not a constant
            # A probability that is computed is left to `effects`, which follows the frozen graph.
            drops_out = operator != "dropout" or arguments[1] not in (None, 0)
            if arguments[position] is True and drops_out:
                raise ArtifactInvalid(
                    f"{name} is in training mode: call eval() on the module before tracing it"
                )


def _devices(graph: torch._C.Graph) -> set[str]:
    constants = [node.output() for node in _nodes(graph, "prim::Constant")]
    return {str(c.toIValue()) for c in constants if c.type().kind() == "DeviceObjType"}


def _nodes(graph: torch._C.Graph, kind: str) -> Iterable[Any]:
    nodes: Iterable[Any] = graph.findAllNodes(kind)  # type: ignore[attr-defined]
    return nodes


def _outputs(
    module: torch.jit.ScriptModule, model: ForeignModel, *, copy_inputs: bool
) -> Mapping[str, Output]:
    """Find each task's output in what the module returns for some number of rows."""
    description = model.description(dict.fromkeys(_names(model), Output()))
    program = Program(module, description, CPU, copy_inputs=copy_inputs)
    reason = ""
    for rows in (*reversed(TRIAL_SIZES), *USUAL_BATCH_SIZES):
        batch = generate(model, TRIAL_SIZES.get(rows, (rows,)))
        try:
            returned = program.call(batch)
        except RuntimeError as error:
            if not reason:
                _refuse_failing_input(program, model, batch)
            reason = reason or error_summary(error)
        else:
            if all(task.output for task in model.tasks):
                return {task.name: task.output or Output() for task in model.tasks}
            return dict(zip(_names(model), _places(returned, model.tasks), strict=True))
    raise ArtifactInvalid(f"it cannot be called: {reason}")


def _places(returned: object, tasks: Sequence[ForeignTask]) -> list[Output]:
    """Return the place of each task's output: by key or field if there are any, else in order."""
    names = _output_names(returned)
    if isinstance(returned, dict) or {task.name for task in tasks} <= set(names):
        if missing := [task.name for task in tasks if task.name not in names]:
            raise ArtifactInvalid(
                f'it returns no output "{missing[0]}"; outputs: {", ".join(names)}'
                f"{did_you_mean(missing[0], names)}; an output of another name is "
                'named with output = { path = "…" }'
            )
        outputs = [Output(path=task.name) for task in tasks]
    elif isinstance(returned, tuple | list):
        outputs = [Output(path=position) for position in range(len(returned))]
    else:
        outputs = [Output(column=column) for column in range(_width(returned))]
    if len(outputs) != len(tasks):
        raise ArtifactInvalid(
            f"it returns {len(outputs)} outputs, but tasks are named for {len(tasks)}: name a task "
            "for each output, in order, or state the output of each task"
        )
    for output in outputs:
        width = 1 if output.path is None else _width(element(returned, output.path))
        if width != 1:
            raise ArtifactInvalid(
                f"its output {output.path!r} has {width} columns: state the output of each task"
            )
    return outputs


def _output_names(returned: object) -> list[str]:
    """Return the keys of a dict, or the fields of a named tuple."""
    if isinstance(returned, dict):
        return list(map(str, returned))
    return list(fields(returned)) if isinstance(returned, tuple) else []


def _width(tensor: object) -> int:
    if not isinstance(tensor, Tensor) or tensor.ndim > 2:
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ArtifactInvalid(f"it returns {shape}, expected [B] or [B, columns]")
    return tensor.shape[1] if tensor.ndim == 2 else 1


def _run_all_sizes(program: Program, model: ForeignModel) -> Raw:
    """Return the raw outputs of the largest trial batch, `[257, K]`; check those of all batches."""
    failures: dict[int, str] = {}
    raw = np.empty((0, 0), np.float32)
    for rows, sizes in TRIAL_SIZES.items():
        batch = generate(model, sizes)
        try:
            raw = program.run(batch)
        except (RuntimeError, ValueError) as error:
            failures[rows] = error_summary(error)
            if isinstance(error, RuntimeError):
                _refuse_failing_input(program, model, batch)
    if not failures:
        _refuse_unwritten_memory(program, batch, raw)
        _refuse_meaningless_outputs(model, raw)
        for sizes in TRIAL_SIZES.values():
            _refuse_meaningless_outputs(model, program.run(generate(model, sizes)))
        return raw
    (rows, reason), *_ = failures.items()
    works = [size for size in TRIAL_SIZES if size not in failures]
    if not works:
        works = [size for size in USUAL_BATCH_SIZES if _runs(program, generate(model, (size,)))]
    if len(works) == 1:
        raise ArtifactInvalid(
            f"a fixed batch size is part of its graph: it runs with {works[0]} rows, but fails "
            f"with {rows}: {reason}"
        )
    raise ArtifactInvalid(f"it fails with {rows} row{'s' * (rows > 1)}: {reason}")


def _refuse_failing_input(program: Program, model: ForeignModel, batch: ModelInputs) -> None:
    """Refuse the first input whose values alone make the module fail, if there is one.

    All other inputs are zeros meanwhile, in a batch of the same size.
    """
    zeros = _zeros(batch)
    if not _runs(program, zeros):
        return
    for feature in model.inputs:
        column = (batch.user if feature.side == "user" else batch.candidate)[feature.name]
        try:
            program.run(_with_column(zeros, feature, column))
        except RuntimeError as error:
            what = _wrong_values(program, feature, zeros)
            raise ArtifactInvalid(
                f"input {feature.name}: {what}: {error_summary(error)}"
            ) from error
        except ValueError:
            continue


def _wrong_values(program: Program, feature: Input, zeros: ModelInputs) -> str:
    """Say which values of an input make the module fail."""
    if isinstance(feature, DenseInput):
        return (
            "the module fails on its trial values (state their interval in ranges; if they are "
            'ids, the kind must be "id" or "id_list"; check the widths of the inputs before it)'
        )

    def works(value: int) -> bool:
        column = (zeros.user if feature.side == "user" else zeros.candidate)[feature.name]
        return _runs(program, _with_column(zeros, feature, np.full_like(column, value)))

    if isinstance(feature, IdListInput) and not works(feature.padding):
        return f"the module fails on its padding, {feature.padding}"
    low, high = 0, feature.vocabulary_size - 1
    while low < high:  # the largest id that works, found by bisection
        middle = (low + high + 1) // 2
        low, high = (middle, high) if works(middle) else (low, middle - 1)
    return (
        f"vocabulary_size is {feature.vocabulary_size}, but the largest id that the module takes "
        f"is {low}"
    )


def _zeros(batch: ModelInputs) -> ModelInputs:
    return ModelInputs(
        {name: np.zeros_like(column) for name, column in batch.user.items()},
        {name: np.zeros_like(column) for name, column in batch.candidate.items()},
        batch.row_to_request,
    )


def _with_column(batch: ModelInputs, feature: Input, column: Column) -> ModelInputs:
    user, candidate = dict(batch.user), dict(batch.candidate)
    (user if feature.side == "user" else candidate)[feature.name] = column
    return ModelInputs(user, candidate, batch.row_to_request)


def _runs(program: Program, batch: ModelInputs) -> bool:
    try:
        program.run(batch)
    except (RuntimeError, ValueError):
        return False
    return True


def _refuse_dependent_rows(program: Program, batch: ModelInputs, raw: Raw) -> None:
    """Compare the program as it is served, frozen, with the raw outputs of the file itself."""
    tolerance = program.description.precision.tolerance["cpu"]
    _refuse_unwritten_memory(program, batch, raw)
    again = program.run(batch)
    if not (np.abs(again - raw) <= tolerance * (1 + np.abs(raw))).all():
        raise ArtifactInvalid("the same rows give other outputs when they are run again")
    # Of the first row every list is empty, of the last every list is full.
    for row in (*range(0, batch.rows, 8), 1, batch.rows - 1):
        alone = program.run(one_row(batch, row))  # [1, K]
        matches = np.abs(alone - raw[row]) <= tolerance * (1 + np.abs(raw[row]))
        if not matches.all():  # also where an output is NaN
            k = int(matches.argmin())
            raise ArtifactInvalid(
                f"a row's output depends on the other rows: task "
                f"{program.description.tasks[k].name} gives {alone[0, k]:g} for a row alone, and "
                f"{raw[row, k]:g} for the same row in a batch"
            )


def _refuse_unwritten_memory(program: Program, batch: ModelInputs, raw: Raw) -> None:
    """Refuse a module that gives NaN because new memory is NaN; by chance it may be so already."""
    with _new_memory_is_nan():
        if (np.isnan(program.run(batch)) & ~np.isnan(raw)).any():
            raise ArtifactInvalid(
                "its outputs depend on memory that it has not written to, such as torch.empty gives"
            )


@contextmanager
def _new_memory_is_nan() -> Iterator[None]:
    """Let `torch.empty` and its like give NaN, on every thread, instead of whatever is there."""
    before = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operators that have no deterministic form on a GPU
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warns_only)


def _refuse_meaningless_outputs(model: ForeignModel, raw: Raw) -> None:
    for k, task in enumerate(model.tasks):
        column = raw[:, k]
        if not np.isfinite(column).all():
            wrong = column[~np.isfinite(column)]
            raise ArtifactInvalid(
                f"task {task.name} gives {wrong[0]} for {len(wrong)} of {len(column)} rows; "
                "trial values of dense inputs are standard normal unless ranges are stated, and "
                "one id list is empty"
            )
        low, high = float(column.min()), float(column.max())
        if task.gives == "probability" and not 0 <= low <= high <= 1:
            raise ArtifactInvalid(
                f"task {task.name} gives {low:g} to {high:g}, which are not probabilities; if they "
                'are logits, say "logit"'
            )
        if task.gives == "log-probability" and high > 0:
            raise ArtifactInvalid(
                f"task {task.name} gives {high:g}, which is not a log-probability: it is above 0"
            )


def _names(model: ForeignModel) -> list[str]:
    return [task.name for task in model.tasks]
