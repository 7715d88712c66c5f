"""Why a version of a model cannot use a table, or a feature cannot be its key."""

from collections.abc import Collection

import orjson

from app.artifacts.encoding import Listed
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.artifacts.manifest import Manifest
from app.artifacts.tables.description import KeyType, TableColumn, TableDescription, side_of

_LONGEST_VALUE = 100  # characters of a manifest entry that a message repeats


def incompatibilities(table: TableDescription, manifest: Manifest) -> list[str]:
    """Return every reason why a version of a model cannot use a table; none if it can.

    Each feature of the table must have the same entry in the manifest and the same vocabulary as
    when the table was made: its values are stored as the model takes them. Features that the model
    does not have are ignored. A feature that the table lacks must have a default, or be one that
    requests send.
    """
    if table.model != manifest.name:
        return [f'the table is of the model "{table.model}"']
    side = side_of(table.kind)
    inputs = {feature.name: feature for feature in manifest.inputs if feature.side == side}
    stored = {column.feature.name: column for column in table.columns}
    problems: list[str] = []
    for name, feature in inputs.items():
        if name in stored:
            problems += _differences(stored[name], feature, manifest)
        elif feature.default is None and name not in table.sent and name != table.key.name:
            problems.append(f'feature "{name}": is not in the table and has no default')
        is_filled = table.unknown == "default" and name in stored and name != table.key.name
        if is_filled and feature.default is None:
            problems.append(f'feature "{name}": has no default, which unknown = default needs')
    key = inputs.get(table.key.name)
    if key is not None and (reason := key_problem(key, table.key.type)):
        problems.append(f'key "{key.name}": {reason}')
    elif any(table.key.name == other.name for other in manifest.inputs if other.side != side):
        problems.append(f'key "{table.key.name}": is a feature of the other side')
    return problems


def key_problem(feature: Input, key_type: KeyType | None = None) -> str:
    """Return why a feature cannot be the key of a table; "" if it can."""
    if not isinstance(feature, IdInput):
        return f"is a feature of kind {feature.kind}; a key is one id"
    expected = key_type_of(feature)
    if key_type is not None and key_type != expected:
        return f"ids of the model are {expected}, keys of the table are {key_type}"
    return ""


def key_type_of(feature: IdInput) -> KeyType:
    """Return the type of the keys of a table whose key is this feature."""
    return "string" if feature.encoding.id_type is str else "int64"


def vocabulary_digest(feature: Input, manifest: Manifest) -> str | None:
    """Return the SHA-256 of a feature's vocabulary file; None if it has none."""
    if isinstance(feature, DenseInput) or not isinstance(feature.encoding, Listed):
        return None
    return manifest.files[feature.encoding.file].sha256


def _differences(stored: TableColumn, feature: Input, manifest: Manifest) -> list[str]:
    """Return how a feature of a model differs from the one that a column was made for."""
    name = feature.name
    was, now = stored.feature.model_dump(mode="json"), feature.model_dump(mode="json")
    problems = [
        f'feature "{name}": {key} is {_shown(now.get(key))}, '
        f"the table was made with {_shown(was.get(key))}"
        for key in dict.fromkeys([*now, *was])
        if was.get(key) != now.get(key)
    ]
    if isinstance(feature, IdListInput) and feature.reserves_padding and not stored.measured:
        problems.append(
            f'feature "{name}": lists of the table may contain {feature.padding}, the padding, '
            "which is no id of this version: publish the table again"
        )
    if not problems and stored.vocabulary != vocabulary_digest(feature, manifest):
        problems.append(f'feature "{name}": the table was made with another vocabulary')
    return problems


def _shown(value: object) -> str:
    json = orjson.dumps(value).decode()
    return json if len(json) <= _LONGEST_VALUE else f"{json[:_LONGEST_VALUE]}…"


def fold_problems(columns: Collection[str], manifest: Manifest) -> list[str]:
    """Return every reason why a table of items cannot be folded for a version; none if it can.

    What is folded must not depend on the request: the table must have every candidate feature.

    Args:
        columns: the features of the table.
        manifest: of a version that the table fits.
    """
    if manifest.folded_width is None:
        return [
            f"version {manifest.version} cannot be folded: its model.json has no folded_width "
            "(training writes it for networks of this repository that have candidate features)"
        ]
    return [
        f'feature "{feature.name}": is not in the table, so the table cannot be folded'
        for feature in manifest.candidate_inputs
        if feature.name not in columns
    ]
