"""Load an artifact from the store, and check that it computes what was published.

This module holds the only call of `torch.jit.load`. A TorchScript file is code. It is loaded only
from the store, and only if its bytes have the size and the SHA-256 of the manifest. The bytes that
are hashed are the bytes that are loaded.
"""

import hashlib
import io
import logging
import mmap
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch
from pydantic import ValidationError

from app.artifacts.effects import effects
from app.artifacts.encoding import Listed, Vocabularies, Vocabulary, read_vocabulary
from app.artifacts.golden import Golden
from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.artifacts.large_tensors import NotSplittable, attach, split
from app.artifacts.manifest import Description, FileDigest, Manifest, first_problem
from app.artifacts.onednn import gain_of, least_work, padded_rows, rewrite
from app.artifacts.program import Program, error_summary
from app.artifacts.store import EXPORTED, GOLDEN, MANIFEST, PROGRAM, Artifact
from app.errors import ArtifactInvalid

GATE_WEIGHTS = "gate_weights"
"""The method of a module that returns what its gates choose."""
FOLD, SCORE_FOLDED = "fold", "score_folded"
"""The methods of a module that a table of items may be folded for: see `app.artifacts.fold`."""
LARGEST_MANIFEST = 16 * 2**20
"""Bytes; a manifest of a thousand features has a quarter of a megabyte."""
_CHUNK = 4 * 2**20
_HALF = frozenset((torch.bfloat16, torch.float16))
_LEAST_CHECKED, _MOST_CHECKED = 256, 1024  # rows of a batch; a gate's product is never large

logger = logging.getLogger(__name__)

# For the process, not around each call: `warnings.catch_warnings` is not safe among threads, and
# another thread that used it at the same time lost its own filters.
for _category in (DeprecationWarning, FutureWarning):
    warnings.filterwarnings("ignore", r"`torch\.jit", _category)


class Interface(Protocol):
    """What requests to a version look like: a `Model`, or a version that is not loaded."""

    @property
    def manifest(self) -> Manifest:
        """Describes the features."""

    @property
    def golden(self) -> Golden:
        """Requests that the version accepts."""

    @property
    def vocabularies(self) -> Vocabularies:
        """By feature."""

    @property
    def label(self) -> str:
        """`name/version`, as in logs and metrics."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Unloaded:
    """A version without its program: enough to read requests to it; see `read_unloaded`."""

    manifest: Manifest
    golden: Golden
    vocabularies: Vocabularies
    label: str


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Model:
    """A verified version of a model, on its device and ready to run; hashed by identity."""

    manifest: Manifest
    program: Program
    golden: Golden
    vocabularies: Vocabularies = field(default_factory=dict)
    golden_difference: float = 0.0
    """The largest difference from the golden examples when it was loaded; see `Golden.check`."""
    label: str = field(init=False)
    """`name/version`, as in logs and metrics."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", f"{self.manifest.name}/{self.manifest.version}")

    def __str__(self) -> str:
        return self.label


def load(artifact: Artifact, device: torch.device) -> Model:
    """Verify an artifact's files, load its program onto `device`, and check it against its golden.

    Raises:
        ArtifactInvalid: names the file and the rule that it breaks, or the error of loading it.
        OSError: a file cannot be read now.
    """
    try:
        return _load(artifact, device)
    except (ArtifactInvalid, OSError):
        raise
    except Exception as error:  # a module may raise anything, and memory may run out
        raise ArtifactInvalid(
            f"{PROGRAM}: {type(error).__name__}: {error_summary(error)}"
        ) from error


