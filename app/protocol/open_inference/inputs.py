"""The `inputs` of an inference request: names, shapes and datatypes, then the data.

Only inputs that fit their feature are decoded. So a claimed shape never makes the server allocate
memory, or read data that no feature accepts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from app.artifacts.inputs import DenseInput, Input
from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import NO_TABLES, ModelTables
from app.errors import MalformedBody
from app.protocol.open_inference.parameters import refuse_parameters
from app.protocol.open_inference.tensor_data import (
    FLOATS,
    INTEGERS,
    SIZES,
    STRINGS,
    UNSUPPORTED,
    datatypes_of,
    elements_from_json,
    numbers_from_bytes,
    strings_from_bytes,
)
from app.protocol.tensors import Numbers, Tensor, rows_and_width, shape_rule
from app.protocol.validation import ValidationReport, check_count, listing

_MEMBERS = frozenset(("name", "shape", "datatype", "parameters", "data"))
_DATATYPES = frozenset((*FLOATS, *INTEGERS, *STRINGS)) | UNSUPPORTED


@dataclass(frozen=True, slots=True)
class InputHead:
    """An input whose name, datatype and shape fit a feature; its data is not read yet.

    Attributes:
        data: the data in the JSON document, if any.
        span: where its bytes start and end after the JSON document, if it is binary.
    """

    feature: Input
    pointer: str
    datatype: str
    rows: int
    width: int
    data: object
    span: tuple[int, int] | None


def read_heads(
    inputs: object,
    binary_bytes: int,
    manifest: Manifest,
    report: ValidationReport,
    *,
    max_candidates: int,
    tables: ModelTables = NO_TABLES,
) -> tuple[list[InputHead], int]:
    """Return the inputs that fit a feature or a key, and n, the number of candidates.

    Args:
        inputs: that member of the request.
        binary_bytes: how many bytes follow the JSON document.
        manifest: lists the features.
        report: takes every problem; if it has any, the inputs are not fit for use.
        max_candidates: the most candidates that are accepted.
        tables: of the model version: a feature that one has is not required beside its key.

    Raises:
        MalformedBody: `binary_bytes` is not the sum that the inputs state.
        PayloadTooLarge: there are too many candidates.
    """
    if not isinstance(inputs, list):
        report.add("/inputs", "must be a list of tensors")
        return [], 0
    features = {feature.name: feature for feature in manifest.inputs}
    for table in tables.all:
        features[table.table.key] = table.key_input
    if len(inputs) > len(features):
        detail = f"too many inputs: {len(inputs)}, the model has {len(features)}"
        report.add("/inputs", detail)
        return [], 0
    spans = _spans(inputs, binary_bytes)
    heads: dict[str, InputHead] = {}
    named: set[str] = set()
    for place, (tensor, span) in enumerate(zip(inputs, spans, strict=True)):
        if report.full:
            break
        head = _head(tensor, span, f"/inputs/{place}", features, named, report)
        if head is not None:
            heads[head.feature.name] = head
    _report_missing(named, manifest, tables, report)
    return list(heads.values()), _check_rows(heads, report, max_candidates)


def _report_missing(
    named: set[str], manifest: Manifest, tables: ModelTables, report: ValidationReport
) -> None:
    """Add one problem for all missing inputs, and one for those that a table's key stands for."""
    names = [
        feature.name
        for feature in manifest.inputs
        if feature.name not in named and feature.default is None
    ]
    for table in tables.all:
        of_table = [name for name in names if name in table.names]
        names = [name for name in names if name not in table.names]
        key = table.table.key
        if of_table and key not in named:
            missing, them = _missing(of_table)
            if of_table != [key]:
                missing += f"; send {them}, or {key}, the key of the {table.kind} table"
            report.add("/inputs", missing)
    if names:
        report.add("/inputs", _missing(names)[0])


def _missing(names: Sequence[str]) -> tuple[str, str]:
    if len(names) == 1:
        return f"required input {names[0]} is missing", "it"
    return f"required inputs are missing: {listing(names)}", "them"


def read_tensors(
    heads: Sequence[InputHead], rows: int, binary: memoryview, report: ValidationReport
) -> dict[str, Tensor]:
    """Return the tensors by feature; `binary` holds the bytes after the JSON document."""
    tensors = {}
    for head in heads:
        if head.rows not in (1, rows):  # reported; never allocate 2^62 rows of zero ids
            continue
        values = _values(head, binary, report)
        if values is not None:
            tensors[head.feature.name] = Tensor(head.pointer, values, head.rows, head.width)
    return tensors


