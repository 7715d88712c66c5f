"""The manifest: an artifact's files, inputs, outputs, precision and ranking policy.

`model.json` is one `Manifest`. It describes any TorchScript module, not only the networks of this
repository: which features there are, how they are packed into the module's arguments, which output
belongs to which task, and how a raw output becomes a score.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    model_validator,
)

from app import file_problems
from app.artifacts.distributions import Distributions
from app.artifacts.encoding import (
    VOCABULARY_FILE_PATTERN,
    Listed,
)
from app.artifacts.inputs import (
    FEATURE_NAME_PATTERN,
    DenseInput,
    FeatureName,
    Float32,
    IdListInput,
    Input,
)
from app.artifacts.store import LARGEST_VERSION
from app.artifacts.value import Value
from app.errors import did_you_mean
from app.ranking.calibration import NO_CALIBRATION, Calibration, Platt
from app.ranking.policies import ModelTraits
from app.ranking.policy import Policy

_LARGEST_ID: Mapping[str, int] = {"float32": 2**24, "int32": 2**31}
"""The largest integer that a dtype holds exactly, of those that do not hold all."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
_FILE_NAME = r"^(model\.(ts|pt2)|golden\.safetensors|vocabulary\.[A-Za-z0-9][\w.-]{0,63}\.jsonl)$"
PATTERNS = {
    _NAME: 'must have 1 to 64 letters, digits, "_", "." or "-", the first a letter or a digit',
    FEATURE_NAME_PATTERN: "must have 1 to 64 characters, no slash or control character among "
    "them, no dot at the beginning and no space at either end",
    _FILE_NAME: "must be model.ts, model.pt2, golden.safetensors or vocabulary.NAME.jsonl",
    VOCABULARY_FILE_PATTERN: "must be vocabulary.NAME.jsonl",
}
"""The rules that these patterns stand for, in messages."""

Name = Annotated[str, Field(pattern=_NAME)]
ForeignName = Annotated[str, Field(min_length=1, max_length=256)]
"""The name of an argument or an output of a module from elsewhere: any text."""
Label = Annotated[str, Field(min_length=1, max_length=80)]
FileName = Annotated[str, Field(pattern=_FILE_NAME)]
Figure = Annotated[
    float | None, BeforeValidator(lambda f: None if isinstance(f, float) and math.isnan(f) else f)
]
"""A measurement. None where there was nothing to measure: JSON has no NaN."""

Device = Literal["cpu", "cuda"]
PrecisionName = Literal["fp32", "bf16", "fp16", "int8-embeddings"]
"""The type of weights and activations. With `int8-embeddings`, embedding tables are int8 with one
scale per row, and all else is fp32. Softmax and logits are fp32 in every precision."""
Tolerance = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Change = Annotated[float, Field(ge=0, allow_inf_nan=False)]

MOST_GATE_WEIGHTS = 1024
"""The most weights of one version that become time series."""
MOST_FOLDED = 2**20
"""The most numbers that a version may make of an item; a row of a table has 4 bytes for each."""

FP32_TOLERANCE: Mapping[Device, float] = {"cpu": 1e-5, "cuda": 1e-4}
"""Tolerance of fp32: how much outputs may differ between machines and between batches."""


class RequestCall(Value):
    """`module(user, candidate, row_to_request)`: user features once per request.

    `user` and `candidate` are `Dict[str, Tensor]` with `R` and `B` rows. `row_to_request` is int64
    `[B]`: the user row of each candidate row.
    """

    layout: Literal["request"] = "request"


class Derived(Value):
    """A part of an argument that is computed from an id list, so that requests do not contain it.

    Attributes:
        of: the id list.
        take: `length` is the position of its last id, counted from 1 on the side that is not
            padded, one column; `mask` is 1 for ids and 0 for padding, `padding` the opposite;
            `ids` are the ids.
        at_least: a shorter list counts as one of this length, in a length, a mask or a padding.
        empty: the row that is in a list without ids, for a module that cannot take such a list.
    """

    of: FeatureName
    take: Literal["length", "mask", "padding", "ids"]
    at_least: int = Field(0, ge=0)
    empty: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.take == "ids" and self.at_least:
            raise ValueError('at_least is for take = "length", "mask" or "padding"')
        if self.take != "ids" and self.empty is not None:
            raise ValueError('empty is for take = "ids"')
        return self


Part = Annotated[
    Annotated[FeatureName, Tag("feature")] | Annotated[Derived, Tag("derived")],
    Discriminator(lambda part: "feature" if isinstance(part, str) else "derived"),
]
"""A feature by name, or what is derived from one."""


