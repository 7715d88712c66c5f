"""The `outputs` of an inference request and of its response: FP32 `[n, 1]` each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from app.artifacts.manifest import Manifest
from app.engine.request import TableUse
from app.protocol.open_inference.parameters import refuse_parameters
from app.protocol.table_features import MOST_POSITIONS
from app.protocol.validation import ValidationReport, listing
from app.ranking.batch import RankedRequest
from app.ranking.formulas import Scores

RANK_SCORE = "rank_score"
_MEMBERS = frozenset(("name", "parameters", "datatype", "shape"))


@dataclass(frozen=True, slots=True)
class Output:
    """A requested output."""

    name: str
    is_binary: bool


def output_names(manifest: Manifest) -> tuple[str, ...]:
    """Return a model's outputs: each task's score, then the rank score. No task is named so."""
    return (*manifest.task_names, RANK_SCORE)


def read_outputs(
    outputs: object, manifest: Manifest, report: ValidationReport, *, is_binary: bool
) -> Sequence[Output]:
    """Return the requested outputs, by default all; problems go into the report."""
    names = output_names(manifest)
    if outputs is None or outputs == []:
        return [Output(name, is_binary) for name in names]
    if not isinstance(outputs, list):
        report.add("/outputs", "must be a list of outputs")
        return []
    requested: dict[str, Output] = {}
    for place, output in enumerate(outputs):
        if report.full:
            break
        pointer = f"/outputs/{place}"
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in names:
            nearest = report.suggest(name, names) if isinstance(name, str) else ""
            report.add(f"{pointer}/name", f"unknown output{nearest} (known: {listing(names)})")
            continue
        if name in requested:
            report.add(pointer, f"duplicate output {name}")
        requested[name] = Output(name, _is_binary(output, pointer, report, is_binary))
    return list(requested.values())


def _is_binary(
    output: Mapping[str, Any], pointer: str, report: ValidationReport, by_default: bool
) -> bool:
    report.unknown_members(pointer, output, _MEMBERS)
    if output.get("datatype", "FP32") not in ("FP32", None):
        report.add(f"{pointer}/datatype", "must be FP32, the datatype of every output")
    parameters = output.get("parameters")
    refuse_parameters(parameters, pointer, {"binary_data"}, report)
    is_binary = parameters.get("binary_data", by_default) if isinstance(parameters, dict) else None
    if is_binary is None:
        return by_default
    if not isinstance(is_binary, bool):
        report.add(f"{pointer}/parameters/binary_data", "must be true or false")
    return is_binary is True


def write_outputs(
    manifest: Manifest,
    role: str,
    request_id: str | None,
    outputs: Sequence[Output],
    ranked: RankedRequest,
    used: TableUse | None = None,
) -> tuple[bytes, list[bytes]]:
    """Return the response's JSON document, and the bytes of each binary output after it.

    If the request takes rows of tables, the parameters say which versions of them, and which keys
    are unknown. The protocol allows no lists there: positions are separated by commas.
    """
    parameters = {"role": role}
    if used is not None:
        parameters |= {f"{kind}_table": label for kind, label in used.versions.items()}
        for kind, unknown in used.unknown.items():
            parameters[f"unknown_{kind}"] = ",".join(map(str, unknown[:MOST_POSITIONS].tolist()))
    written: list[dict[str, Any]] = []
    binary = binary_outputs(manifest, outputs, ranked)
    for output in outputs:
        scores = _scores(manifest, output, ranked)
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": "FP32",
            "shape": [len(scores), 1],
        }
        if output.is_binary:
            tensor["parameters"] = {"binary_data_size": scores.nbytes}
        else:
            tensor["data"] = np.ascontiguousarray(scores)
        written.append(tensor)
    document: dict[str, Any] = {
        "model_name": manifest.name,
        "model_version": str(manifest.version),
        "parameters": parameters,
        "outputs": written,
    }
    if request_id is not None:
        document["id"] = request_id
    # orjson writes a float32 as the shortest text that reads back as the same float32.
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), binary


def binary_outputs(
    manifest: Manifest, outputs: Sequence[Output], ranked: RankedRequest
) -> list[bytes]:
    """Return the bytes of each binary output, in order."""
    return [
        _scores(manifest, output, ranked).astype("<f4", copy=False).tobytes()
        for output in outputs
        if output.is_binary
    ]


def _scores(manifest: Manifest, output: Output, ranked: RankedRequest) -> Scores:
    """Return an output, `[n]` float32."""
    column = manifest.task_columns.get(output.name)
    return ranked.rank_score if column is None else ranked.scores[:, column]
