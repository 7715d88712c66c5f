"""A module that somebody else made, described so that it can become an artifact.

`gatehouse import` is told a `ForeignModel`, by a TOML file or by flags. What can be found out by
running the module, such as where each task's output stands, need not be told: that is left to
`app.importing.trial`. Nothing here knows PyTorch.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.artifacts.manifest import (
    Argument,
    DenseInput,
    Description,
    Float32,
    Input,
    Name,
    Output,
    Precision,
    RowsCall,
    TaskOutput,
)
from app.files import parse_toml, read_small_file
from app.ranking.policy import Policy

Meaning = Literal[
    "probability", "logit", "log-probability", "seconds", "log-seconds", "log1p-seconds", "number"
]
MEANINGS: Mapping[Meaning, Mapping[str, str]] = {
    "probability": {"kind": "binary", "unit": "probability", "link": "identity"},
    "logit": {"kind": "binary", "unit": "probability", "link": "sigmoid"},
    "log-probability": {"kind": "binary", "unit": "probability", "link": "exp"},
    "seconds": {"kind": "duration", "unit": "seconds", "link": "identity"},
    "log-seconds": {"kind": "duration", "unit": "seconds", "link": "exp"},
    "log1p-seconds": {"kind": "duration", "unit": "seconds", "link": "expm1"},
    "number": {"kind": "regression", "unit": "", "link": "identity"},
}
"""What a module gives for a task, and how that becomes a score."""

_MAX_FILE_BYTES = 1 << 20
_COLUMN = re.compile(r"(?P<name>[^@:]+)(?:@(?P<vocabulary>\d+)|:(?P<dim>\d+))?")


class ForeignInvalid(ValueError):
    """A description cannot be used. The message is one line: place and rule."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ForeignTask(_Table):
    """One predicted behaviour; where its output stands is found by a trial if it is not told."""

    name: Name
    gives: Meaning
    clamp: tuple[Float32, Float32] | None = None
    output: Output | None = None


class ForeignModel(_Table):
    """What must be known of a module to call it and to read its answer.

    Attributes:
        inputs: the features; an id outside its vocabulary is refused unless `unknown` names a row,
            for a foreign row 0 is a real id. An id list states its `padding`.
        style: whether the module takes its arguments one by one, or one dict of them.
        arguments: its tensors; left out, all inputs side by side as one float32 matrix.
        ranking: left out, the power product of all scores, or their sum where one is a plain
            number; every weight 1.
        ranges: the interval that a dense input's trial values are drawn from; left out, they are
            standard normal.
    """

    name: Name
    architecture: str = Field("imported", max_length=64)
    inputs: tuple[Input, ...] = Field(min_length=1)
    style: Literal["positional", "dict"] = "positional"
    arguments: tuple[Argument, ...] = ()
    tasks: tuple[ForeignTask, ...] = Field(min_length=1)
    ranking: Policy | None = None
    ranges: dict[Name, tuple[Float32, Float32]] = {}

    @field_validator("inputs", mode="before")
    @classmethod
    def _ids_are_foreign(cls, inputs: object) -> object:
        if not isinstance(inputs, list | tuple):
            return inputs
        return [_foreign(each) if isinstance(each, Mapping) else each for each in inputs]

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        self.description({task.name: Output() for task in self.tasks})
        stated = sum(task.output is not None for task in self.tasks)
        if stated not in (0, len(self.tasks)):
            raise ValueError("tasks: either every one states its output, or none does")
        dense = {each.name for each in self.inputs if isinstance(each, DenseInput)}
        for name, (low, high) in self.ranges.items():
            if name not in dense:
                raise ValueError(f"ranges.{name}: there is no dense input of this name")
            if not low < high:
                raise ValueError(f"ranges.{name}: must be [low, high] with low < high")
        return self

    def description(
        self, outputs: Mapping[str, Output], precision: Precision | None = None
    ) -> Description:
        """Return what serving must know, given where each task's output stands."""
        everything = Argument(name="x", pack=tuple(f.name for f in self.inputs), dtype="float32")
        return Description(
            name=self.name,
            architecture=self.architecture,
            inputs=self.inputs,
            call=RowsCall(style=self.style, arguments=self.arguments or (everything,)),
            tasks=tuple(_task(each, outputs[each.name]) for each in self.tasks),
            ranking=self.ranking or self._all_alike(),
            precision=precision or Precision(),
        )

    def _all_alike(self) -> Policy:
        is_product = all(MEANINGS[task.gives]["kind"] != "regression" for task in self.tasks)
        return Policy(
            formula="power_product" if is_product else "weighted_sum",
            weights={task.name: 1.0 for task in self.tasks},
        )


def read(path: Path) -> ForeignModel:
    """Read a description from a TOML file.

    Raises:
        ForeignInvalid: the file cannot be read, or breaks a rule.
    """
    try:
        tables = parse_toml(read_small_file(path, max_bytes=_MAX_FILE_BYTES))
    except OSError as error:
        raise ForeignInvalid(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ForeignInvalid(f"{path}: is not TOML: {error}") from error
    return _validated(tables, f"{path}: ")


def from_flags(
    name: str, columns: Sequence[str], user: Sequence[str], tasks: Sequence[str]
) -> ForeignModel:
    """Describe a module that takes one dense matrix.

    Args:
        name: the model's name in the store.
        columns: the matrix from left to right: `age`, `gender@3` for an id out of a vocabulary of
            3, `embedding:16` for 16 columns of numbers.
        user: which of them are the user's; the others are the candidates'.
        tasks: `click:logit`: a task and what the module gives for it, in output order.

    Raises:
        ForeignInvalid: a flag breaks a rule.
    """
    inputs = [_column(column, user) for column in columns]
    if strangers := sorted(set(user) - {each["name"] for each in inputs}):
        raise ForeignInvalid(f"--user: there is no column {strangers[0]!r}")
    pairs = [task.partition(":") for task in tasks]
    told = [{"name": task, "gives": gives} for task, _, gives in pairs]
    return _validated({"name": name, "inputs": inputs, "tasks": told}, "")


def _column(column: str, user: Sequence[str]) -> dict[str, Any]:
    parts = _COLUMN.fullmatch(column)
    if parts is None:
        raise ForeignInvalid(f"--columns: {column!r} must be NAME, NAME@VOCABULARY or NAME:WIDTH")
    name = parts["name"]
    fields: dict[str, Any] = {"name": name, "side": "user" if name in user else "candidate"}
    if parts["vocabulary"]:
        return fields | {"kind": "id", "vocabulary_size": int(parts["vocabulary"])}
    return fields | {"kind": "dense", "dim": int(parts["dim"] or 1)}


def _foreign(told: Mapping[str, Any]) -> Mapping[str, Any]:
    if told.get("kind") == "id_list" and "padding" not in told:
        raise ValueError(f"{told.get('name')}: an id_list must state its padding")
    return {"unknown": "reject", **told} if told.get("kind") in ("id", "id_list") else told


def _task(task: ForeignTask, output: Output) -> TaskOutput:
    return TaskOutput.model_validate(
        {
            "name": task.name,
            "clamp": task.clamp,
            "output": task.output or output,
            **MEANINGS[task.gives],
        }
    )


def _validated(tables: Mapping[str, Any], place: str) -> ForeignModel:
    try:
        return ForeignModel.model_validate(tables)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        where = ".".join(map(str, problems[0]["loc"]))
        rule = problems[0]["msg"].removeprefix("Value error, ")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ForeignInvalid(f"{place}{where}{': ' if where else ''}{rule}{more}") from error
