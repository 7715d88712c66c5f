"""Vocabulary files: the ids that a model knows, one JSON value a line, in the order of their rows.

Line n, counted from 1, has row n; row 0 is left to the unknown.
"""

from collections.abc import Callable, Sequence

import orjson

from app.artifacts.encoding import Id, Listed, Vocabularies, Vocabulary
from app.artifacts.manifest import DenseInput, Description, IdInput, IdListInput
from app.errors import ArtifactInvalid


def write_vocabulary(ids: Sequence[Id]) -> bytes:
    """The content of a vocabulary file: the ids in the order of their rows."""
    return b"".join(orjson.dumps(each) + b"\n" for each in ids)


def read_vocabulary(content: bytes, id_type: type[Id]) -> dict[Id, int]:
    """Read the content of a vocabulary file.

    Raises:
        ValueError: a line is not a JSON value of `id_type`, or repeats one; it says which line.
    """
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    vocabulary: dict[Id, int] = {}
    for row, line in enumerate(lines, start=1):
        try:
            each = orjson.loads(line)
        except orjson.JSONDecodeError:
            each = None
        if type(each) is not id_type or each == "":
            what = "a JSON string, not empty" if id_type is str else "an integer"
            raise ValueError(f"line {row} is not {what}")
        if vocabulary.setdefault(each, row) != row:
            raise ValueError(f"line {row} repeats line {vocabulary[each]}")
    return vocabulary


def read_vocabularies(description: Description, read: Callable[[str], bytes]) -> Vocabularies:
    """The vocabularies of a model's features; each file is read once.

    Args:
        description: says which feature has which file.
        read: gives the content of a file.

    Raises:
        ArtifactInvalid: a file is no vocabulary, has more ids than rows, or lacks an id that is a
            default where unknown ids are rejected.
    """
    by_file: dict[str, Vocabulary] = {}
    by_feature: dict[str, Vocabulary] = {}
    for feature in description.inputs:
        if isinstance(feature, DenseInput) or not isinstance(feature.encoding, Listed):
            continue
        file = feature.encoding.file
        if file not in by_file:
            try:
                by_file[file] = read_vocabulary(read(file), feature.encoding.id_type)
            except ValueError as error:
                raise ArtifactInvalid(f"{file}: {error}") from error
        _check(feature, file, by_file[file])
        by_feature[feature.name] = by_file[file]
    return by_feature


def _check(feature: IdInput | IdListInput, file: str, vocabulary: Vocabulary) -> None:
    if len(vocabulary) >= feature.vocabulary_size:
        raise ArtifactInvalid(
            f"{file}: has {len(vocabulary)} ids, and {feature.name} has "
            f"{feature.vocabulary_size} rows, of which row 0 is not for an id"
        )
    defaults = feature.default if isinstance(feature.default, tuple) else (feature.default,)
    if feature.unknown == "reject" and not set(defaults) - {None} <= vocabulary.keys():
        raise ArtifactInvalid(f"{file}: lacks the default of {feature.name}")
