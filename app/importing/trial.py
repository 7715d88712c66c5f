"""The trial of a foreign module: whether it can serve, found by running it.

It runs with 1, 2 and 257 rows of generated features that keep to their vocabularies. A batcher
brings rows of strangers together, so a module must take any number of rows, and what it gives for
a row may not depend on the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.artifacts.columns import ModelInputs
from app.artifacts.loader import load_module, load_program
from app.artifacts.manifest import Description, Output, Precision
from app.artifacts.program import Program, Raw, cause
from app.errors import ArtifactInvalid
from app.importing.description import ForeignModel, ForeignTask
from app.importing.samples import generate, one_row

CPU = torch.device("cpu")
GOLDEN_SIZES = (1, 2, 3, 5, 8, 16, 32)
"""Candidates of the golden requests."""
TRIAL_SIZES = {1: (1,), 2: (2,), 257: (*GOLDEN_SIZES, 190)}
"""Candidates of the requests in each trial batch, by the batch's rows."""
USUAL_BATCH_SIZES = (*range(3, 65), 100, 128, 200, 256, 500, 512, 1000, 1024, 2048, 4096)
"""Where a module was likely traced, tried only to say so."""
NOT_TORCHSCRIPT = (
    "it is no TorchScript file: a pickled module or a state_dict cannot be read, what "
    "torch.jit.save(torch.jit.trace(module.eval(), example)) writes can"
)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial found: all that publishing needs."""

    description: Description
    requests: ModelInputs


def examine(content: bytes, model: ForeignModel) -> Trial:
    """Run a module and find out whether it can serve, and where its outputs stand.

    Args:
        content: the bytes of a TorchScript file.
        model: what is known of it.

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
    if strangers := sorted(devices - {"cpu"}):
        raise ArtifactInvalid(
            f"the device {strangers[0]} is baked in, so it runs nowhere else: trace it on the CPU"
        )
    # A device in the graph stays there wherever the module is loaded: such a one is for CPUs only.
    precision = Precision(tolerance={"cpu": 1e-5}) if devices else Precision()
    outputs = _outputs(module, model)
    description = model.description(outputs, precision)
    raw = _run_all_sizes(Program(module, description, CPU), model)
    _refuse_what_depends_on_company(
        load_program(content, description, CPU), generate(model, TRIAL_SIZES[257]), raw
    )
    _refuse_what_is_not_meant(model, raw)
    return Trial(description, generate(model, GOLDEN_SIZES))


def _refuse_training_mode(graph: torch._C.Graph) -> None:
    for operator, position, name in (("batch_norm", 5, "BatchNorm"), ("dropout", 2, "dropout")):
        for node in _nodes(graph, f"aten::{operator}"):
            if list(node.inputs())[position].toIValue() is True:
                raise ArtifactInvalid(
                    f"{name} is in training mode: call eval() on the module before tracing it"
                )


def _devices(graph: torch._C.Graph) -> set[str]:
    constants = [node.output() for node in _nodes(graph, "prim::Constant")]
    return {str(c.toIValue()) for c in constants if c.type().kind() == "DeviceObjType"}


def _nodes(graph: torch._C.Graph, kind: str) -> Iterable[Any]:
    nodes: Iterable[Any] = graph.findAllNodes(kind)  # type: ignore[attr-defined]
    return nodes


def _outputs(module: torch.jit.ScriptModule, model: ForeignModel) -> Mapping[str, Output]:
    """Find each task's output in what the module returns for some number of rows."""
    program = Program(module, model.description(dict.fromkeys(_names(model), Output())), CPU)
    reason = ""
    for rows in (*reversed(TRIAL_SIZES), *USUAL_BATCH_SIZES):
        try:
            returned = program.call(generate(model, TRIAL_SIZES.get(rows, (rows,))))
        except RuntimeError as error:
            reason = reason or cause(error)
        else:
            if all(task.output for task in model.tasks):
                return {task.name: task.output or Output() for task in model.tasks}
            return dict(zip(_names(model), _places(returned, model.tasks), strict=True))
    raise ArtifactInvalid(f"it cannot be called: {reason}")


