"""Inference requests written by hand, without a client library, from native ones."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

STORED = {"FP32": "<f4", "FP16": "<f2", "INT64": "<i8", "INT32": "<i4"}


@dataclass(frozen=True)
class Sent:
    """One input: `values` is nested as its shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Any

    @property
    def flat(self) -> list[Any]:
        flat: list[Any] = np.array(self.values, dtype=object).reshape(-1).tolist()
        return flat

    def as_json(self, *, nested: bool = False) -> dict[str, Any]:
        data = self.values if nested else self.flat
        return {
            "name": self.name,
            "datatype": self.datatype,
            "shape": list(self.shape),
            "data": data,
        }

    def as_binary(self) -> tuple[dict[str, Any], bytes]:
        content = to_bytes(self.datatype, self.flat)
        head = self.as_json()
        del head["data"]
        return head | {"parameters": {"binary_data_size": len(content)}}, content


def to_bytes(datatype: str, flat: list[Any]) -> bytes:
    if datatype == "BYTES":
        encoded = [text.encode() for text in flat]
        return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    if datatype == "BF16":  # the upper half of each float32
        return b"".join(struct.pack("<f", number)[2:] for number in flat)
    return np.array(flat, STORED[datatype]).tobytes()


def inputs_of(features: list[dict[str, Any]], request: dict[str, Any]) -> list[Sent]:
    """Return the tensors of a columnar score request; `features` come from the model's card."""
    inputs = []
    for feature in features:
        name, is_user = feature["name"], feature["side"] == "user"
        side = request["user" if is_user else "candidates"]
        if name not in side:
            continue
        values = [side[name]] if is_user else side[name]
        if feature["kind"] == "dense":
            datatype = "FP32"
            if feature["dim"] == 1:
                values = [value if isinstance(value, list) else [value] for value in values]
            width = feature["dim"]
        else:
            ids = feature["encoding"].get("ids", "int64")
            datatype = "BYTES" if ids == "string" else "INT64"
            if feature["kind"] == "id":
                values = [[value] for value in values]
                width = 1
            else:
                width = feature["max_length"]
                padding = feature["padding"] if datatype == "INT64" else ""
                pads = [[padding] * (width - len(row)) for row in values]
                is_right = feature["padding_side"] == "right"
                values = [
                    [*row, *pad] if is_right else [*pad, *row]
                    for row, pad in zip(values, pads, strict=True)
                ]
        inputs.append(Sent(name, datatype, (len(values), width), values))
    return inputs


def in_json(inputs: list[Sent], **members: Any) -> dict[str, Any]:
    return {"inputs": [tensor.as_json() for tensor in inputs], **members}


def in_binary(inputs: list[Sent], **members: Any) -> tuple[bytes, dict[str, str]]:
    """Return a body with every tensor in binary, and its headers."""
    tensors = [tensor.as_binary() for tensor in inputs]
    return packed(
        {"inputs": [head for head, _ in tensors], **members},
        b"".join(content for _, content in tensors),
    )


def packed(document: Any, binary: bytes) -> tuple[bytes, dict[str, str]]:
    head = orjson.dumps(document)
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    return head + binary, headers


def outputs_of(response: Any) -> dict[str, list[float]]:
    """Return every output of a response, in JSON or binary, as numbers."""
    content, length = response.content, response.headers.get("inference-header-content-length")
    document = orjson.loads(content if length is None else content[: int(length)])
    offset = 0 if length is None else int(length)
    found: dict[str, list[float]] = {}
    for output in document["outputs"]:
        assert output["datatype"] == "FP32"
        if "data" in output:
            numbers = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            numbers = np.frombuffer(content[offset : offset + size], "<f4").tolist()
            offset += size
        assert output["shape"] == [len(numbers), 1]
        found[output["name"]] = np.array(numbers, np.float32).tolist()
    assert length is None or offset == len(content)
    return found
