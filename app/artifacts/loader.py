"""From an artifact in the store to a program that is proven to compute what was published.

This module holds the only call of `torch.jit.load`. A TorchScript file is code: it is loaded only
from the store, and only when its bytes have the size and the SHA-256 that the manifest states.
The bytes that are hashed are the bytes that are loaded.
"""

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from pydantic import ValidationError

from app.artifacts.encoding import Listed, Vocabularies, Vocabulary, read_vocabulary
from app.artifacts.golden import Golden
from app.artifacts.manifest import (
    DenseInput,
    Description,
    FileDigest,
    IdInput,
    IdListInput,
    Manifest,
)
from app.artifacts.program import Program, cause
from app.artifacts.store import EXPORTED, GOLDEN, MANIFEST, PROGRAM, Artifact
from app.errors import ArtifactInvalid
from app.lifecycle.statistics import VersionStatistics


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Model:
    """A verified version of a model, on its device and ready to run; hashed by identity.

    All of it is constant but `usage`, which the event loop counts in.
    """

    manifest: Manifest
    program: Program
    golden: Golden
    vocabularies: Vocabularies = field(default_factory=dict)
    usage: VersionStatistics = field(default_factory=VersionStatistics)

    def __str__(self) -> str:
        return f"{self.manifest.name}/{self.manifest.version}"


def load(artifact: Artifact, device: torch.device) -> Model:
    """Verify an artifact's files, load its program onto `device`, and check it against its golden.

    Raises:
        ArtifactInvalid: with the file and the rule that it breaks.
        OSError: a file cannot be read now.
    """
    manifest = read_manifest(artifact)
    golden = Golden.from_bytes(_read_verified(artifact, GOLDEN, manifest.files[GOLDEN]), manifest)
    content = _read_verified(artifact, PROGRAM, manifest.files[PROGRAM])
    if EXPORTED in manifest.files:
        _read_verified(artifact, EXPORTED, manifest.files[EXPORTED])
    try:
        program = load_program(content, manifest, device)
        golden.check(program)
    except ArtifactInvalid:
        raise
    except Exception as error:  # somebody's code: it may raise anything
        raise ArtifactInvalid(f"{PROGRAM}: {type(error).__name__}: {cause(error)}") from error
    vocabularies = read_vocabularies(
        manifest, lambda name: _read_verified(artifact, name, manifest.files[name])
    )
    return Model(manifest, program, golden, vocabularies)


def read_manifest(artifact: Artifact) -> Manifest:
    """Read and validate `model.json`.

    Raises:
        ArtifactInvalid: it is missing or wrong, or it describes another model or version.
        OSError: it cannot be read now.
    """
    try:
        manifest = Manifest.model_validate_json(_read(artifact, MANIFEST))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise ArtifactInvalid(f"{MANIFEST}: {where}: {first['msg']}") from error
    if (manifest.name, manifest.version) != (artifact.model, artifact.version):
        raise ArtifactInvalid(
            f"{MANIFEST}: describes {manifest.name}/{manifest.version}, but lies in {artifact}"
        )
    return manifest


def load_program(content: bytes, description: Description, device: torch.device) -> Program:
    """Load TorchScript and freeze it on `device`.

    Freezing folds parameters into the graph, which is why it happens here, where the device is
    known, and not in the file.

    Raises:
        ArtifactInvalid: the content is no TorchScript, or cannot be frozen.
    """
    module = load_module(content, device)
    try:
        with warnings.catch_warnings():
            _ignore_deprecation()
            # A module that was frozen before it was saved has no `training` attribute left.
            frozen = torch.jit.freeze(module) if hasattr(module, "training") else module
    except (RuntimeError, ValueError) as error:
        raise _unloadable(error) from error
    return Program(frozen, description, device)


def load_module(content: bytes, device: torch.device) -> torch.jit.ScriptModule:
    """Load TorchScript onto `device` as it is, in `eval` mode.

    Raises:
        ArtifactInvalid: the content is no TorchScript.
    """
    try:
        with warnings.catch_warnings():
            _ignore_deprecation()
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(content), map_location=device
            )
            return module.eval()
    except (RuntimeError, ValueError) as error:
        raise _unloadable(error) from error


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
        _check_vocabulary(feature, file, by_file[file])
        by_feature[feature.name] = by_file[file]
    return by_feature


def _check_vocabulary(feature: IdInput | IdListInput, file: str, vocabulary: Vocabulary) -> None:
    if len(vocabulary) >= feature.vocabulary_size:
        raise ArtifactInvalid(
            f"{file}: has {len(vocabulary)} ids, and {feature.name} has "
            f"{feature.vocabulary_size} rows, of which row 0 is not for an id"
        )
    defaults = feature.default if isinstance(feature.default, tuple) else (feature.default,)
    if feature.unknown == "reject" and not set(defaults) - {None} <= vocabulary.keys():
        raise ArtifactInvalid(f"{file}: lacks the default of {feature.name}")


def _ignore_deprecation() -> None:
    warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
    warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)


def _unloadable(error: Exception) -> ArtifactInvalid:
    reason = str(error).strip().splitlines()[0]
    return ArtifactInvalid(f"{PROGRAM}: cannot be loaded as TorchScript: {reason}")


def _read(artifact: Artifact, name: str) -> bytes:
    """Read a file; an OSError is not the artifact's fault, and may pass."""
    path = artifact.folder / name
    if not path.is_file():  # a pipe or a device could block for ever
        raise ArtifactInvalid(f"{name}: is {'no regular file' if path.exists() else 'missing'}")
    return path.read_bytes()


def _read_verified(artifact: Artifact, name: str, digest: FileDigest) -> bytes:
    content = _read(artifact, name)
    if len(content) != digest.size:
        raise ArtifactInvalid(f"{name}: has {len(content)} bytes, the manifest says {digest.size}")
    if hashlib.sha256(content).hexdigest() != digest.sha256:
        raise ArtifactInvalid(f"{name}: its SHA-256 is not the one in the manifest")
    return content