def _places(returned: object, tasks: Sequence[ForeignTask]) -> list[Output]:
    """Where each task's output stands: a dict's keys are names, all else is in task order."""
    if isinstance(returned, dict):
        if strangers := [task.name for task in tasks if task.name not in returned]:
            keys = ", ".join(map(str, returned))
            raise ArtifactInvalid(f"it gives the outputs {keys}, and none is {strangers[0]!r}")
        found = [Output(path=task.name) for task in tasks]
    elif isinstance(returned, tuple | list):
        found = [Output(path=position) for position in range(len(returned))]
    else:
        found = [Output(column=column) for column in range(_width(returned))]
    if len(found) != len(tasks):
        raise ArtifactInvalid(
            f"it gives {len(found)} outputs, but {len(tasks)} tasks are named: name them all, in "
            "order, or state the output of each"
        )
    for place in found:
        width = 1 if place.path is None else _width(returned[place.path])  # type: ignore[index]
        if width != 1:
            raise ArtifactInvalid(
                f"its output {place.path!r} has {width} columns: state the output of each task"
            )
    return found


def _width(tensor: object) -> int:
    if not isinstance(tensor, Tensor) or tensor.ndim > 2:
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ArtifactInvalid(f"it gives {shape}, where [B] or [B, columns] is read")
    return tensor.shape[1] if tensor.ndim == 2 else 1


def _run_all_sizes(program: Program, model: ForeignModel) -> Raw:
    """Return the raw outputs of the largest trial batch, `[257, K]`."""
    failures: dict[int, str] = {}
    raw = np.empty((0, 0), np.float32)
    for rows, sizes in TRIAL_SIZES.items():
        try:
            raw = program.run(generate(model, sizes))
        except (RuntimeError, ValueError) as error:
            failures[rows] = cause(error)
    if not failures:
        return raw
    (rows, reason), *_ = failures.items()
    works = [size for size in TRIAL_SIZES if size not in failures]
    if not works:
        works = [size for size in USUAL_BATCH_SIZES if _runs(program, generate(model, (size,)))]
    if len(works) == 1:
        raise ArtifactInvalid(
            f"a fixed batch size was traced in: it runs with {works[0]} rows, but with {rows}: "
            f"{reason}"
        )
    raise ArtifactInvalid(f"it fails with {rows} row{'s' * (rows > 1)}: {reason}")


def _runs(program: Program, batch: ModelInputs) -> bool:
    try:
        program.run(batch)
    except (RuntimeError, ValueError):
        return False
    return True


def _refuse_what_depends_on_company(program: Program, batch: ModelInputs, raw: Raw) -> None:
    """Compare the program as it will be served, frozen, with the raw outputs of the file itself."""
    tolerance = program.description.precision.tolerance["cpu"]
    again = program.run(batch)
    if (np.abs(again - raw) > tolerance * (1 + np.abs(raw))).any():
        raise ArtifactInvalid("the same rows give other outputs when they are run again")
    for row in chain(range(0, batch.rows, 32), [1]):
        alone = program.run(one_row(batch, row))  # [1, K]
        error = np.abs(alone - raw[row]) / (1 + np.abs(raw[row]))
        if (error > tolerance).any():
            k = int(error.argmax())
            raise ArtifactInvalid(
                f"a row's output depends on its batch: task {program.description.tasks[k].name} "
                f"gives {alone[0, k]:g} for a row alone, and {raw[row, k]:g} beside others"
            )


def _refuse_what_is_not_meant(model: ForeignModel, raw: Raw) -> None:
    for k, task in enumerate(model.tasks):
        column = raw[:, k]
        if not np.isfinite(column).all():
            strange = column[~np.isfinite(column)]
            raise ArtifactInvalid(
                f"task {task.name} gives {strange[0]} for {len(strange)} of {len(column)} rows; "
                "dense values were standard normal unless ranges were told, and a list was empty"
            )
        low, high = float(column.min()), float(column.max())
        if task.gives == "probability" and not 0 <= low <= high <= 1:
            raise ArtifactInvalid(
                f"task {task.name} gives {low:g} to {high:g}, which are no probabilities: logits?"
            )
        if task.gives == "log-probability" and high > 0:
            raise ArtifactInvalid(f"task {task.name} gives {high:g}, which is no log-probability")


def _names(model: ForeignModel) -> list[str]:
    return [task.name for task in model.tasks]
