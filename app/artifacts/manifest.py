"""The manifest: what an artifact holds, what it takes, what it gives, and how it was checked.

`model.json` is one `Manifest`. It describes any TorchScript module, not only the networks of this
repository: which features exist, how they are packed into the module's arguments, which output is
which task, and how a raw output becomes a score.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from app.artifacts.encoding import Listed
from app.artifacts.inputs import (
    DenseInput,
    Float32,
    IdInput,
    IdListInput,
    Input,
    Name,
    Side,
    Value,
)
from app.artifacts.precision import Device, Precision
from app.ranking.calibration import UNCALIBRATED, Calibration, Platt
from app.ranking.policies import ModelTraits
from app.ranking.policy import Policy

__all__ = [
    "Argument",
    "Call",
    "DenseInput",
    "Description",
    "Device",
    "FileDigest",
    "FileName",
    "Float32",
    "IdInput",
    "IdListInput",
    "Input",
    "Manifest",
    "Name",
    "Output",
    "Precision",
    "RequestCall",
    "RowsCall",
    "Side",
    "TaskOutput",
]

FileName = Annotated[
    str,
    Field(
        pattern=r"^(model\.(ts|pt2)|golden\.safetensors|vocabulary\.[A-Za-z0-9][\w.-]{0,63}\.jsonl)$"
    ),
]
Figure = Annotated[
    float | None, BeforeValidator(lambda f: None if isinstance(f, float) and math.isnan(f) else f)
]
"""A measurement; None where there was nothing to measure, which JSON cannot say as NaN."""


class RequestCall(Value):
    """`module(user, candidate, row_to_request)`: the user's side once per request.

    `user` and `candidate` are `Dict[str, Tensor]` with `R` and `B` rows; `row_to_request` is int64
    `[B]` and says which user row each candidate row belongs to.
    """

    layout: Literal["request"] = "request"


class Argument(Value):
    """One tensor of a `rows` call: features side by side, as one dtype.

    `rank` 1 is `[B]` and takes one feature of width 1; `rank` 2 is `[B, total width]`.
    """

    name: Name
    pack: tuple[Name, ...] = Field(min_length=1)
    dtype: Literal["float32", "int64"]
    rank: Literal[1, 2] = 2

    @model_validator(mode="after")
    def _rank_1_takes_one_feature(self) -> Self:
        if self.rank == 1 and len(self.pack) > 1:
            raise ValueError(f"rank 1 takes one feature, not {len(self.pack)}")
        return self


class RowsCall(Value):
    """`module(*arguments)` or `module({name: argument})`: everything tiled to `B` rows."""

    layout: Literal["rows"] = "rows"
    style: Literal["positional", "dict"]
    arguments: tuple[Argument, ...] = Field(min_length=1)


Call = Annotated[RequestCall | RowsCall, Field(discriminator="layout")]


class Output(Value):
    """Where a task's raw output stands in what the module returns.

    `path` is None where the module returns one tensor, an index into a tuple, or a key of a dict;
    the tensor found there is `[B]`, or `[B, columns]` of which `column` is taken.
    """

    path: int | Name | None = None
    column: int = Field(0, ge=0)


class TaskOutput(Value):
    """One predicted behaviour: where its raw output is, and what makes it a score.

    The score is `clamp(link(raw))`. Links are inverse link functions: `identity`, `sigmoid`, `exp`
    and `expm1`.
    """

    name: Name
    kind: Literal["binary", "duration", "regression"]
    unit: str = Field(max_length=32)
    link: Literal["identity", "sigmoid", "exp", "expm1"]
    clamp: tuple[Float32, Float32] | None = None
    output: Output = Output()
    calibration: Calibration = UNCALIBRATED
    """What the score goes through before it is fused with those of other tasks."""

    @model_validator(mode="after")
    def _platt_is_for_probabilities(self) -> Self:
        if isinstance(self.calibration, Platt) and self.kind != "binary":
            raise ValueError("calibration: platt is for probabilities")
        return self

    @model_validator(mode="after")
    def _clamp_is_an_interval(self) -> Self:
        if self.clamp is not None and not self.clamp[0] < self.clamp[1]:
            raise ValueError("clamp must be (low, high) with low < high")
        return self


class Description(Value):
    """What the maker of a model knows about it: everything but files, version and time."""

    name: Name
    architecture: str = Field(max_length=64)
    inputs: tuple[Input, ...] = Field(min_length=1)
    call: Call = RequestCall()
    tasks: tuple[TaskOutput, ...] = Field(min_length=1)
    ranking: Policy
    precision: Precision = Precision()
    evaluation: Mapping[str, Mapping[str, Figure]] = Field(default={})
    """Held-out figures per task, such as `{"click": {"auc": 0.74}}`."""
    training: dict[str, JsonValue] = Field(default={})
    """The configuration that made the model, for people; serving does not read it."""

    @model_validator(mode="after")
    def _names_are_not_reserved(self) -> Self:
        """Refuse names that mean something else in the V2 protocol."""
        if self.name == "stats":
            rule = "GET /v2/models/stats is the statistics of all models"
            raise ValueError(f'name: "stats" is reserved: {rule}')
        if any(task.name == "rank_score" for task in self.tasks):
            raise ValueError('tasks: "rank_score" is reserved: it is an output of every model')
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        features = [each.name for each in self.inputs]
        tasks = [task.name for task in self.tasks]
        arguments = self.call.arguments if isinstance(self.call, RowsCall) else ()
        for what, names in (
            ("input", features),
            ("task", tasks),
            ("argument", [argument.name for argument in arguments]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"two {what}s have the same name")
        if strangers := set(self.ranking.tasks) - set(tasks):
            raise ValueError(f"the ranking policy weighs unknown tasks: {sorted(strangers)}")
        multiplier = self.ranking.multiplier
        if multiplier is not None and multiplier not in self.traits.multipliers:
            raise ValueError("the ranking policy's multiplier is no candidate input of dim 1")
        if arguments:
            packed = [name for argument in arguments for name in argument.pack]
            if strangers := set(packed) - set(features):
                raise ValueError(f"arguments pack unknown inputs: {sorted(strangers)}")
            if unused := set(features) - set(packed):
                raise ValueError(f"inputs that no argument packs: {sorted(unused)}")
            as_floats = {n for each in arguments if each.dtype == "float32" for n in each.pack}
            for each in self.inputs:
                if each.name in as_floats and getattr(each, "vocabulary_size", 0) > 2**24:
                    raise ValueError(
                        f"{each.name}: float32 tells 2**24 ids apart; pack it as int64"
                    )
        return self

    @cached_property
    def user_inputs(self) -> tuple[Input, ...]:
        """The inputs of the user's side, in call order."""
        return tuple(each for each in self.inputs if each.side == "user")

    @cached_property
    def user_names(self) -> frozenset[str]:
        """The names of the user's features."""
        return frozenset([each.name for each in self.user_inputs])

    @cached_property
    def candidate_names(self) -> frozenset[str]:
        """The names of the candidates' features."""
        return frozenset([each.name for each in self.candidate_inputs])

    @cached_property
    def candidate_inputs(self) -> tuple[Input, ...]:
        """The inputs of the candidates' side, in call order."""
        return tuple(each for each in self.inputs if each.side == "candidate")

    @cached_property
    def vocabulary_files(self) -> frozenset[str]:
        """The files that the inputs' encodings name."""
        encodings = [each.encoding for each in self.inputs if not isinstance(each, DenseInput)]
        return frozenset(each.file for each in encodings if isinstance(each, Listed))

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        """The tasks' names, in the order of the score columns."""
        return tuple(task.name for task in self.tasks)

    @cached_property
    def task_columns(self) -> Mapping[str, int]:
        """The score column of each task."""
        return {name: column for column, name in enumerate(self.task_names)}

    @cached_property
    def traits(self) -> ModelTraits:
        """What ranking needs to know of the model."""
        numbers = (each for each in self.candidate_inputs if isinstance(each, DenseInput))
        return ModelTraits(
            name=self.name,
            tasks=self.task_names,
            policy=self.ranking,
            calibrations={task.name: task.calibration for task in self.tasks},
            probabilities=frozenset(task.name for task in self.tasks if task.kind == "binary"),
            multipliers=frozenset(each.name for each in numbers if each.dim == 1),
        )


class FileDigest(Value):
    """What a file of the artifact must be, byte for byte."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(Description):
    """`model.json`: a `Description` and what was written beside it."""

    format: Literal[1] = 1
    version: int = Field(ge=1)
    created: datetime
    torch_version: str
    files: dict[FileName, FileDigest] = Field(min_length=2)

    @model_validator(mode="after")
    def _files_are_complete(self) -> Self:
        needed = {"model.ts", "golden.safetensors"} | self.vocabulary_files
        if missing := sorted(needed - set(self.files)):
            raise ValueError(f"files: there is no {missing[0]}")
        return self
