"""Publish a module as a new version in the store: completely, or not at all."""

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import torch
from pydantic import ValidationError

from app.artifacts.artifact_files import read_vocabularies
from app.artifacts.columns import ModelInputs
from app.artifacts.golden import Golden
from app.artifacts.loader import check_gates, load, load_program
from app.artifacts.manifest import Description, FileDigest, Manifest, first_problem
from app.artifacts.store import EXPORTED, GOLDEN, MANIFEST, PROGRAM, Artifact, Store
from app.artifacts.unnamed_folder import name_folder, unnamed_folder, write_file
from app.errors import ArtifactInvalid


def publish(
    store: Store,
    description: Description,
    module: torch.jit.ScriptModule | bytes,
    requests: ModelInputs,
    vocabularies: Mapping[str, bytes] = MappingProxyType({}),
    exported: bytes | None = None,
) -> Artifact:
    """Write a new version of a model and return it.

    The golden examples are the outputs of the saved file for `requests`, loaded as the service
    loads it, on the CPU. Readers of the store see the complete version or nothing: it is written
    under a temporary name and renamed.

    Args:
        store: where to write. The version is one above the newest.
        description: the model's manifest without files, version and time.
        module: in `eval` mode and not frozen, so that the file can be loaded onto any device; or
            the bytes of such a file, which are published unchanged.
        requests: two or more requests of different sizes.
        vocabularies: the files that the inputs' encodings name, by name.
        exported: the same network as a `torch.export` program, which is published too.

    Raises:
        ArtifactInvalid: the module cannot be loaded or served, its outputs are not as described,
            a request's outputs depend on other requests, or a vocabulary is missing or wrong.
    """
    if missing := sorted(description.vocabulary_files - vocabularies.keys()):
        raise ArtifactInvalid(f"{missing[0]}: is missing, but the encoding of an input names it")
    read_vocabularies(description, vocabularies.__getitem__)
    content = module if isinstance(module, bytes) else _to_bytes(module)
    program = load_program(content, description, torch.device("cpu"))
    golden = Golden.record(program, requests)
    golden.check(program)
    check_gates(program, golden)
    files = {PROGRAM: content, GOLDEN: golden.to_bytes(), **vocabularies}
    if exported is not None:
        files[EXPORTED] = exported
    return _write_version(store, description, files)


def publish_copy(store: Store, folder: Path) -> Artifact:
    """Copy a version's folder into the store as a new version, and return it.

    Only the files that its manifest lists are copied. The copy is loaded on the CPU, and its golden
    examples are run, before it gets its name.

    Raises:
        ArtifactInvalid: the folder is not a valid version.
        OSError: it cannot be read, or the store cannot be written.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(content)
    except FileNotFoundError:
        raise ArtifactInvalid(f"{MANIFEST}: is missing") from None
    except ValidationError as error:
        raise ArtifactInvalid(f"{MANIFEST}: {first_problem(error, content)}") from error
    target = store.folder / manifest.name
    with unnamed_folder(target) as written:
        write_file(written / MANIFEST, manifest.to_json())
        for name in manifest.files:
            _copy(folder / name, written / name)
        load(Artifact(manifest.name, manifest.version, written), torch.device("cpu"))
        return _name_version(store, manifest, written)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise ArtifactInvalid(f"{source.name}: is missing") from None
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _name_version(store: Store, manifest: Manifest, written: Path) -> Artifact:
    """Give a complete folder the next version's number and its name in the store."""
    folder = store.folder / manifest.name
    version = max(store.versions(manifest.name), default=0)
    while True:
        version += 1
        numbered = manifest.model_copy(update={"version": version})
        write_file(written / MANIFEST, numbered.to_json())
        if name_folder(written, folder / str(version)):
            return Artifact(manifest.name, version, folder / str(version))
        # Another publisher or an incomplete version has this number.


def _write_version(store: Store, description: Description, files: Mapping[str, bytes]) -> Artifact:
    """Write files and manifest under a temporary name, and rename that to the next version."""
    folder = store.folder / description.name
    with unnamed_folder(folder) as written:
        for name, content in files.items():
            write_file(written / name, content)
        manifest = Manifest(
            **{name: getattr(description, name) for name in Description.model_fields},
            version=1,
            created=datetime.now(UTC).replace(microsecond=0),
            torch_version=torch.__version__,
            files={name: _digest(content) for name, content in files.items()},
        )
        return _name_version(store, manifest, written)


def _to_bytes(module: torch.jit.ScriptModule) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)
        torch.jit.save(module, buffer)
    return buffer.getvalue()


def _digest(content: bytes) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
