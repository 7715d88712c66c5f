"""Configuration of a network: features, tasks and sizes, checked on construction.

Every class is frozen and maps to a TOML table. This module does not import PyTorch. An impossible
combination raises a :class:`ValueError` that names the field and the rule (pydantic's
``ValidationError`` is a ``ValueError``).
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Side = Literal["user", "candidate"]
Pooling = Literal["mean", "sum"]
Scaling = Literal["auto", "standard", "log", "none"]
Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "identity"]
TaskKind = Literal["binary", "duration", "regression"]
Loss = Literal["bce", "weighted_logistic", "log1p_mse", "mse", "huber"]
Link = Literal["sigmoid", "exp", "expm1", "identity"]
BodyName = Literal["single_task", "shared_bottom", "moe", "mmoe", "cgc", "ple"]
Architecture = Literal["single_task", "shared_bottom", "moe", "mmoe", "cgc", "ple", "esmm"]

LOSSES: dict[TaskKind, tuple[Loss, ...]] = {  # the first is the default
    "binary": ("bce",),
    "duration": ("weighted_logistic", "log1p_mse"),
    "regression": ("mse", "huber"),
}
UNITS: dict[TaskKind, str] = {"binary": "probability", "duration": "seconds", "regression": ""}
LINKS: dict[Loss, Link] = {
    "bce": "sigmoid",
    "weighted_logistic": "exp",
    "log1p_mse": "expm1",
    "mse": "identity",
    "huber": "identity",
}


class Record(BaseModel):
    """A frozen table of a configuration file: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DenseFeature(Record):
    """A vector of ``dim`` floats, scaled inside the network (:mod:`models.networks.dense`).

    ``scaling`` is ``"standard"`` (subtract the mean, divide by the standard deviation), ``"log"``
    (the same after log1p), ``"auto"`` (``"log"`` for columns with a heavy tail) or ``"none"``.
    Values are clipped to ``clip``, by default to the range of the training rows unless ``scaling``
    is ``"none"``. With ``fills_missing`` a NaN becomes the median; ``missing_indicator`` adds a
    column per value that is 1 for NaN.
    """

    kind: Literal["dense"] = "dense"
    name: str = Field(min_length=1)
    side: Side
    dim: PositiveInt = 1
    scaling: Scaling = "none"
    clip: tuple[float, float] | None = None
    fills_missing: bool = False
    missing_indicator: bool = False

    @property
    def is_raw(self) -> bool:
        """Whether the values enter the network unchanged."""
        return self.scaling == "none" and self.clip is None and not self.fills_missing

    @property
    def width(self) -> int:
        """Number of input columns of the network."""
        return self.dim * (1 + self.missing_indicator)


class IdFeature(Record):
    """One id, looked up in an embedding table; row 0 of the table is the *unknown* id.

    ``shared_with`` names the feature whose embedding table this one uses.
    """

    kind: Literal["id"] = "id"
    name: str = Field(min_length=1)
    side: Side
    vocabulary_size: PositiveInt
    embedding_dim: PositiveInt
    shared_with: str | None = None


class IdListFeature(Record):
    """Up to ``max_length`` ids, padded with -1; their embeddings are pooled into one vector.

    ``shared_with`` names the feature whose embedding table this one uses.
    """

    kind: Literal["id_list"] = "id_list"
    name: str = Field(min_length=1)
    side: Side
    vocabulary_size: PositiveInt
    embedding_dim: PositiveInt
    pooling: Pooling = "mean"
    max_length: PositiveInt
    shared_with: str | None = None


Feature = Annotated[DenseFeature | IdFeature | IdListFeature, Field(discriminator="kind")]


class Task(Record):
    """One predicted behaviour.

    ``weight`` and ``weight_decay`` are ω₀ and γ of the task's loss weight ω₀·γ^epoch (PLE, RecSys
    2020, eq. 9). ``sample_space`` names a binary label: the task is trained and evaluated on the
    rows where that label is 1; ``None`` means on every row. ``behaviour_weights`` is sample loss
    reweighting: in the loss of a binary task, a row has the weight 1 + Σ weight·label over the
    named labels of that row (:func:`models.training.losses.row_weights`).
    """

    name: str = Field(min_length=1)
    kind: TaskKind
    loss: Loss = Field(default_factory=lambda data: LOSSES[data["kind"]][0])
    weight: float = Field(default=1.0, ge=0)
    weight_decay: float = Field(default=1.0, gt=0)
    sample_space: str | None = None
    behaviour_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    unit: str = Field(default_factory=lambda data: UNITS[data["kind"]])

    @model_validator(mode="after")
    def _check(self) -> "Task":
        if self.loss not in LOSSES[self.kind]:
            allowed = " or ".join(LOSSES[self.kind])
            raise ValueError(f"loss: must be {allowed} for a {self.kind} task, not {self.loss}")
        if self.behaviour_weights and self.kind != "binary":
            raise ValueError(
                f"behaviour_weights: only binary tasks have them, not {self.kind} tasks"
            )
        if self.sample_space == self.name:
            raise ValueError(f"sample_space: {self.name!r} cannot be its own sample space")
        return self

    @property
    def link(self) -> Link:
        """The inverse link, from the network's output to the task's natural unit."""
        return LINKS[self.loss]


