"""Publish a trained network as a version in the store.

The artifact tells the service everything that it needs: the features and how to encode them, the
tasks and how output columns become scores, the metrics, and golden requests with known scores.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from app.artifacts.columns import Column, ModelInputs
from app.artifacts.encoding import Encoding, Identity
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.artifacts.manifest import (
    MOST_FOLDED,
    Description,
    GateLevel,
    Output,
    Precision,
    RequestCall,
    TaskOutput,
)
from app.artifacts.program import scores
from app.artifacts.publish import publish
from app.artifacts.store import Artifact, Store
from app.errors import ArtifactInvalid
from models import data
from models.data import PADDING, UNKNOWN, Dataset
from models.export.distributions import distributions
from models.export.gates import gate_levels
from models.export.precision import Form, parity, reduced, refuse_unless_near
from models.export.torch_export import exported
from models.networks.build import RankingNetwork
from models.networks.config import DenseFeature, Feature, IdFeature, links
from models.training.evaluate import Evaluation, evaluate, predict
from models.training.experiment import Experiment

GOLDEN_SIZES = (1, 2, 3, 5, 8, 16, 32)
"""Candidates per golden request; the first has unknown ids and missing numbers, the second empty id
lists."""


def export(
    network: nn.Module,
    experiment: Experiment,
    held_out: Dataset,
    evaluation: Evaluation,
    store: Store,
) -> Artifact:
    """Publish a network as the next version of the experiment's model.

    Args:
        network: trained; set to evaluation mode and scripted.
        experiment: its configuration, which is written into the manifest.
        held_out: the golden requests consist of its rows.
        evaluation: metrics for the manifest; a network in reduced precision is evaluated again.
        store: where the version is published, atomically.

    Raises:
        ArtifactInvalid: the outputs do not match the experiment, reduced precision does not run on
            this machine or differs too much from fp32, or `torch.export` fails.
    """
    network.eval()
    served, precision, evaluation = _in_precision(network, experiment, held_out, evaluation)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)
        scripted = torch.jit.script(served)
    defaults = network.columns.defaults() if isinstance(network, RankingNetwork) else {}
    requests = golden_requests(experiment, held_out, defaults)
    raw = predict(served, held_out).float().numpy()
    outputs = task_outputs(experiment)
    known = distributions(
        experiment.features,
        [task.name for task in outputs],
        held_out,
        scores(raw, outputs),
        defaults,
    )
    gates = gate_levels(experiment) if isinstance(network, RankingNetwork) else ()
    described = description(experiment, evaluation, precision, defaults, gates)
    return publish(
        store,
        described.model_copy(
            update={"distributions": known, "folded_width": _folded_width(network)}
        ),
        scripted,
        requests,
        data.vocabulary_files(experiment.data),
        exported(served, requests) if experiment.export.torch_export else None,
    )


def _folded_width(network: nn.Module) -> int | None:
    """The width of what `RankingNetwork.fold` returns; None without candidate columns."""
    if not isinstance(network, RankingNetwork) or not network.columns.candidate.width:
        return None
    width = network.folded_width
    return width if width <= MOST_FOLDED else None


def _in_precision(
    network: nn.Module, experiment: Experiment, held_out: Dataset, evaluation: Evaluation
) -> tuple[nn.Module, Precision, Evaluation]:
    """The network in the precision of the experiment, its parity with fp32, and its metrics."""
    name = experiment.export.precision
    if name == "fp32":
        return network, Precision(), evaluation
    outputs = task_outputs(experiment)
    served = reduced(network, name)
    try:
        own = evaluate(served, held_out, experiment.tasks, outputs)
    except RuntimeError as error:
        raise ArtifactInvalid(f"{name} does not run on this CPU: {error}") from error
    change = parity(
        Form(network, evaluate(network, held_out, experiment.tasks, outputs)),
        Form(served, own),
        held_out,
        outputs,
        experiment.ranking,
    )
    refuse_unless_near(change, experiment.export, outputs)
    return served, Precision.reduced(name, change), own


def description(
    experiment: Experiment,
    evaluation: Evaluation,
    precision: Precision | None = None,
    defaults: Mapping[str, tuple[float, ...]] | None = None,
    gates: tuple[GateLevel, ...] = (),
) -> Description:
    """Describe the network of an experiment to the service.

    Args:
        experiment: its configuration.
        evaluation: metrics for the manifest.
        precision: of the network; fp32 if `None`.
        defaults: values of dense features that may be missing in a request, as in training.
        gates: of the network, if the service shall observe them.
    """
    encodings = data.encodings(experiment.data)
    return Description(
        name=experiment.name,
        architecture=experiment.network.architecture,
        inputs=tuple(_input(feature, encodings, defaults or {}) for feature in experiment.features),
        call=RequestCall(),
        tasks=task_outputs(experiment),
        ranking=experiment.ranking,
        precision=precision or Precision(),
        gates=gates,
        evaluation=evaluation,
        training=experiment.model_dump(mode="json"),
    )


def task_outputs(experiment: Experiment) -> tuple[TaskOutput, ...]:
    """How each output column of the network becomes the score of a task."""
    columns = links(experiment.network, experiment.tasks)
    return tuple(
        TaskOutput(
            name=task.name,
            kind=task.kind,
            unit=task.unit,
            link=link,
            clamp=experiment.clamp.get(task.name),
            output=Output(column=k),
        )
        for k, (task, link) in enumerate(zip(experiment.tasks, columns, strict=True))
    )


def golden_requests(
    experiment: Experiment, held_out: Dataset, may_miss: Collection[str] = ()
) -> ModelInputs:
    """Requests with every size in `GOLDEN_SIZES`, from held-out users and candidates.

    Dense features of `may_miss` contain missing values. Request i is user i with the candidates
    after those of request i-1, so that the sizes do not depend on the requests of the data.
    """
    row_to_request = np.repeat(np.arange(len(GOLDEN_SIZES)), GOLDEN_SIZES)  # [B]
    user = _first_rows(held_out.user, len(GOLDEN_SIZES))
    candidate = _first_rows(held_out.candidate, len(row_to_request))
    for feature in experiment.features:
        columns = user if feature.side == "user" else candidate
        if isinstance(feature, IdFeature):
            columns[feature.name][0] = UNKNOWN
        elif isinstance(feature, DenseFeature):
            if feature.name in may_miss:
                columns[feature.name][0] = np.nan
            else:  # a request contains no NaN
                columns[feature.name] = np.nan_to_num(columns[feature.name])
        else:
            columns[feature.name][1] = PADDING
    return ModelInputs(user, candidate, row_to_request)


def _first_rows(columns: Mapping[str, Tensor], count: int) -> dict[str, Column]:
    """The first `count` rows of each column, repeated from the start if there are fewer."""
    return {
        name: column[torch.arange(count) % len(column)].numpy() for name, column in columns.items()
    }


def _input(
    feature: Feature,
    encodings: Mapping[str, Encoding],
    defaults: Mapping[str, tuple[float, ...]],
) -> Input:
    if isinstance(feature, DenseFeature):
        return DenseInput(
            name=feature.name,
            side=feature.side,
            dim=feature.dim,
            default=defaults.get(feature.name),
            missing="nan" if feature.name in defaults else "refuse",
        )
    missing: Literal["refuse", "unknown"] = "unknown" if feature.name in encodings else "refuse"
    encoding = encodings.get(feature.name, Identity())
    if isinstance(feature, IdFeature):
        return IdInput(
            name=feature.name,
            side=feature.side,
            vocabulary_size=feature.vocabulary_size,
            unknown=UNKNOWN,
            missing=missing,
            encoding=encoding,
        )
    return IdListInput(
        name=feature.name,
        side=feature.side,
        vocabulary_size=feature.vocabulary_size,
        unknown=UNKNOWN,
        missing=missing,
        encoding=encoding,
        max_length=feature.max_length,
        padding=PADDING,
        padding_side="right",
    )
