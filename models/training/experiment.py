"""An experiment: one TOML file with network, tasks, data, training and ranking.

```toml
name = "feed"                        # the model's name in the store

[network]                            # models.networks.config.NetworkConfig
architecture = "mmoe"

[[tasks]]                            # models.networks.config.Task; the order is that of the outputs
name = "click"
kind = "binary"

[data]                               # models.data: source = "feed" or "synthetic", with its size,
source = "feed"                      # or "files" with a schema_file: models.data.schema

[embedding]                          # the embeddings of every id and id list
dim = 16

[training]                           # TrainingConfig
epochs = 5

[ranking]                            # app.ranking.policy.Policy: how task scores are fused
weights = { click = 1.0 }

[export]                             # ExportConfig: precision, and how far scores may change;
precision = "bf16"                   # fp32 (default), bf16, fp16 or int8-embeddings

[clamp]                              # per task: the interval to which scores are clamped
dwell = [0, 600]
```

`extends = "other.toml"`, relative to the file, takes every table that the file does not have from
the other file. A table is replaced as a whole.
"""

import tomllib
from pathlib import Path

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from app.artifacts.inputs import Float32
from app.artifacts.manifest import PATTERNS, Name, PrecisionName
from app.errors import did_you_mean
from app.file_problems import first_problem
from app.ranking.policy import Policy
from models import data
from models.data import DataConfig
from models.networks.config import Feature, NetworkConfig, Pooling, Record, Task, links

MAX_UNIT_LENGTH = 32  # limit of the manifest
USUAL_NAMES = {
    "lr": "learning_rate",
    "batch_size": "batch_rows",
    "early_stopping": "patience",
    "embedding_dim": "dim",
    "hidden_units": "expert_hidden_units",
}
"""Keys of other libraries, and what they are called here."""


class ExperimentInvalid(ValueError):
    """An experiment file cannot be used. The message is one line with file, key and rule."""


class EmbeddingConfig(Record):
    """Embedding tables with `dim` columns; `pooling` combines the embeddings of an id list."""

    dim: PositiveInt = 16
    pooling: Pooling = "mean"


class TrainingConfig(Record):
    """Optimisation.

    A batch has about `batch_rows` candidates, in whole requests. Training stops after `epochs`, or
    when the validation loss has not improved for `patience` epochs; the weights of the best epoch
    are kept. The optimiser is AdamW, which is Adam if `weight_decay` is 0.

    `threads` is the number of threads within an operator. The default is 1, because operators of
    this size gain little from a second thread and lose much when it waits for a busy core.
    """

    epochs: PositiveInt = 10
    batch_rows: PositiveInt = 1024
    learning_rate: PositiveFloat = 1e-3
    weight_decay: float = Field(default=0.0, ge=0)
    patience: PositiveInt = 2
    seed: int = Field(default=0, ge=0)
    threads: PositiveInt = 1


class ExportConfig(Record):
    """Precision of the published network, and the limits of the parity gate.

    The limits apply to held-out rows (:class:`app.artifacts.manifest.Parity`): the largest change
    of a probability (`max_probability_change`), the largest relative change of seconds or another
    number (`max_number_change`), the largest change of an AUC, or XAUC of durations
    (`max_auc_change`), the share of a user's 50 best of 500 candidates that stay among the 50 best
    (`min_top_50_overlap`), and Kendall's τ of their order (`min_kendall_tau`).

    With `torch_export`, the artifact also contains the network as a `torch.export` program.
    """

    precision: PrecisionName = "fp32"
    max_probability_change: PositiveFloat = 0.01
    max_number_change: PositiveFloat = 0.05
    max_auc_change: PositiveFloat = 0.001
    min_top_50_overlap: float = Field(default=0.98, ge=0, le=1)
    min_kendall_tau: float = Field(default=0.99, ge=-1, le=1)
    torch_export: bool = False


class Experiment(Record):
    """The complete configuration of a training run."""

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
        """The inputs of the network: the features of the data, in call order."""
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
            for unknown in sorted(set(used) - names)[:1]:
                known = ", ".join(task.name for task in self.tasks)
                raise ValueError(
                    f'{field}: unknown task "{unknown}" (tasks: {known})'
                    f"{did_you_mean(unknown, names)}"
                )
        for name, (low, high) in self.clamp.items():
            if not low < high:
                raise ValueError(f"clamp.{name}: must be [low, high] with low < high")
        return self


def read(path: Path) -> Experiment:
    """Read and check an experiment file.

    Raises:
        ExperimentInvalid: the file cannot be read, or it breaks a rule.
    """
    tables = _tables(path)
    extends = tables.pop("extends", None)
    if extends is not None:
        if not isinstance(extends, str):
            raise ExperimentInvalid(f"{path}: extends: must be a file name")
        tables = _tables(path.parent / extends) | tables
    try:
        return Experiment.model_validate(tables)
    except ValidationError as error:
        problem = first_problem(error, Experiment, tables, PATTERNS, USUAL_NAMES)
        raise ExperimentInvalid(f"{path}: {problem}") from error


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
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ExperimentInvalid(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentInvalid(f"{path}: not valid TOML: {error}") from error


def _check_labels(task: Task, source: DataConfig) -> None:
    kinds = data.label_kinds(source)
    if kinds.get(task.name) != task.kind:
        known = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise ValueError(
            f'tasks: the data has no {task.kind} label "{task.name}" (labels: {known})'
            f"{did_you_mean(task.name, kinds.keys() - {task.name})}"
        )
    if task.sample_space is not None and kinds.get(task.sample_space) != "binary":
        raise ValueError(
            f"tasks.{task.name}.sample_space: the data has no binary label "
            f'"{task.sample_space}"'
            f"{did_you_mean(task.sample_space, kinds.keys() - {task.sample_space})}"
        )
    for name in task.behaviour_weights:
        if name not in kinds:
            raise ValueError(
                f'tasks.{task.name}.behaviour_weights: the data has no label "{name}"'
                f"{did_you_mean(name, kinds)}"
            )
    if len(task.unit) > MAX_UNIT_LENGTH:
        raise ValueError(f"tasks.{task.name}.unit: longer than {MAX_UNIT_LENGTH} characters")