class Argument(Value):
    """One tensor argument of a `rows` call: parts side by side, in one dtype.

    A part is a feature, or derived from one. `rank` 1 is `[B]` and takes one part of width 1.
    `rank` 2 is `[B, total width]`. A `bool` is true where a value is not zero.
    """

    name: ForeignName
    pack: tuple[Part, ...] = Field(min_length=1)
    dtype: Literal["float32", "float64", "int64", "int32", "bool"]
    rank: Literal[1, 2] = 2

    @model_validator(mode="after")
    def _rank_1_takes_one_part(self) -> Self:
        if self.rank == 1 and len(self.pack) > 1:
            raise ValueError(f"rank 1 takes one feature, not {len(self.pack)}")
        if self.rank == 1 and isinstance(self.pack[0], Derived) and self.pack[0].take != "length":
            raise ValueError(f'rank 1 takes one number per row, but take is "{self.pack[0].take}"')
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """The features that the argument reads."""
        return tuple(part if isinstance(part, str) else part.of for part in self.pack)

    def problem(self, inputs: Mapping[str, Input]) -> str | None:
        """Return why the argument cannot be made of its features; None if it can."""
        largest = _LARGEST_ID.get(self.dtype)
        for part, feature in (
            (part, inputs[name]) for part, name in zip(self.pack, self.features, strict=True)
        ):
            if isinstance(part, Derived):
                if not isinstance(feature, IdListInput):
                    return f"{self.name}: only an id_list has {part.take}; {part.of} is not one"
                if part.empty is not None and part.empty >= feature.vocabulary_size:
                    return f"{self.name}: empty must be below {feature.vocabulary_size}"
            holds_ids = isinstance(part, str) or part.take == "ids"
            if isinstance(feature, DenseInput) or not holds_ids or largest is None:
                continue
            if feature.vocabulary_size > largest:
                return (
                    f"{feature.name}: {self.dtype} holds integers up to 2**"
                    f"{largest.bit_length() - 1} exactly; pack larger ids as int64"
                )
        return None


class RowsCall(Value):
    """`module(*arguments)` or `module({name: argument})`: user features repeated to `B` rows."""

    layout: Literal["rows"] = "rows"
    style: Literal["positional", "dict"]
    arguments: tuple[Argument, ...] = Field(min_length=1)


Call = Annotated[RequestCall | RowsCall, Field(discriminator="layout")]


class Output(Value):
    """The place of a task's raw output in the value that the module returns.

    `path` is None if the module returns one tensor, an index of a tuple or list, a field of a named
    tuple, or a key of a dict. The tensor there is `[B]`, or `[B, columns]` of which `column` is
    taken.
    """

    path: int | ForeignName | None = None
    column: int = Field(0, ge=0)


class TaskOutput(Value):
    """One predicted behaviour: where its raw output is, and how that becomes a score.

    The score is `clamp(link(raw))`. `link` is an inverse link function: `identity`, `sigmoid`,
    `exp` or `expm1`.
    """

    name: Name
    kind: Literal["binary", "duration", "regression"]
    unit: str = Field(max_length=32)
    link: Literal["identity", "sigmoid", "exp", "expm1"]
    clamp: tuple[Float32, Float32] | None = None
    output: Output = Output()
    calibration: Calibration = NO_CALIBRATION
    """Applied to the score before it is combined with the scores of other tasks."""

    @model_validator(mode="after")
    def _platt_is_for_probabilities(self) -> Self:
        if isinstance(self.calibration, Platt) and self.kind != "binary":
            raise ValueError("calibration: platt applies to binary tasks only")
        return self

    @model_validator(mode="after")
    def _clamp_is_an_interval(self) -> Self:
        if self.clamp is not None and not self.clamp[0] < self.clamp[1]:
            raise ValueError("clamp must be (low, high) with low < high")
        return self


class Parity(Value):
    """How much the outputs of reduced precision differ from fp32, on held-out rows.

    The change from `g` to `y` is `|y - g| / (1 + |g|)`, as in the check of golden examples.

    Attributes:
        rows: held-out rows that were compared.
        raw_change: the largest change of a raw output, per task.
        score_change: the largest change of a score, per task.
        auc_change: the change of a binary task's AUC, or of a duration's XAUC.
        top_50_overlap: the share of the 50 best candidates in fp32 that stay among the 50 best.
        kendall_tau: the rank correlation of the rank scores, Kendall's τ-b.
    """

    rows: int = Field(ge=1)
    raw_change: Mapping[Name, Change]
    score_change: Mapping[Name, Change]
    auc_change: Mapping[Name, Change]
    top_50_overlap: float = Field(ge=0, le=1)
    kendall_tau: float = Field(ge=-1, le=1)


