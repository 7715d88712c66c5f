"""The ids of a request as they were sent, for the traffic log: before they become rows of a table.

Only the ids of features that the model has are kept. A feature that was not sent is left out.
"""

from collections.abc import Mapping
from typing import Any

from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import NO_TABLES, ModelTables
from app.protocol.tensors import Tensor


def ids_of_document(
    document: Mapping[str, Any], manifest: Manifest, tables: ModelTables = NO_TABLES
) -> dict[str, Any]:
    """Return the ids of a native request that was accepted; `tables` are those it may use.

    Returns:
        By feature, the id (or list of ids) of the user, or a list with one entry per candidate; a
        candidate that has none has the default.
    """
    user, candidates = document.get("user", {}), document["candidates"]
    if tables.users is not None and not isinstance(user, dict):
        user = {tables.users.table.key: user}
    if tables.items is not None and isinstance(candidates, list):
        key = tables.items.table.key
        candidates = [
            candidate if isinstance(candidate, dict) else {key: candidate}
            for candidate in candidates
        ]
    ids: dict[str, Any] = {}
    for feature in _id_features(manifest):
        name = feature.name
        if feature.side == "user":
            if name in user:
                ids[name] = user[name]
        elif isinstance(candidates, dict):
            if name in candidates:
                ids[name] = candidates[name]
        elif tables.items is not None and not all(name in candidate for candidate in candidates):
            continue  # some come from the table
        elif any(name in candidate for candidate in candidates):
            ids[name] = [candidate.get(name, feature.default) for candidate in candidates]
    return ids


def ids_of_tensors(tensors: Mapping[str, Tensor], manifest: Manifest) -> dict[str, Any]:
    """Return the ids of a V2 request that was accepted; see `ids_of_document`."""
    ids: dict[str, Any] = {}
    for feature in _id_features(manifest):
        tensor = tensors.get(feature.name)
        if tensor is None:
            continue
        values = tensor.values
        flat = values if isinstance(values, list) else values.reshape(-1).tolist()
        width = tensor.width
        rows: list[Any] = flat
        if isinstance(feature, IdListInput):
            padding = "" if feature.encoding.id_type is str else feature.padding
            rows = [
                _unpadded(flat[start : start + width], padding, feature.padding_side)
                for start in range(0, tensor.rows * width, width)
            ]
        if feature.side == "candidate":
            ids[feature.name] = rows
        elif rows:
            ids[feature.name] = rows[0]
    return ids


def _id_features(manifest: Manifest) -> list[IdInput | IdListInput]:
    features: tuple[Input, ...] = manifest.inputs
    return [feature for feature in features if not isinstance(feature, DenseInput)]


def _unpadded(ids: list[Any], padding: object, side: str) -> list[Any]:
    """Return the ids without the padding at one end; padding between ids stays."""
    start, stop = 0, len(ids)
    if side == "right":
        while stop > start and ids[stop - 1] == padding:
            stop -= 1
    else:
        while start < stop and ids[start] == padding:
            start += 1
    return ids[start:stop]
