"""The `inputs` of an inference request: names, shapes and datatypes before any data.

Only what fits its feature is decoded, so a claimed shape never makes this service reserve memory or
walk through data that no feature could take.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from app.artifacts.manifest import Input, Manifest
from app.errors import MalformedBody, PayloadTooLarge
from app.protocol.open_inference.binary import numbers, strings
from app.protocol.open_inference.data import elements
from app.protocol.open_inference.datatypes import (
    FLOATS,
    INTEGERS,
    NEVER_TAKEN,
    SIZES,
    STRINGS,
    datatypes_of,
)
from app.protocol.open_inference.parameters import refuse_parameters
from app.protocol.tensors import Numbers, Tensor, rows_and_width, shape_rule
from app.protocol.validation import ValidationReport

_MEMBERS = frozenset(("name", "shape", "datatype", "parameters", "data"))
_TAKEN = frozenset((*FLOATS, *INTEGERS, *STRINGS))


@dataclass(frozen=True, slots=True)
class _Announced:
    """An input whose head fits its feature; its data is not looked at yet."""

    feature: Input
    pointer: str
    datatype: str
    rows: int
    width: int
    data: object
    content: memoryview | None


def read_inputs(
    inputs: object,
    binary: memoryview,
    manifest: Manifest,
    report: ValidationReport,
    *,
    max_candidates: int,
) -> tuple[dict[str, Tensor], int]:
    """Return the tensors by feature, and n, the number of candidates.

    Args:
        inputs: that member of the request.
        binary: what follows the JSON document.
        manifest: which features there are.
        report: takes every problem; where it has any, the tensors are not fit for use.
        max_candidates: the most that are let in.

    Raises:
        MalformedBody: the inputs' binary data and what is there differ in length.
        PayloadTooLarge: there are too many candidates.
    """
    if not isinstance(inputs, list):
        report.add("/inputs", "must be a list of tensors")
        return {}, 0
    features = {feature.name: feature for feature in manifest.inputs}
    if len(inputs) > len(features):
        report.add("/inputs", f"must be at most {len(features)} tensors: no input is twice")
        return {}, 0
    contents = _contents(inputs, binary)
    announced: dict[str, _Announced] = {}
    named: set[str] = set()
    for place, (tensor, content) in enumerate(zip(inputs, contents, strict=True)):
        if report.full:
            break
        found = _head(tensor, content, f"/inputs/{place}", features, named, report)
        if found is not None:
            announced[found.feature.name] = found
    for feature in manifest.inputs:
        if feature.name not in named and feature.default is None:
            report.add("/inputs", f"{feature.name} is missing and has no default")
    rows = _check_rows(announced, report, max_candidates)
    tensors = {}
    for name, each in announced.items():
        if each.rows not in (1, rows):  # which is told: of 2^62 rows of no ids no array is made
            continue
        values = _values(each, report)
        if values is not None:
            tensors[name] = Tensor(each.pointer, values, each.rows, each.width)
    return tensors, rows


def _contents(inputs: list[Any], binary: memoryview) -> list[memoryview | None]:
    """Share out what follows the JSON document, in the order of the inputs."""
    sizes = [_binary_size(tensor) for tensor in inputs]
    total = sum(size for size in sizes if size is not None)
    if total != len(binary):
        raise MalformedBody(
            f"the inputs' binary_data_size say {total} bytes, and {len(binary)} follow the JSON "
            "document, whose length the header inference-header-content-length states"
        )
    contents: list[memoryview | None] = []
    offset = 0
    for size in sizes:
        contents.append(None if size is None else binary[offset : offset + size])
        offset += size or 0
    return contents


def _binary_size(tensor: object) -> int | None:
    parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise MalformedBody("binary_data_size must be a whole number, 0 or more")
    return size


def _head(
    tensor: object,
    content: memoryview | None,
    pointer: str,
    features: Mapping[str, Input],
    named: set[str],
    report: ValidationReport,
) -> _Announced | None:
    """Check all but the data of one input; None where anything is wrong."""
    if not isinstance(tensor, dict):
        report.add(pointer, "must be an object")
        return None
    name = tensor.get("name")
    feature = features.get(name) if isinstance(name, str) else None
    if feature is None:
        report.add(f"{pointer}/name", f"must name an input: {', '.join(features)}")
        return None
    before = len(report.problems)
    if feature.name in named:
        report.add(pointer, f"{feature.name} is there twice")
    named.add(feature.name)
    report.unknown_keys(pointer, tensor, _MEMBERS)
    refuse_parameters(tensor.get("parameters"), pointer, {"binary_data_size"}, report)
    datatype = tensor.get("datatype")
    if datatype not in datatypes_of(feature):
        report.add(f"{pointer}/datatype", _datatype_rule(feature, datatype))
    shape = _shape(tensor.get("shape"))
    size = None if shape is None else rows_and_width(feature, shape)
    if size is None:
        report.add(f"{pointer}/shape", f"{feature.name} {shape_rule(feature)}")
    if ("data" in tensor) == (content is not None):
        report.add(pointer, f"{feature.name} must have either data or binary_data_size")
    if len(report.problems) > before or size is None:
        return None
    return _Announced(feature, pointer, str(datatype), *size, tensor.get("data"), content)


def _datatype_rule(feature: Input, datatype: object) -> str:
    taken = ", ".join(datatypes_of(feature))
    if isinstance(datatype, str) and (datatype in NEVER_TAKEN or datatype in _TAKEN):
        return f"{feature.name} cannot be {datatype}; it takes {taken}"
    return f"{feature.name} must be of a datatype that it takes: {taken}"


def _shape(shape: object) -> list[int] | None:
    if not isinstance(shape, list) or len(shape) > 2:
        return None
    return shape if all(type(each) is int and each >= 0 for each in shape) else None


def _check_rows(
    announced: Mapping[str, _Announced], report: ValidationReport, max_candidates: int
) -> int:
    """Return n, on which all candidates' inputs must agree, and users' where they are not 1."""
    of_candidates = [each for each in announced.values() if each.feature.side == "candidate"]
    if not announced:
        return 0
    first = of_candidates[0] if of_candidates else max(announced.values(), key=attrgetter("rows"))
    if first.rows > max_candidates:
        raise PayloadTooLarge(f"{first.rows} candidates; the limit is {max_candidates}")
    for each in announced.values():
        is_single = each.feature.side == "user" and each.rows == 1
        if each.rows != first.rows and not is_single:
            detail = (
                f"{each.feature.name} has {each.rows} rows, but "
                f"{first.feature.name} has {first.rows}"
            )
            report.add(f"{each.pointer}/shape", detail)
    return first.rows


def _values(each: _Announced, report: ValidationReport) -> Numbers | list[str] | None:
    def complain(place: str, rule: str) -> None:
        report.add(f"{each.pointer}{place}", f"{each.feature.name} {rule}")

    if each.content is None:
        return elements(each.data, each.datatype, each.rows, each.width, complain)
    if each.datatype in STRINGS:
        try:
            return strings(each.content, each.rows * each.width)
        except ValueError as error:
            complain("", str(error))
            return None
    size = SIZES[each.datatype] * each.rows * each.width
    if len(each.content) != size:
        complain("/parameters/binary_data_size", f"must be {size} for its shape and datatype")
        return None
    return numbers(each.datatype, each.content, each.rows, each.width)