class Precision(Value):
    """The precision of the module, and how close its outputs must be to the golden examples.

    An output `y` matches its golden `g` if `|y - g| <= tolerance * (1 + |g|)`. Reduced precision
    states its parity with fp32.
    """

    name: PrecisionName = "fp32"
    tolerance: dict[Device, Tolerance] = Field(default=dict(FP32_TOLERANCE))
    parity: Parity | None = None

    @model_validator(mode="after")
    def _reduced_precision_has_parity(self) -> Self:
        if (self.name == "fp32") != (self.parity is None):
            raise ValueError("parity is required for reduced precision, and not allowed for fp32")
        return self

    @classmethod
    def reduced(cls, name: PrecisionName, parity: Parity) -> Self:
        """Return a precision whose tolerance is twice the worst change, at least fp32's."""
        worst = max([*parity.raw_change.values(), *parity.score_change.values()])
        tolerance = {device: max(full, 2 * worst) for device, full in FP32_TOLERANCE.items()}
        return cls(name=name, tolerance=tolerance, parity=parity)


class GateLevel(Value):
    """The gates of one level of a mixture of experts.

    The module has a method `gate_weights`, with the arguments of `forward`. It returns one tensor
    `[B, gates, experts]` for each level: the weight that each gate gives to each expert.

    Attributes:
        gates: their names, in the order of the weights.
        experts: their names, in the order of the weights.
        sees: for each gate the positions of the experts that it chooses from; its weights of
            these sum to 1, and the others are 0.
    """

    gates: tuple[Label, ...] = Field(min_length=1)
    experts: tuple[Label, ...] = Field(min_length=1)
    sees: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...]

    @property
    def cells(self) -> int:
        """How many weights are not always 0."""
        return sum(map(len, self.sees))

    @model_validator(mode="after")
    def _names_and_positions_agree(self) -> Self:
        for what, names in (("gates", self.gates), ("experts", self.experts)):
            if len(set(names)) < len(names):
                raise ValueError(f"two {what} have the same name")
        if len(self.sees) != len(self.gates):
            raise ValueError(f"sees has {len(self.sees)} entries for {len(self.gates)} gates")
        for gate, positions in zip(self.gates, self.sees, strict=True):
            is_known = positions and max(positions) < len(self.experts)
            if not is_known or len(set(positions)) < len(positions):
                raise ValueError(
                    f"sees of gate {gate}: must be different positions below {len(self.experts)}"
                )
        return self