def _load(artifact: Artifact, device: torch.device) -> Model:
    manifest = read_manifest(artifact)
    check_sizes(artifact, manifest)  # before anything large is read
    golden = Golden.from_bytes(bytes(_read_verified(artifact, GOLDEN, manifest)), manifest)
    content = _read_verified(artifact, PROGRAM, manifest)
    if EXPORTED in manifest.files:
        _read_verified(artifact, EXPORTED, manifest)
    try:
        program, difference = _checked(content, manifest, device, golden, uses_onednn=True)
    except Exception as error:  # noqa: BLE001  (whatever it was: it must not keep a version away)
        program, difference = _checked(content, manifest, device, golden, uses_onednn=False)
        why = error_summary(error)
        logger.warning("%s: matrix products stay with MKL: %s", artifact, why)
    del content
    check_gates(program, golden)
    vocabularies = load_vocabularies(artifact, manifest)
    return Model(manifest, program, golden, vocabularies, difference)


def _checked(
    content: memoryview,
    manifest: Manifest,
    device: torch.device,
    golden: Golden,
    *,
    uses_onednn: bool,
) -> tuple[Program, float]:
    """Load a program; return it, and how far it is from the golden examples.

    If products run with oneDNN, the examples also run in a batch in which all of them do.
    """
    program = load_program(content, manifest, device, uses_onednn=uses_onednn)
    difference = golden.check(program)
    if program.pads_from:
        rows = padded_rows(max(_LEAST_CHECKED, min(program.large_from, _MOST_CHECKED)))
        difference = max(difference, golden.check_repeated(program, rows))
    return program, difference


def check_sizes(artifact: Artifact, manifest: Manifest) -> None:
    """Check that an artifact has the files of its manifest; their content is not read.

    Raises:
        ArtifactInvalid: a file is missing or has another size.
        OSError: a file cannot be looked at now.
    """
    for name, digest in manifest.files.items():
        with _open(artifact, name, digest):
            pass


def read_unloaded(artifact: Artifact, manifest: Manifest, *, with_vocabularies: bool) -> Unloaded:
    """Read a version without its program: its golden examples and, if asked for, vocabularies.

    Raises:
        ArtifactInvalid: a file is missing, differs from the manifest, or is not what it should be.
        OSError: a file cannot be read now.
    """
    golden = Golden.from_bytes(bytes(_read_verified(artifact, GOLDEN, manifest)), manifest)
    vocabularies = load_vocabularies(artifact, manifest) if with_vocabularies else {}
    return Unloaded(manifest, golden, vocabularies, str(artifact))


def load_vocabularies(artifact: Artifact, manifest: Manifest) -> Vocabularies:
    """Return the vocabularies of a version, verified, by feature.

    Raises:
        ArtifactInvalid: a file is missing, differs from the manifest, or is not a vocabulary.
        OSError: a file cannot be read now.
    """
    return read_vocabularies(manifest, lambda name: bytes(_read_verified(artifact, name, manifest)))


def verify(artifact: Artifact, manifest: Manifest) -> None:
    """Check that an artifact still has the files of a version that was loaded from it.

    Raises:
        ArtifactInvalid: a file is missing or differs.
        OSError: a file cannot be read now.
    """
    if read_manifest(artifact).files != manifest.files:
        raise ArtifactInvalid(f"{MANIFEST}: lists other files")
    for name in manifest.files:
        _read_verified(artifact, name, manifest)


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
        raise ArtifactInvalid(
            f"{MANIFEST}: describes {manifest.name}/{manifest.version}, its folder is {artifact}"
        )
    return manifest


