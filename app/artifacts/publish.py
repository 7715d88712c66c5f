"""Publish a module as a new version in the store: completely, or not at all."""

import hashlib
import io
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import torch

from app.artifacts.columns import ModelInputs
from app.artifacts.golden import Golden
from app.artifacts.loader import load_program, read_vocabularies
from app.artifacts.manifest import Description, FileDigest, Manifest
from app.artifacts.store import EXPORTED, GOLDEN, MANIFEST, PROGRAM, Artifact, Store
from app.errors import ArtifactInvalid

_TEMPORARY = ".publishing-"
_LEFT_OVER_S = 24 * 3600.0


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
    files = {PROGRAM: content, GOLDEN: golden.to_bytes(), **vocabularies}
    if exported is not None:
        files[EXPORTED] = exported
    return _write_version(store, description, files)


def _write_version(store: Store, description: Description, files: Mapping[str, bytes]) -> Artifact:
    """Write files and manifest under a temporary name, and rename that to the next version."""
    folder = store.folder / description.name
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left_over(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_TEMPORARY) as temporary:
        written = Path(temporary) / "artifact"
        written.mkdir()
        for name, content in files.items():
            _write(written / name, content)
        version = max(store.versions(description.name), default=0)
        while True:
            version += 1
            manifest = Manifest(
                **{name: getattr(description, name) for name in Description.model_fields},
                version=version,
                created=datetime.now(UTC).replace(microsecond=0),
                torch_version=torch.__version__,
                files={name: _digest(content) for name, content in files.items()},
            )
            _write(written / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
            try:
                written.rename(folder / str(version))
            except OSError:
                if not (folder / str(version)).exists():
                    raise
                continue  # another publisher or an incomplete version has this number
            return Artifact(description.name, version, folder / str(version))


def _remove_left_over(folder: Path) -> None:
    """Remove the files of publishers that were killed; a running one writes every few seconds."""
    for each in folder.glob(f"{_TEMPORARY}*"):
        try:
            newest = max(path.lstat().st_mtime for path in (each, *each.rglob("*")))
        except OSError:  # it was renamed or removed meanwhile
            continue
        if time.time() - newest > _LEFT_OVER_S:
            shutil.rmtree(each, ignore_errors=True)


def _to_bytes(module: torch.jit.ScriptModule) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)
        torch.jit.save(module, buffer)
    return buffer.getvalue()


def _digest(content: bytes) -> FileDigest:
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