class NetworkConfig(Record):
    """The architecture and its sizes; an architecture ignores the fields that it does not use.

    ============= ================================================================
    architecture  fields it uses
    ============= ================================================================
    single_task   none: one MLP and one tower per task
    shared_bottom none: one MLP for all tasks, one tower per task
    moe, mmoe     ``num_experts``
    cgc           ``num_task_experts``, ``num_shared_experts``
    ple           ``num_task_experts``, ``num_shared_experts``, ``num_levels``
    esmm          those of ``esmm_body``
    ============= ================================================================

    Expert and bottom MLPs have ``expert_hidden_units``; with ``expert_output_activation`` the last
    of these layers has an activation too. ``gate_hidden_units = ()`` is the linear gate of the
    papers. A tower is an MLP of ``tower_hidden_units`` and a last linear layer of width one.
    ``dropout`` is applied to the hidden layers of experts and towers, never in a gate.

    With ``esmm``, a binary task whose ``sample_space`` is another binary task is predicted on
    every row, as the product of the two probabilities: see :func:`links`.
    """

    architecture: Architecture
    num_experts: PositiveInt = 8
    num_task_experts: int | tuple[int, ...] = 2
    num_shared_experts: int = Field(default=2, ge=0)
    num_levels: PositiveInt = 2
    expert_hidden_units: tuple[PositiveInt, ...] = Field(default=(256, 128), min_length=1)
    expert_activation: Activation = "relu"
    expert_output_activation: bool = True
    gate_hidden_units: tuple[PositiveInt, ...] = ()
    gate_activation: Activation = "relu"
    gate_bias: bool = True
    tower_hidden_units: tuple[PositiveInt, ...] = (64,)
    tower_activation: Activation = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    esmm_body: BodyName = "single_task"

    @property
    def body(self) -> BodyName:
        """The architecture that computes the logits; with ESMM, the one inside it."""
        return self.esmm_body if self.architecture == "esmm" else self.architecture

    @property
    def levels(self) -> int:
        """Number of extraction levels; CGC is PLE with one level."""
        return self.num_levels if self.body == "ple" else 1

    @model_validator(mode="after")
    def _check(self) -> "NetworkConfig":
        counts = _counts(self.num_task_experts)
        if not counts or min(counts) < 0:
            raise ValueError("num_task_experts: must be 0 or more")
        if self.body in ("cgc", "ple"):
            if min(counts) + self.num_shared_experts < 1:
                raise ValueError(
                    "num_task_experts + num_shared_experts: every task needs at least 1 expert"
                )
            if self.levels > 1 and self.num_shared_experts < 1:
                raise ValueError("num_shared_experts: must be 1 or more when num_levels > 1")
        return self

    def task_experts(self, num_tasks: int) -> tuple[int, ...]:
        """Return the number of experts of each of the ``num_tasks`` tasks.

        Raises:
            ValueError: ``num_task_experts`` has another number of entries.
        """
        if isinstance(self.num_task_experts, int):
            return (self.num_task_experts,) * num_tasks
        if len(self.num_task_experts) != num_tasks:
            raise ValueError(
                f"num_task_experts: has {len(self.num_task_experts)} entries for {num_tasks} tasks"
            )
        return self.num_task_experts


def _counts(counts: int | tuple[int, ...]) -> tuple[int, ...]:
    return (counts,) if isinstance(counts, int) else counts


def entire_space_parents(network: NetworkConfig, tasks: Sequence[Task]) -> tuple[int | None, ...]:
    """For each task, the column whose probability is multiplied with its own (ESMM), or ``None``.

    Raises:
        ValueError: two tasks have the same name; or, with ESMM, no binary task has another binary
            task as ``sample_space``, or a sample space has a sample space itself.
    """
    check_unique("tasks", (task.name for task in tasks))
    if network.architecture != "esmm":
        return (None,) * len(tasks)
    columns = {task.name: k for k, task in enumerate(tasks) if task.kind == "binary"}
    parents = tuple(
        columns.get(task.sample_space or "") if task.kind == "binary" else None for task in tasks
    )
    if all(parent is None for parent in parents):
        raise ValueError(
            "sample_space: esmm needs a binary task whose sample_space is another binary task"
        )
    for task, parent in zip(tasks, parents, strict=True):
        if parent is not None and tasks[parent].sample_space is not None:
            raise ValueError(
                f"sample_space: esmm multiplies two probabilities, but {task.sample_space!r}, the "
                f"sample space of {task.name!r}, has a sample space itself"
            )
    return parents


def links(network: NetworkConfig, tasks: Sequence[Task]) -> tuple[Link, ...]:
    """The inverse link of every output column of a network.

    An ESMM product column is log pCTCVR = log(pCTR · pCVR), a number ≤ 0: its link is ``exp``.
    Every other column has the link of its task.
    """
    parents = entire_space_parents(network, tasks)
    return tuple(
        task.link if parent is None else "exp" for task, parent in zip(tasks, parents, strict=True)
    )


def check_unique(field: str, names: Iterable[str]) -> None:
    """Raise a ValueError if a name is used twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{field}: the name {name!r} is used twice")
        seen.add(name)