def load_program(
    content: bytes | memoryview,
    description: Description,
    device: torch.device,
    *,
    uses_onednn: bool = False,
) -> Program:
    """Load TorchScript and freeze it on `device`.

    Freezing folds parameters into the graph. It happens here, where the device is known, and not
    in the file. With `uses_onednn`, large matrix products run with oneDNN if that is faster on this
    CPU.

    Raises:
        ArtifactInvalid: the content is not TorchScript, cannot be frozen, or cannot be served
            because of what it changes when it is called.
    """
    module = load_module(content, device)
    kept = [GATE_WEIGHTS] if description.gates else []
    kept += [] if description.folded_width is None else [FOLD, SCORE_FOLDED]
    if lacking := [method for method in kept if not hasattr(module, method)]:
        what = "gates" if lacking[0] == GATE_WEIGHTS else "folded_width"
        raise ArtifactInvalid(
            f"{PROGRAM}: {MANIFEST} describes {what}, but the module has no method {lacking[0]}"
        )
    try:
        # A module that was frozen before it was saved has no `training` attribute left.
        frozen = torch.jit.freeze(module, kept) if hasattr(module, "training") else module
    except (RuntimeError, ValueError) as error:
        raise _unloadable(error) from error
    facts = effects(module, frozen, *kept)
    if facts.problem:
        raise ArtifactInvalid(f"{PROGRAM}: {facts.problem}")
    pads_from, large_from = 0, 0
    if uses_onednn and device.type == "cpu":
        pads_from, large_from = _use_onednn(module, frozen, kept)
    return Program(
        frozen,
        description,
        device,
        copy_inputs=facts.inputs,
        has_steady_cost=not facts.reads_values,
        pads_from=pads_from,
        large_from=large_from,
    )


def _use_onednn(
    module: torch.jit.ScriptModule, frozen: torch.jit.ScriptModule, methods: Sequence[str]
) -> tuple[int, int]:
    """Rewrite a frozen module that has not run yet; return `pads_from` and `large_from`."""
    reduced = {parameter.dtype for parameter in module.parameters()} & _HALF
    for dtype in reduced:
        if gain_of(dtype) < 1:
            logger.warning(
                "the model has parameters in %s, which this CPU computes at %.2f of the speed of "
                "float32: publish it in fp32 for such CPUs",
                str(dtype).removeprefix("torch."),
                gain_of(dtype),
            )
    if reduced:
        return 1, 0  # PyTorch runs these with oneDNN, whatever their size
    work = least_work()
    if frozen is module or work is None:
        return 0, 0
    if SCORE_FOLDED in methods:
        rewrite(getattr(frozen, SCORE_FOLDED).graph, work)
    return rewrite(frozen.graph, work)


def check_gates(program: Program, golden: Golden) -> None:
    """Check that the gates of a program can be observed as its description says.

    Raises:
        ArtifactInvalid: they cannot; there is no check without gates.
    """
    if program.gates:
        try:
            program.gate_weights(golden.batch)
        except (RuntimeError, ValueError) as error:
            raise ArtifactInvalid(f"{PROGRAM}: {error_summary(error)}") from error


def load_module(content: bytes | memoryview, device: torch.device) -> torch.jit.ScriptModule:
    """Load TorchScript onto `device`, unchanged but in `eval` mode.

    Where the content is writable memory, large tensors are views of it. It must not be changed.

    Raises:
        ArtifactInvalid: the content is not TorchScript.
    """
    try:
        return _load_module(content, device).eval()
    except (RuntimeError, ValueError) as error:
        raise _unloadable(error) from error


def _load_module(content: bytes | memoryview, device: torch.device) -> torch.jit.ScriptModule:
    view = memoryview(content)
    with suppress(NotSplittable):
        parts = split(view)
        module = _jit_load(parts.archive, device)
        attach(module, view, parts)
        return module
    return _jit_load(content, device)


def _jit_load(content: bytes | memoryview, device: torch.device) -> torch.jit.ScriptModule:
    loaded: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
        io.BytesIO(content), map_location=device
    )
    return loaded


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


def _unloadable(error: Exception) -> ArtifactInvalid:
    reason = str(error).strip().splitlines()[0]
    return ArtifactInvalid(f"{PROGRAM}: cannot be loaded as TorchScript: {reason}")


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


def _read_verified(artifact: Artifact, name: str, manifest: Manifest) -> memoryview:
    """Read a file whose size and SHA-256 are those in the manifest.

    The interpreter's lock is free while a chunk is read or hashed: other threads go on.
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
