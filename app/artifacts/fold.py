"""Fold: the candidates' part of the first layers, computed once per item and kept in a table.

The first layer of a network is `W_u·u + W_c·c + b`. `W_c·c` depends on the item alone. A program
with `folded_width` computes it with `fold`, and scores from it with `score_folded`. A table of
items may keep it in a file of its own, beside the features: it holds for exactly one program, and
takes 4·H bytes per item.

Sums in another order round differently. So a fold serves only where its scores agree with those of
the features within the tolerance of the manifest: on the golden examples, and on rows of the table.
That is checked when it is published, and again by the server before it is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from app.artifacts.artifact_files import read_manifest
from app.artifacts.columns import Columns, ModelInputs
from app.artifacts.golden import device_name
from app.artifacts.loader import Model
from app.artifacts.manifest import Manifest
from app.artifacts.program import Program, error_summary, scores
from app.artifacts.store import PROGRAM, Artifact
from app.artifacts.tables.description import Fold
from app.artifacts.tables.segment import Folded, Records
from app.artifacts.tables.table import Table
from app.errors import ArtifactInvalid

CHECKED_ROWS = 256
"""The rows of a table whose scores are compared."""
_AT_ONCE = 4 * 2**20  # numbers that are computed at a time: 16 MB


def fold_of(manifest: Manifest) -> Fold:
    """Return how a table that is folded for a version describes its fold."""
    width = manifest.folded_width
    assert width is not None
    return Fold(version=manifest.version, program=manifest.files[PROGRAM].sha256, width=width)


def version_of(fold: Fold, artifacts: Sequence[Artifact]) -> Artifact | None:
    """Return the newest of a model's versions that has the program of a fold; None if none has."""
    for artifact in reversed(artifacts):
        with suppress(ArtifactInvalid, OSError):  # it does not serve
            if fold.serves(read_manifest(artifact)):
                return artifact
    return None


def fold_records(program: Program, records: Records) -> Iterator[Folded]:
    """Yield what a program folds of records, part by part, `[n, H]`.

    Raises:
        ArtifactInvalid: the program failed, or did not return what its manifest says.
    """
    width = program.description.folded_width
    assert width is not None
    step = max(1, _AT_ONCE // width)
    for start in range(0, len(records), step):
        yield _fold(program, _columns(program, records[start : start + step]))


def check_golden(model: Model) -> float:
    """Compare the scores of the golden examples, folded and not; return the largest difference.

    The difference of y from g is `|y - g| / (1 + |g|)`.

    Raises:
        ArtifactInvalid: it is above the tolerance of the manifest, or the program failed.
    """
    batch, program = model.golden.batch, model.program
    largest = 0.0
    for inputs in (batch, *batch.requests()):
        difference = _compare(program, inputs, _fold(program, inputs.candidate), "golden examples")
        largest = max(largest, difference)
    return largest


def check_rows(model: Model, records: Records, folded: Folded) -> float:
    """Compare the scores of rows of a table for the golden users, folded and not.

    Args:
        model: the version that the rows are folded for.
        records: `[n]` the features.
        folded: `[n, H]` what the table has.

    Returns:
        The largest difference, as `check_golden`.

    Raises:
        ArtifactInvalid: it is above the tolerance of the manifest, or the program failed.
    """
    if not len(records):
        return 0.0
    golden, program = model.golden.batch, model.program
    users = int(golden.row_to_request.max()) + 1
    candidate = _columns(program, records)
    together = ModelInputs(golden.user, candidate, np.arange(len(records)) % users)
    alone = ModelInputs(
        {name: column[:1] for name, column in golden.user.items()},
        candidate,
        np.zeros(len(records), np.int64),
    )
    return max(
        _compare(program, inputs, folded, "rows of the table") for inputs in (together, alone)
    )


def check_table(model: Model, table: Table) -> float:
    """Compare the scores of some rows of a folded table, the newest and others; see `check_rows`.

    Raises:
        ArtifactInvalid: as `check_rows`.
    """
    positions = table.newest(CHECKED_ROWS)
    return check_rows(model, table.take(positions), table.take_folded(positions))


def _columns(program: Program, records: Records) -> Columns:
    # Copies: torch takes no memory that cannot be written.
    return {
        feature.name: records[feature.name].copy()
        for feature in program.description.candidate_inputs
    }


def _fold(program: Program, candidate: Columns) -> Folded:
    try:
        return program.fold(candidate)
    except (RuntimeError, ValueError) as error:
        raise ArtifactInvalid(f"fold: the program failed: {error_summary(error)}") from error


def _compare(program: Program, batch: ModelInputs, folded: Folded, what: str) -> float:
    tolerance = program.description.precision.tolerance.get(device_name(program), 0.0)
    try:
        plain = program.run(batch)
        from_folded = program.run(replace(batch, candidate={}, folded=folded))
    except (RuntimeError, ValueError) as error:
        raise ArtifactInvalid(f"fold: the program failed: {error_summary(error)}") from error
    tasks = program.description.tasks
    largest = 0.0
    for values, y, g in (
        ("raw output", from_folded, plain),
        ("score", scores(from_folded, tasks), scores(plain, tasks)),
    ):
        ratio = _differences(y, g)  # [B, K]
        worst = float(ratio.max())
        if worst > tolerance:
            task = tasks[int(np.argmax(ratio)) % len(tasks)].name
            raise ArtifactInvalid(
                f"fold: {values} of task {task} differs by {worst:.3g} on {what}, "
                f"tolerance {tolerance:g}"
            )
        largest = max(largest, worst)
    return largest


def _differences(y: npt.NDArray[np.float32], g: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return `|y - g| / (1 + |g|)`: 0 where both are the same number, infinite or NaN."""
    with np.errstate(invalid="ignore"):
        ratio = np.abs(y - g) / (1 + np.abs(g))
    is_same = (y == g) | (np.isnan(y) & np.isnan(g))
    differences: npt.NDArray[np.float32] = np.where(
        is_same, 0, np.where(np.isnan(ratio), np.inf, ratio)
    )
    return differences