class Description(Value):
    """The description of a model: the manifest without files, version and time."""

    name: Name
    architecture: str = Field(max_length=64)
    inputs: tuple[Input, ...] = Field(min_length=1)
    call: Call = RequestCall()
    tasks: tuple[TaskOutput, ...] = Field(min_length=1)
    ranking: Policy
    precision: Precision = Precision()
    gates: tuple[GateLevel, ...] = Field(default=(), max_length=64)
    """The levels of a mixture of experts, whose gates are observed; empty for other models."""
    folded_width: int | None = Field(None, ge=1, le=MOST_FOLDED)
    """The width H of the module's method `fold`; None for a module that cannot be folded.

    `fold(candidate)` returns what the first layers make of candidates alone, float32 `[B, H]`, so
    that a table of items may keep it. `score_folded(user, folded, row_to_request)` returns what
    `forward` does. Both take the features as the layout `request` does."""
    evaluation: Mapping[str, Mapping[str, Figure]] = Field(default={})
    """Held-out metrics per task, such as `{"click": {"auc": 0.74}}`."""
    training: dict[str, JsonValue] = Field(default={})
    """The configuration of the training run, for people. Serving does not read it."""
    distributions: Distributions | None = None
    """Of features and scores in training: live traffic is compared with them."""

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
    def _gates_can_be_observed(self) -> Self:
        if (cells := sum(level.cells for level in self.gates)) > MOST_GATE_WEIGHTS:
            raise ValueError(f"gates: {cells} weights, at most {MOST_GATE_WEIGHTS} are observed")
        if self.gates and not isinstance(self.call, RequestCall):
            raise ValueError('gates: the layout of the call must be "request"')
        return self

    @model_validator(mode="after")
    def _candidates_can_be_folded(self) -> Self:
        if self.folded_width is not None:
            if not isinstance(self.call, RequestCall):
                raise ValueError('folded_width: the layout of the call must be "request"')
            if all(input_.side == "user" for input_ in self.inputs):
                raise ValueError("folded_width: there is no candidate input")
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        features = [input_.name for input_ in self.inputs]
        tasks = [task.name for task in self.tasks]
        arguments = self.call.arguments if isinstance(self.call, RowsCall) else ()
        for what, names in (
            ("input", features),
            ("task", tasks),
            ("argument", [argument.name for argument in arguments]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"two {what}s have the same name")
        return self

    @model_validator(mode="after")
    def _ranking_has_its_inputs(self) -> Self:
        tasks = [task.name for task in self.tasks]
        if unknown := sorted(set(self.ranking.tasks) - set(tasks)):
            raise ValueError(
                f"ranking: unknown task {_quoted(unknown)}; tasks: {', '.join(tasks)}"
                f"{did_you_mean(unknown[0], tasks)}"
            )
        multiplier = self.ranking.multiplier
        if multiplier is not None and multiplier not in self.traits.multipliers:
            raise ValueError(
                f'ranking: multiplier "{multiplier}" must be a dense candidate input of dim 1, '
                "and not one that may be NaN"
            )
        return self

    @model_validator(mode="after")
    def _arguments_pack_every_input(self) -> Self:
        if not isinstance(self.call, RowsCall):
            return self
        inputs = {input_.name: input_ for input_ in self.inputs}
        packed = {name for argument in self.call.arguments for name in argument.features}
        if unknown := sorted(packed - inputs.keys()):
            raise ValueError(
                f"arguments: unknown input {_quoted(unknown)}{did_you_mean(unknown[0], inputs)}"
            )
        if unused := sorted(inputs.keys() - packed):
            raise ValueError(f"arguments: no argument packs the input {_quoted(unused)}")
        for argument in self.call.arguments:
            if (problem := argument.problem(inputs)) is not None:
                raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _measured_lists_reserve_their_padding(self) -> Self:
        arguments = self.call.arguments if isinstance(self.call, RowsCall) else ()
        measured = {
            part.of for argument in arguments for part in argument.pack if isinstance(part, Derived)
        }
        if measured:
            inputs = tuple(
                input_.measured()
                if isinstance(input_, IdListInput) and input_.name in measured
                else input_
                for input_ in self.inputs
            )
            object.__setattr__(self, "inputs", inputs)  # frozen
        return self

    @cached_property
    def user_inputs(self) -> tuple[Input, ...]:
        """The user features, in call order."""
        return tuple(input_ for input_ in self.inputs if input_.side == "user")

    @cached_property
    def user_names(self) -> frozenset[str]:
        """The names of the user's features."""
        return frozenset([input_.name for input_ in self.user_inputs])

    @cached_property
    def candidate_names(self) -> frozenset[str]:
        """The names of the candidates' features."""
        return frozenset([input_.name for input_ in self.candidate_inputs])

    @cached_property
    def candidate_inputs(self) -> tuple[Input, ...]:
        """The candidate features, in call order."""
        return tuple(input_ for input_ in self.inputs if input_.side == "candidate")

    @cached_property
    def vocabulary_files(self) -> frozenset[str]:
        """The files that the inputs' encodings name."""
        encodings = [
            input_.encoding for input_ in self.inputs if not isinstance(input_, DenseInput)
        ]
        return frozenset(encoding.file for encoding in encodings if isinstance(encoding, Listed))

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
        """The part of the description that ranking uses."""
        numbers = (input_ for input_ in self.candidate_inputs if isinstance(input_, DenseInput))
        return ModelTraits(
            name=self.name,
            tasks=self.task_names,
            policy=self.ranking,
            calibrations={task.name: task.calibration for task in self.tasks},
            probabilities=frozenset(task.name for task in self.tasks if task.kind == "binary"),
            multipliers=frozenset(
                input_.name for input_ in numbers if input_.dim == 1 and input_.missing != "nan"
            ),
        )


class FileDigest(Value):
    """The SHA-256 and the size (bytes) of a file of the artifact."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(Description):
    """`model.json`: a `Description`, the files of the artifact, its version and time."""

    format: Literal[1] = 1
    version: int = Field(ge=1, le=LARGEST_VERSION)
    created: datetime
    torch_version: str
    files: dict[FileName, FileDigest] = Field(min_length=2)

    @cached_property
    def label(self) -> str:
        """`name/version`, as in logs and metrics."""
        return f"{self.name}/{self.version}"

    def to_json(self) -> bytes:
        """Return the content of `model.json`.

        Servers from before a key was known refuse it, so a key that says nothing is left out.
        """
        left_out = {"folded_width"} if self.folded_width is None else None
        return self.model_dump_json(indent=2, exclude=left_out).encode() + b"\n"

    @model_validator(mode="after")
    def _files_are_complete(self) -> Self:
        needed = {"model.ts", "golden.safetensors"} | self.vocabulary_files
        if missing := sorted(needed - set(self.files)):
            raise ValueError(f"files: {missing[0]} is missing")
        return self


def first_problem(
    error: ValidationError, document: object, model: type[BaseModel] = Manifest
) -> str:
    """Return the first problem of a document in one line: its place, the rule, how many more.

    Args:
        error: from validating it.
        document: its content, or its text in JSON.
        model: the model of the document: a manifest, or one with the same parts.
    """
    is_json = isinstance(document, bytes)
    if isinstance(document, bytes):
        try:
            document = json.loads(document)
        except (ValueError, RecursionError):
            document = None
    return file_problems.first_problem(error, model, document, PATTERNS, is_json=is_json)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
