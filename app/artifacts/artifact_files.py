"""Read the files of an artifact, and check that they are those of its manifest.

Nothing here needs torch: commands that only look at a store start at once.
"""

import hashlib
import io
import mmap
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from pydantic import ValidationError

from app.artifacts.encoding import Listed, Vocabularies, Vocabulary, read_vocabulary
from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.artifacts.manifest import Description, FileDigest, Manifest, first_problem
from app.artifacts.store import MANIFEST, Artifact
from app.errors import ArtifactInvalid

LARGEST_MANIFEST = 16 * 2**20
"""Bytes; a manifest of a thousand features has a quarter of a megabyte."""
_CHUNK = 4 * 2**20  # bytes that are read and hashed at a time


def read_manifest(artifact: Artifact) -> Manifest:
    """Read and validate `model.json`.

    Raises:
        ArtifactInvalid: it is missing or wrong, or it describes another model or version.
        OSError: it cannot be read now.
    """
    with _open(artifact, MANIFEST) as file:
        content = file.read(LARGEST_MANIFEST + 1)
    if len(content) > LARGEST_MANIFEST:
        raise ArtifactInvalid(f"{MANIFEST}: is larger than {LARGEST_MANIFEST} bytes")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise ArtifactInvalid(f"{MANIFEST}: {first_problem(error, content)}") from error
    except RecursionError as error:
        raise ArtifactInvalid(f"{MANIFEST}: is nested too deeply") from error
    if (manifest.name, manifest.version) != (artifact.model, artifact.version):
        raise ArtifactInvalid(f"{MANIFEST}: describes {manifest.label}, its folder is {artifact}")
    return manifest


def check_sizes(artifact: Artifact, manifest: Manifest) -> None:
    """Check that an artifact has the files of its manifest; their content is not read.

    Raises:
        ArtifactInvalid: a file is missing or has another size.
        OSError: a file cannot be looked at now.
    """
    for name, digest in manifest.files.items():
        with _open(artifact, name, digest):
            pass


def verify(artifact: Artifact, manifest: Manifest) -> None:
    """Check that an artifact still has the files of a version that was loaded from it.

    Raises:
        ArtifactInvalid: a file is missing or differs.
        OSError: a file cannot be read now.
    """
    if read_manifest(artifact).files != manifest.files:
        raise ArtifactInvalid(f"{MANIFEST}: lists other files")
    for name in manifest.files:
        read_verified(artifact, name, manifest)


def _open(artifact: Artifact, name: str, digest: FileDigest | None = None) -> io.BufferedReader:
    """Open a file, which must be a regular one with the size of its digest.

    An OSError is not the artifact's fault, and may pass.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(artifact.folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ArtifactInvalid(f"{name}: is missing") from None
    status = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a regular file"
    elif digest is not None and status.st_size != digest.size:
        problem = f"has {status.st_size} bytes, the manifest says {digest.size}"
    if problem:
        os.close(descriptor)
        raise ArtifactInvalid(f"{name}: {problem}")
    return os.fdopen(descriptor, "rb")


def read_verified(artifact: Artifact, name: str, manifest: Manifest) -> memoryview:
    """Return the content of a file whose size and SHA-256 are those in the manifest.

    The memory is writable. The interpreter's lock is free while a chunk is read or hashed: other
    threads go on.

    Raises:
        ArtifactInvalid: the file is missing or differs.
        OSError: it cannot be read now.
    """
    digest = manifest.files[name]
    hasher = hashlib.sha256()
    content = _memory(digest.size)
    with _open(artifact, name, digest) as file:
        done = 0
        while done < digest.size and (count := file.readinto(content[done : done + _CHUNK])):
            hasher.update(content[done : done + count])
            done += count
    if done < digest.size:
        raise ArtifactInvalid(f"{name}: has {done} bytes, the manifest says {digest.size}")
    if hasher.hexdigest() != digest.sha256:
        raise ArtifactInvalid(f"{name}: its SHA-256 differs from the manifest's")
    return content


def _memory(size: int) -> memoryview:
    """Return writable memory; allocating and releasing it does not stop other threads.

    Its pages are allocated while a file is read into it, without the interpreter's lock. The
    release of 512 MB takes 180 ms if the memory is shared, 45 ms if it is private, and 1 ms with
    huge pages.
    """
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[:size]


def load_vocabularies(artifact: Artifact, manifest: Manifest) -> Vocabularies:
    """Return the vocabularies of a version, verified, by feature.

    Raises:
        ArtifactInvalid: a file is missing, differs from the manifest, or is not a vocabulary.
        OSError: a file cannot be read now.
    """
    return read_vocabularies(manifest, lambda name: bytes(read_verified(artifact, name, manifest)))


def read_vocabularies(description: Description, read: Callable[[str], bytes]) -> Vocabularies:
    """Return the vocabularies of a model's features, by feature. Each file is read once.

    Args:
        description: names the file of each feature.
        read: returns the content of a file.

    Raises:
        ArtifactInvalid: a file is not a vocabulary, has more ids than the feature has rows, or
            lacks the default of a feature that rejects unknown ids.
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
    """Check that a feature has a row for every id, and that its default can be looked up.

    Raises:
        ArtifactInvalid: names the file and the rule that it breaks.
    """
    if len(vocabulary) >= feature.vocabulary_size:
        raise ArtifactInvalid(
            f"{file}: has {len(vocabulary)} ids, but {feature.name} has room for "
            f"{feature.vocabulary_size - 1}: vocabulary_size {feature.vocabulary_size} less row 0"
        )
    defaults = feature.default if isinstance(feature.default, tuple) else (feature.default,)
    if feature.unknown == "reject" and not set(defaults) - {None} <= vocabulary.keys():
        raise ArtifactInvalid(f"{file}: the default of {feature.name} is missing")
    if isinstance(feature, IdListInput) and feature.reserves_padding:
        rows = [vocabulary.get(id_, feature.unknown) for id_ in feature.default or ()]
        if feature.padding in rows:
            raise ArtifactInvalid(
                f"{file}: an id of {feature.name}'s default has its padding's row"
            )
