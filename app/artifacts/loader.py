"""Load an artifact from the store, and check that it computes what was published.

This module holds the only call of `torch.jit.load`. A TorchScript file is code. It is loaded only
from the store, and only if its bytes have the size and the SHA-256 of the manifest. The bytes that
are hashed are the bytes that are loaded.
"""

import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch

from app.artifacts.artifact_files import (
    check_sizes,
    load_vocabularies,
    read_manifest,
    read_verified,
)
from app.artifacts.effects import effects
from app.artifacts.encoding import Vocabularies
from app.artifacts.golden import Golden
from app.artifacts.large_tensors import NotSplittable, attach, split
from app.artifacts.manifest import Description, Manifest
from app.artifacts.onednn import gain_of, least_work, padded_rows, rewrite
from app.artifacts.program import Program, error_summary
from app.artifacts.store import EXPORTED, GOLDEN, MANIFEST, PROGRAM, Artifact
from app.errors import ArtifactInvalid

GATE_WEIGHTS = "gate_weights"
"""The method of a module that returns what its gates choose."""
FOLD, SCORE_FOLDED = "fold", "score_folded"
"""The methods of a module that a table of items may be folded for: see `app.artifacts.fold`."""
_HALF = frozenset((torch.bfloat16, torch.float16))
_LEAST_CHECKED, _MOST_CHECKED = 256, 1024  # rows of a batch; a gate's product is never large

logger = logging.getLogger(__name__)

# For the process, not around each call: `warnings.catch_warnings` is not safe among threads, and
# another thread that used it at the same time lost its own filters.
for _category in (DeprecationWarning, FutureWarning):
    warnings.filterwarnings("ignore", r"`torch\.jit", _category)


class Interface(Protocol):
    """What reading requests to a version needs: a `Model`, or a version that is not loaded."""

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
        object.__setattr__(self, "label", self.manifest.label)

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
    golden = Golden.from_bytes(bytes(read_verified(artifact, GOLDEN, manifest)), manifest)
    content = read_verified(artifact, PROGRAM, manifest)
    if EXPORTED in manifest.files:
        read_verified(artifact, EXPORTED, manifest)
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


def read_unloaded(artifact: Artifact, manifest: Manifest, *, with_vocabularies: bool) -> Unloaded:
    """Read a version without its program: its golden examples and, if asked for, vocabularies.

    Raises:
        ArtifactInvalid: a file is missing, differs from the manifest, or is not what it should be.
        OSError: a file cannot be read now.
    """
    golden = Golden.from_bytes(bytes(read_verified(artifact, GOLDEN, manifest)), manifest)
    vocabularies = load_vocabularies(artifact, manifest) if with_vocabularies else {}
    return Unloaded(manifest, golden, vocabularies, str(artifact))


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


def _unloadable(error: Exception) -> ArtifactInvalid:
    reason = str(error).strip().splitlines()[0]
    return ArtifactInvalid(f"{PROGRAM}: cannot be loaded as TorchScript: {reason}")
