"""What a benchmark sends: a model's own example request in one of three forms, or a file.

The example of `GET /v1/models/{model}/example` is resized by repeating its candidates. Where the
model has item or user tables, the example has keys only, and so has what is sent.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FORMS = ("json", "v2-json", "v2-binary")
EXAMPLE_CANDIDATES = 100
"""How many different candidates an example may have; more rows repeat them."""
_BINARY_DTYPES = {"FP32": np.float32, "INT64": np.int64}


@dataclass(frozen=True, slots=True)
class Post:
    """A POST request.

    Attributes:
        path: its target, such as /v1/score.
        body: its content.
        headers: besides host and content-length.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]


def resized(
    example: Mapping[str, Any],
    rows: int,
    only: Sequence[str] = (),
    tables: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return a native score request with `rows` candidates in columns.

    Args:
        example: a native score request.
        rows: how many candidates; those of the example are repeated in their order.
        only: the features to send; all if it is empty.
        tables: the `tables` of the model's card, which name the keys of items and users.

    Raises:
        ValueError: the example has no such feature, or no candidates.
    """
    example = _with_named_keys(example, tables)
    known = [*example.get("user", {}), *example["candidates"]]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"unknown feature {unknown[0]} (known: {', '.join(known)})")
    wanted = set(only or known)
    columns = {name: values for name, values in example["candidates"].items() if name in wanted}
    if not columns or not all(columns.values()):
        raise ValueError("the example request has no candidates")
    return {
        "user": {name: value for name, value in example.get("user", {}).items() if name in wanted},
        "candidates": {name: _repeated(column, rows) for name, column in columns.items()},
    }


def _with_named_keys(
    example: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return a request whose keys are columns: in a list of keys they must differ, there not."""
    names = {table["table"]: table["key"] for table in tables}
    user, candidates = example.get("user", {}), example["candidates"]
    if not isinstance(user, dict):
        user = {names["users"]: user}
    if isinstance(candidates, list):
        candidates = {names["items"]: candidates}
    return {"user": user, "candidates": candidates}


def inputs_of(card: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the inputs in a model's card, and the keys of its tables that are not among them."""
    inputs: list[Mapping[str, Any]] = list(card["inputs"])
    names = {feature["name"] for feature in inputs}
    sides = {"items": "candidate", "users": "user"}
    keys = [
        {"name": table["key"], "kind": "id", "side": sides[table["table"]]}
        for table in card.get("tables", [])
    ]
    return inputs + [key for key in keys if key["name"] not in names]


def _repeated(column: list[Any], rows: int) -> list[Any]:
    return (column * math.ceil(rows / len(column)))[:rows]


def post_of(
    model: str, version: int | None, form: str, request: Mapping[str, Any], inputs: Sequence[Any]
) -> Post:
    """Return a request in a form.

    Args:
        model: name of the model.
        version: the version to ask for; None is the active one.
        form: one of `FORMS`.
        request: as `resized` returns it.
        inputs: as `inputs_of` returns them.
    """
    model_path = f"{model}/versions/{version}" if version is not None else model
    if form == "json":
        body = json.dumps(request, separators=(",", ":")).encode()
        return Post(f"/v1/models/{model_path}/score", body, {"content-type": "application/json"})
    path = f"/v2/models/{model_path}/infer"
    tensors = [
        _Tensor.of(feature, values if feature["side"] == "candidate" else [values])
        for feature in inputs
        if (values := request[_SIDES[feature["side"]]].get(feature["name"])) is not None
    ]
    if form == "v2-json":
        document = {"inputs": [tensor.described(data=tensor.values) for tensor in tensors]}
        body = json.dumps(document, separators=(",", ":")).encode()
        return Post(path, body, {"content-type": "application/json"})
    contents = [tensor.content() for tensor in tensors]
    described = [
        tensor.described(parameters={"binary_data_size": len(content)})
        for tensor, content in zip(tensors, contents, strict=True)
    ]
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return Post(path, head + b"".join(contents), headers)


_SIDES = {"user": "user", "candidate": "candidates"}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input of the Open Inference Protocol: `rows · width` values, row after row."""

    name: str
    datatype: str
    shape: tuple[int, int]
    values: list[Any]

    @classmethod
    def of(cls, feature: Mapping[str, Any], rows: Sequence[Any]) -> "_Tensor":
        """Return the tensor of a feature's values, one per row; lists of ids are padded."""
        lists = [value if isinstance(value, list) else [value] for value in rows]
        is_text = any(isinstance(value, str) for row in lists for value in row)
        width = max(map(len, lists), default=0)
        if feature["kind"] == "id_list":
            width = max(1, width)
            padding = "" if is_text else feature.get("padding", -1)
            is_left = feature.get("padding_side") == "left"
            fill = [[padding] * (width - len(row)) for row in lists]
            lists = [a + b if is_left else b + a for a, b in zip(fill, lists, strict=True)]
        datatype = "FP32" if feature["kind"] == "dense" else "BYTES" if is_text else "INT64"
        values = [value for row in lists for value in row]
        return cls(feature["name"], datatype, (len(lists), width), values)

    def described(self, **data: object) -> dict[str, object]:
        """Return the member of `inputs`, with its data or where it is."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape), **data}

    def content(self) -> bytes:
        """Return the values as bytes: little-endian, or each text after its length."""
        if self.datatype == "BYTES":
            texts = [value.encode() for value in self.values]
            return b"".join(struct.pack("<I", len(text)) + text for text in texts)
        return np.array(self.values, _BINARY_DTYPES[self.datatype]).tobytes()


def file_bodies(content: bytes) -> list[bytes]:
    """Return the requests of a file: one JSON document, or one a line.

    Raises:
        ValueError: it is empty, or neither.
    """
    try:
        json.loads(content)
    except ValueError as error:
        lines = [line for line in content.splitlines() if line.strip()]
        for number, line in enumerate(lines, 1):
            try:
                json.loads(line)
            except ValueError as wrong:
                if len(lines) == 1 or number == 1:
                    raise ValueError(f"not JSON: {error}") from None
                raise ValueError(f"line {number} is not JSON: {wrong}") from None
        if not lines:
            raise ValueError("must contain a request") from None
        return lines
    return [content.strip()]
