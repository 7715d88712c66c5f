"""What the server and its models are, in the words of the protocol and of Triton's extensions."""

from dataclasses import dataclass
from typing import Any

from app.api.openapi.open_inference_schemas import (
    Duration,
    InferenceStatistics,
    ModelMetadata,
    ModelStatistics,
    RepositoryEntry,
    TensorMetadata,
)
from app.artifacts.loader import Model
from app.artifacts.manifest import IdInput, Input
from app.lifecycle.registry import Registry
from app.protocol.open_inference.outputs import output_names
from app.protocol.open_inference.tensor_data import datatypes_of
from app.scoring.score import Limits

EXTENSIONS = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository(index)",
    "parameters",
    "schedule_policy",
    "statistics",
]
PLATFORM = "pytorch_libtorch"
_CONFIG_TYPES = {"FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "BYTES": "TYPE_STRING"}


@dataclass(frozen=True, slots=True)
class Serving:
    """How models are served here, as far as a model configuration says it."""

    limits: Limits
    max_batch_rows: int
    max_wait_s: float
    lanes: int


def model_metadata(model: Model) -> ModelMetadata:
    """Return a model's inputs and outputs; every one begins with the number of candidates.

    Of a user's input a single row is enough, which the protocol has no way to say.
    """
    manifest = model.manifest
    return ModelMetadata(
        name=manifest.name,
        versions=[str(manifest.version)],
        platform=PLATFORM,
        inputs=[
            TensorMetadata(name=each.name, datatype=datatypes_of(each)[0], shape=[-1, _width(each)])
            for each in manifest.inputs
        ],
        outputs=[
            TensorMetadata(name=name, datatype="FP32", shape=[-1, 1])
            for name in output_names(manifest)
        ],
    )


def model_config(model: Model, serving: Serving) -> dict[str, Any]:
    """Return a model's configuration as Triton's `ModelConfig` message says it in JSON."""
    manifest = model.manifest
    kind = "KIND_CPU" if model.program.device.type == "cpu" else "KIND_GPU"
    return {
        "name": manifest.name,
        "platform": PLATFORM,
        "backend": "pytorch",
        "version_policy": {"specific": {"versions": [manifest.version]}},
        "max_batch_size": serving.limits.max_candidates,
        "input": [
            {
                "name": each.name,
                "data_type": _CONFIG_TYPES[datatypes_of(each)[0]],
                "format": "FORMAT_NONE",
                "dims": [_width(each)],
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": each.default is not None,
            }
            for each in manifest.inputs
        ],
        "output": [
            {
                "name": name,
                "data_type": "TYPE_FP32",
                "dims": [1],
                "label_filename": "",
                "is_shape_tensor": False,
            }
            for name in output_names(manifest)
        ],
        "instance_group": [
            {"name": f"{manifest.name}_0", "kind": kind, "count": serving.lanes, "gpus": []}
        ],
        "dynamic_batching": {
            "preferred_batch_size": [serving.max_batch_rows],
            "max_queue_delay_microseconds": round(serving.max_wait_s * 1e6),
            "preserve_ordering": False,
            "priority_levels": 3,
            "default_priority_level": 2,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round(serving.limits.default_timeout_s * 1e6),
                "allow_timeout_override": True,
            },
        },
        "default_model_filename": "model.ts",
    }


def model_statistics(model: Model) -> ModelStatistics:
    """Return what a model has done since it was loaded, on every route."""
    usage = model.usage
    answered = usage.succeeded

    def over(count: int, duration_s: float) -> Duration:
        return Duration(count=count, ns=round(duration_s * 1e9))

    return ModelStatistics(
        name=model.manifest.name,
        version=str(model.manifest.version),
        last_inference=round(usage.last_unix_s * 1e3),
        inference_count=usage.rows,
        execution_count=usage.batches,
        inference_stats=InferenceStatistics(
            success=over(answered, usage.succeeded_s),
            fail=over(usage.failed, usage.failed_s),
            queue=over(answered, usage.queue_s),
            compute_input=over(answered, usage.collate_s),
            compute_infer=over(answered, usage.compute_s),
            compute_output=over(answered, usage.respond_s),
            cache_hit=over(0, 0.0),
            cache_miss=over(0, 0.0),
        ),
        batch_stats=[],
    )


def repository_index(registry: Registry, *, ready_only: bool) -> list[RepositoryEntry]:
    """Return the active versions, and unless only these are wanted, the refused ones."""
    entries = [
        RepositoryEntry(
            name=model.manifest.name, version=str(model.manifest.version), state="READY", reason=""
        )
        for model in registry.models()
    ]
    if not ready_only:
        entries += [
            RepositoryEntry(
                name=each.model, version=str(each.version), state="UNAVAILABLE", reason=reason
            )
            for each, reason in registry.refused.items()
        ]
    return entries


def _width(feature: Input) -> int:
    """Return how wide a tensor of this feature may be."""
    if isinstance(feature, IdInput):
        return 1
    return feature.dim if feature.kind == "dense" else feature.max_length
