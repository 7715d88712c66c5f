"""One TOML file, one experiment: network, tasks, data, training and ranking, checked when read.

```toml
name = "feed"                        # the model's name in the store

[network]                            # models.networks.config.NetworkConfig
architecture = "mmoe"

[[tasks]]                            # models.networks.config.Task; the order is that of the outputs
name = "click"
kind = "binary"

[data]                               # models.data: source = "feed" or "synthetic", and its size;
source = "feed"                      # or "files" and a schema_file: models.data.schema

[embedding]                          # of every id and id list; the data says which there are
dim = 16

[training]                           # TrainingConfig
epochs = 5

[ranking]                            # app.ranking.policy.Policy: how task scores are fused
weights = { click = 1.0 }

[export]                             # ExportConfig: precision, and what it may cost; left out,
precision = "bf16"                   # fp32; else bf16, fp16 or int8-embeddings, if near enough

[clamp]                              # per task: the interval that scores are cut to
dwell = [0, 600]
```

`extends = "other.toml"`, a path beside the file, takes every table that the file itself does not
have from that other one, whole; so experiments that differ in one table are one table long.
"""

import tomllib
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from app.artifacts.manifest import Float32, Name
from app.artifacts.precision import PrecisionName
from app.ranking.policy import Policy
from models import data
from models.data import SOURCES, DataConfig
from models.networks.config import Feature, NetworkConfig, Pooling, Record, Task, links

LONGEST_UNIT = 32  # that a manifest holds


class ExperimentInvalid(ValueError):
    """An experiment file cannot be used. The message is one line: file, field, rule."""


class EmbeddingConfig(Record):
    """The embedding tables: `dim` columns each; `pooling` makes one vector of an id list."""

    dim: PositiveInt = 16
    pooling: Pooling = "mean"


class TrainingConfig(Record):
    """How the network learns.

    A batch has about `batch_rows` candidates, cut between requests. Training stops after `epochs`,
    or when the validation loss has not improved for `patience` epochs; the best epoch's weights
    are kept either way. The optimiser is AdamW, which is Adam where `weight_decay` is 0.

    `threads` work within an operator. One is the default, because operators of this size gain
    little from a second thread, and lose much where it has to wait for a busy core.
    """

    epochs: PositiveInt = 10
    batch_rows: PositiveInt = 1024
    learning_rate: PositiveFloat = 1e-3
    weight_decay: float = Field(default=0.0, ge=0)
    patience: PositiveInt = 2
    seed: int = Field(default=0, ge=0)
    threads: PositiveInt = 1


class ExportConfig(Record):
    """What is published: fp32 as trained, or reduced precision where it stays near to that.

    The thresholds of the parity gate, on held-out rows (:class:`app.artifacts.precision.Parity`):
    no probability may change by more than `max_probability_change`, no seconds or other number by
    more than the share `max_number_change`, no AUC (XAUC of durations) by more than
    `max_auc_change`; of a user's 50 best of 500 candidates at least `min_top_50_overlap` must stay
    among the 50 best, and Kendall's τ of their order must reach `min_kendall_tau`.

    With `torch_export`, the artifact holds the network as a `torch.export` program too.
    """

    precision: PrecisionName = "fp32"
    max_probability_change: PositiveFloat = 0.01
    max_number_change: PositiveFloat = 0.05
    max_auc_change: PositiveFloat = 0.001
    min_top_50_overlap: float = Field(default=0.98, ge=0, le=1)
    min_kendall_tau: float = Field(default=0.99, ge=-1, le=1)
    torch_export: bool = False


class Experiment(Record):
    """Everything that decides what a training run makes."""

    name: Name
    network: NetworkConfig
    tasks: tuple[Task, ...] = Field(min_length=1)
    data: DataConfig
    embedding: EmbeddingConfig = EmbeddingConfig()
    training: TrainingConfig = TrainingConfig()
    ranking: Policy
    export: ExportConfig = ExportConfig()
    clamp: dict[str, tuple[Float32, Float32]] = Field(default_factory=dict)

    @property
    def features(self) -> tuple[Feature, ...]:
        """What the network reads: the features of the data, in call order."""
        return data.features(
            self.data, embedding_dim=self.embedding.dim, pooling=self.embedding.pooling
        )

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "Experiment":
        links(self.network, self.tasks)
        if self.network.body in ("cgc", "ple"):
            self.network.task_experts(len(self.tasks))
        for task in self.tasks:
            _check_labels(task, self.data)
        names = {task.name for task in self.tasks}
        reads = "expression" if self.ranking.formula == "expression" else "weights"
        for field, used in ((f"ranking.{reads}", self.ranking.tasks), ("clamp", self.clamp)):
            if strangers := sorted(set(used) - names):
                raise ValueError(f"{field}: there is no task {strangers[0]!r}")
        for name, (low, high) in self.clamp.items():
            if not low < high:
                raise ValueError(f"clamp.{name}: must be [low, high] with low < high")
        return self


def read(path: Path) -> Experiment:
    """Read and check an experiment file.

    Raises:
        ExperimentInvalid: the file cannot be read, or breaks a rule.
    """
    tables = _tables(path)
    extends = tables.pop("extends", None)
    if extends is not None:
        if not isinstance(extends, str):
            raise ExperimentInvalid(f"{path}: extends: must be the name of a file")
        tables = _tables(path.parent / extends) | tables
    try:
        return Experiment.model_validate(tables)
    except ValidationError as error:
        raise ExperimentInvalid(f"{path}: {_first_problem(error)}") from error


def _tables(path: Path) -> dict[str, object]:
    tables = _toml(path)
    match tables.get("data"):
        case {"schema_file": str(name), **rest}:
            schema = path.parent / name
            tables["data"] = {"folder": str(schema.parent)} | _toml(schema) | rest
        case {"source": "files", **rest}:
            tables["data"] = {"source": "files", "folder": str(path.parent)} | rest
    return tables


def _toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentInvalid(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentInvalid(f"{path}: is not TOML: {error}") from error


def _check_labels(task: Task, source: DataConfig) -> None:
    kinds = data.label_kinds(source)
    if kinds.get(task.name) != task.kind:
        known = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise ValueError(
            f"tasks: {source.source} has no {task.kind} label {task.name!r}, it has {known}"
        )
    if task.sample_space is not None and kinds.get(task.sample_space) != "binary":
        raise ValueError(
            f"tasks.{task.name}.sample_space: {source.source} has no binary label "
            f"{task.sample_space!r}"
        )
    for name in task.behaviour_weights:
        if name not in kinds:
            raise ValueError(
                f"tasks.{task.name}.behaviour_weights: {source.source} has no label {name!r}"
            )
    if len(task.unit) > LONGEST_UNIT:
        raise ValueError(f"tasks.{task.name}.unit: has more than {LONGEST_UNIT} characters")


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    # The tag of a data source stands in the location, but not in the file.
    place = [part for i, part in enumerate(problems[0]["loc"]) if i != 1 or part not in SOURCES]
    where = ".".join(map(str, place))
    rule = problems[0]["msg"].removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {rule}{more}" if where else f"{rule}{more}"