def _spans(inputs: list[Any], binary_bytes: int) -> list[tuple[int, int] | None]:
    """Split the bytes after the JSON document, in the order of the inputs."""
    sizes = [_binary_size(tensor) for tensor in inputs]
    total = sum(size for size in sizes if size is not None)
    if total != binary_bytes:
        raise MalformedBody(
            f"binary_data_size of the inputs: {total} bytes in all, but {binary_bytes} bytes "
            "follow the JSON document (header inference-header-content-length: its length)"
        )
    spans: list[tuple[int, int] | None] = []
    offset = 0
    for size in sizes:
        spans.append(None if size is None else (offset, offset + size))
        offset += size or 0
    return spans


def _binary_size(tensor: object) -> int | None:
    parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise MalformedBody("binary_data_size must be an integer of at least 0")
    return size


def _head(
    tensor: object,
    span: tuple[int, int] | None,
    pointer: str,
    features: Mapping[str, Input],
    named: set[str],
    report: ValidationReport,
) -> InputHead | None:
    """Check all but the data of one input; return None if anything is wrong."""
    if not isinstance(tensor, dict):
        report.add(pointer, "must be an object")
        return None
    name = tensor.get("name")
    feature = features.get(name) if isinstance(name, str) else None
    if feature is None:
        nearest = report.suggest(name, features) if isinstance(name, str) else ""
        report.add(f"{pointer}/name", f"unknown input{nearest} (known: {listing(features)})")
        return None
    before = len(report.problems)
    if feature.name in named:
        report.add(pointer, f"duplicate input {feature.name}")
    named.add(feature.name)
    report.unknown_members(pointer, tensor, _MEMBERS)
    refuse_parameters(tensor.get("parameters"), pointer, {"binary_data_size"}, report)
    datatype = tensor.get("datatype")
    if datatype not in datatypes_of(feature):
        report.add(f"{pointer}/datatype", _datatype_rule(feature, datatype))
    shape = _shape(tensor.get("shape"))
    size = None if shape is None else rows_and_width(feature, shape)
    if size is None:
        report.add(f"{pointer}/shape", f"{feature.name} {shape_rule(feature)}")
    if ("data" in tensor) == (span is not None):
        report.add(pointer, f"{feature.name} must have either data or binary_data_size")
    if len(report.problems) > before or size is None:
        return None
    return InputHead(feature, pointer, str(datatype), *size, tensor.get("data"), span)


def _datatype_rule(feature: Input, datatype: object) -> str:
    supported = ", ".join(datatypes_of(feature))
    if isinstance(datatype, str) and datatype in _DATATYPES:
        return f"{feature.name} cannot be {datatype}; supported: {supported}"
    return f"{feature.name} has an unknown datatype; supported: {supported}"


def _shape(shape: object) -> list[int] | None:
    if not isinstance(shape, list) or len(shape) > 2:
        return None
    return shape if all(type(length) is int and length >= 0 for length in shape) else None


def _check_rows(
    heads: Mapping[str, InputHead], report: ValidationReport, max_candidates: int
) -> int:
    """Return n: the rows of every candidate input, and of each user input that has not just 1."""
    of_candidates = [head for head in heads.values() if head.feature.side == "candidate"]
    if not heads:
        return 0
    first = of_candidates[0] if of_candidates else max(heads.values(), key=attrgetter("rows"))
    check_count(first.rows, max_candidates)
    for head in heads.values():
        is_single = head.feature.side == "user" and head.rows == 1
        if head.rows != first.rows and not is_single:
            detail = (
                f"{head.feature.name} has {head.rows} rows, but "
                f"{first.feature.name} has {first.rows}"
            )
            report.add(f"{head.pointer}/shape", detail)
    return first.rows


def _values(
    head: InputHead, binary: memoryview, report: ValidationReport
) -> Numbers | list[str] | None:
    def add_problem(place: str, rule: str) -> None:
        report.add(f"{head.pointer}{place}", f"{head.feature.name} {rule}")

    if head.span is None:
        may_miss = isinstance(head.feature, DenseInput) and head.feature.missing != "refuse"
        return elements_from_json(
            head.data, head.datatype, head.rows, head.width, add_problem, may_miss=may_miss
        )
    content = binary[head.span[0] : head.span[1]]
    if head.datatype in STRINGS:
        try:
            return strings_from_bytes(content, head.rows * head.width)
        except ValueError as error:
            add_problem("", str(error))
            return None
    size = SIZES[head.datatype] * head.rows * head.width
    if len(content) != size:
        detail = f"must be {size} for its shape and datatype, is {len(content)}"
        add_problem("/parameters/binary_data_size", detail)
        return None
    return numbers_from_bytes(head.datatype, content, head.rows, head.width)
