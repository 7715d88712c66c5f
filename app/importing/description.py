"""The description of a module from elsewhere, from which it becomes an artifact.

A TOML file or command-line options give `gatehouse import` a `ForeignModel`. It need not say what a
run can find out, such as the place of each task's output: `app.importing.trial` does that. Nothing
here imports PyTorch.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.artifacts.encoding import Hashed
from app.artifacts.inputs import DenseInput, FeatureName, Float32, IdListInput, Input
from app.artifacts.manifest import (
    Argument,
    Description,
    Name,
    Output,
    Precision,
    RowsCall,
    TaskOutput,
    first_problem,
)
from app.errors import did_you_mean
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
"""What a module returns for a task, and how that becomes a score."""

_MAX_FILE_BYTES = 1 << 20
_COLUMN = re.compile(r"(?P<name>[^@:]+)(?:@(?P<vocabulary>\d+)|:(?P<dim>\d+))?")


class ForeignInvalid(ValueError):
    """A description cannot be used. The message is one line: the place and the rule."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ForeignTask(_Table):
    """One predicted behaviour. A trial finds the place of its output, unless `output` states it."""

    name: Name
    gives: Meaning
    clamp: tuple[Float32, Float32] | None = None
    output: Output | None = None


class ForeignModel(_Table):
    """How to call a module and how to read what it returns.

    Attributes:
        inputs: the features. An id outside its vocabulary is an error unless `unknown` names a row:
            row 0 of a module from elsewhere may be a real id. An id list must state its `padding`.
        style: whether the module takes its arguments one by one, or as one dict.
        arguments: its tensors. By default one float32 matrix with all inputs side by side.
        ranking: by default the power product of all scores, or their sum if one of them is a plain
            number, with every weight 1.
        ranges: the interval of a dense input's trial values. By default they are standard normal.
        unused: inputs that the module is known to ignore. Any other input must have an influence.
    """

    name: Name
    architecture: str = Field("imported", max_length=64)
    inputs: tuple[Input, ...] = Field(min_length=1)
    style: Literal["positional", "dict"] = "positional"
    arguments: tuple[Argument, ...] = ()
    tasks: tuple[ForeignTask, ...] = Field(min_length=1)
    ranking: Policy | None = None
    ranges: dict[FeatureName, tuple[Float32, Float32]] = {}
    unused: tuple[FeatureName, ...] = ()

    @field_validator("inputs", mode="before")
    @classmethod
    def _unknown_ids_are_errors(cls, inputs: object) -> object:
        if not isinstance(inputs, list | tuple):
            return inputs
        return [
            _rejecting(feature) if isinstance(feature, Mapping) else feature for feature in inputs
        ]

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        described = self.description({task.name: Output() for task in self.tasks})
        object.__setattr__(self, "inputs", described.inputs)  # frozen
        for feature in self.inputs:
            if isinstance(feature, IdListInput) and feature.reserves_padding:
                _check_padding(feature)
        stated = sum(task.output is not None for task in self.tasks)
        if stated not in (0, len(self.tasks)):
            raise ValueError("tasks: state the output of every task, or of none")
        names = [feature.name for feature in self.inputs]
        for name in self.unused:
            if name not in names:
                raise ValueError(f'unused: unknown input "{name}"{did_you_mean(name, names)}')
        dense = {feature.name for feature in self.inputs if isinstance(feature, DenseInput)}
        for name, (low, high) in self.ranges.items():
            if name not in dense:
                raise ValueError(f'ranges: unknown dense input "{name}"{did_you_mean(name, dense)}')
            if not low < high:
                raise ValueError(f"ranges.{name}: must be [low, high] with low < high")
        return self

    def description(
        self, outputs: Mapping[str, Output], precision: Precision | None = None
    ) -> Description:
        """Return the description that serving needs, given the place of each task's output."""
        everything = Argument(name="x", pack=tuple(f.name for f in self.inputs), dtype="float32")
        return Description(
            name=self.name,
            architecture=self.architecture,
            inputs=self.inputs,
            call=RowsCall(style=self.style, arguments=self.arguments or (everything,)),
            tasks=tuple(_task(task, outputs[task.name]) for task in self.tasks),
            ranking=self.ranking or self._default_ranking(),
            precision=precision or Precision(),
        )

    def _default_ranking(self) -> Policy:
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
        raise ForeignInvalid(f"{path}: not valid TOML: {error}") from error
    return validated(tables, f"{path}: ")


def from_flags(
    name: str, columns: Sequence[str], user: Sequence[str], tasks: Sequence[str]
) -> ForeignModel:
    """Describe a module that takes one dense matrix.

    Args:
        name: the model's name in the store.
        columns: the matrix from left to right: `age`, `gender@3` for an id from a vocabulary of 3,
            `embedding:16` for 16 columns of numbers.
        user: the columns that are user features; the others are candidate features.
        tasks: `click:logit`: a task and what the module returns for it, in output order.

    Raises:
        ForeignInvalid: an option breaks a rule.
    """
    inputs = [_column(column, user) for column in columns]
    names = [feature["name"] for feature in inputs]
    if unknown := sorted(set(user) - set(names)):
        raise ForeignInvalid(
            f'--user: unknown column "{unknown[0]}"{did_you_mean(unknown[0], names)}'
        )
    pairs = [task.partition(":") for task in tasks]
    described = [{"name": task, "gives": gives} for task, _, gives in pairs]
    return validated({"name": name, "inputs": inputs, "tasks": described}, "")


def _column(column: str, user: Sequence[str]) -> dict[str, Any]:
    parts = _COLUMN.fullmatch(column)
    if parts is None:
        raise ForeignInvalid(f'--columns: "{column}" must be NAME, NAME@VOCABULARY or NAME:WIDTH')
    name = parts["name"]
    fields: dict[str, Any] = {"name": name, "side": "user" if name in user else "candidate"}
    if parts["vocabulary"]:
        return fields | {"kind": "id", "vocabulary_size": int(parts["vocabulary"])}
    return fields | {"kind": "dense", "dim": int(parts["dim"] or 1)}


def _rejecting(table: Mapping[str, Any]) -> Mapping[str, Any]:
    if table.get("kind") == "id_list" and "padding" not in table:
        raise ValueError(f"{table.get('name')}: an id_list must state its padding")
    return {"unknown": "reject", **table} if table.get("kind") in ("id", "id_list") else table


def _check_padding(feature: IdListInput) -> None:
    """Refuse a list that would turn ids into its padding, where a mask takes them for no ids."""
    row, encoding = feature.padding, feature.encoding
    if feature.unknown == row:
        raise ValueError(
            f"{feature.name}: unknown ids would be padding, row {row}, but something is derived "
            'from the list; name another row, or unknown = "reject"'
        )
    if isinstance(encoding, Hashed) and 1 <= row <= encoding.buckets:
        raise ValueError(
            f"{feature.name}: the hash gives ids the rows 1 to {encoding.buckets}, but row {row} "
            "is the padding, and something is derived from the list"
        )


def _task(task: ForeignTask, output: Output) -> TaskOutput:
    return TaskOutput.model_validate(
        {
            "name": task.name,
            "clamp": task.clamp,
            "output": task.output or output,
            **MEANINGS[task.gives],
        }
    )


def validated(tables: Mapping[str, Any], place: str) -> ForeignModel:
    """Return a description from its tables; errors begin with `place`.

    Raises:
        ForeignInvalid: a rule is broken.
    """
    try:
        return ForeignModel.model_validate(tables)
    except ValidationError as error:
        raise ForeignInvalid(f"{place}{first_problem(error, tables, ForeignModel)}") from error
