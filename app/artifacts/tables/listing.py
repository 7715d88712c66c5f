"""List the tables of a model in the store, without reading their rows."""

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.artifacts.manifest import Manifest
from app.artifacts.store import Fingerprint, fingerprint
from app.artifacts.tables.compatibility import incompatibilities
from app.artifacts.tables.description import TABLE, TABLE_KINDS, Fold, TableKind, read_description
from app.artifacts.tables.segment import check_sizes
from app.errors import ArtifactInvalid

Stamp = tuple[int, int, int]
"""The inode, the size and the time of the last change (ns) of a `table.json`."""

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NUMBER = re.compile(r"[1-9][0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class ListedTable:
    """A table in the store that is not read yet.

    Attributes:
        kind: `items` or `users`.
        version: its number.
        folder: of its files.
        deltas: the numbers of its deltas: 1, 2, … without a gap.
        stranded: the numbers of the deltas after a gap, which are not applied.
        stamps: of each of `deltas`; another one may be another delta with the same number.
    """

    kind: TableKind
    version: int
    folder: Path
    deltas: tuple[int, ...] = ()
    stranded: tuple[int, ...] = ()
    stamps: tuple[Stamp, ...] = ()

    @property
    def label(self) -> str:
        """`items/3`, as in messages: the table, whatever its deltas."""
        return f"{self.kind}/{self.version}"

    @property
    def gap(self) -> str:
        """Why deltas are not applied, and what to do; "" if all of them are."""
        if not self.stranded:
            return ""
        missing, folder = len(self.deltas) + 1, f"{self.label}.delta"
        first, *others = self.stranded
        more = f" and {len(others)} more" if others else ""
        return (
            f"delta {missing} is missing, so delta {first}{more} will not be applied: restore "
            f"{folder}/{missing}, or remove the deltas after it"
        )

    def delta_folder(self, number: int) -> Path:
        """Return the folder of a delta."""
        return self.folder.with_name(f"{self.version}.delta") / str(number)

    def fingerprint(self) -> Fingerprint:
        """Return what tells changed files of the table apart; empty if it has been removed.

        Raises:
            OSError: it cannot be read now.
        """
        return fingerprint(self.folder)

    def delta_fingerprint(self, number: int) -> Fingerprint:
        """Return what tells changed files of a delta apart; empty if it has been removed.

        Raises:
            OSError: it cannot be read now.
        """
        return fingerprint(self.delta_folder(number))


def tables_of(model: Path, kind: TableKind) -> list[ListedTable]:
    """Return the tables of a model, by version.

    A folder is a table once its `table.json` is there. A delta after a gap is stranded: deltas are
    applied in their order.

    Args:
        model: the model's folder in the store; it may be missing.
        kind: `items` or `users`.

    Raises:
        OSError: the folder cannot be read.
    """
    folder = model / kind
    return [_listed(kind, folder, number) for number in sorted(_complete(folder))]


def _listed(kind: TableKind, folder: Path, version: int) -> ListedTable:
    stamps = _complete(folder / f"{version}.delta")
    numbers = sorted(stamps)
    applied = sum(number == expected for expected, number in enumerate(numbers, 1))
    return ListedTable(
        kind,
        version,
        folder / str(version),
        tuple(numbers[:applied]),
        tuple(numbers[applied:]),
        tuple(stamps[number] for number in numbers[:applied]),
    )


def _complete(folder: Path) -> dict[int, Stamp]:
    """Return the numbers of the folders that have a `table.json`, each with its stamp."""
    try:
        names = os.listdir(folder)  # noqa: PTH208  (names only, twice as fast)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    stamps = {}
    for name in names:
        if _NUMBER.fullmatch(name):
            try:
                status = (folder / name / TABLE).stat()
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
            else:
                stamps[int(name)] = status.st_ino, status.st_size, status.st_ctime_ns
    return stamps


def find_table(model: Path, kind: TableKind, version: int | None = None) -> ListedTable:
    """Return a table of a model; by default the newest.

    Raises:
        ArtifactInvalid: there is none.
        OSError: the folder cannot be read.
    """
    tables = tables_of(model, kind)
    for listed in reversed(tables):
        if version in (None, listed.version):
            return listed
    known = ", ".join(str(listed.version) for listed in tables) or "none"
    wanted = kind if version is None else f"{kind}/{version}"
    raise ArtifactInvalid(f"{model.name} has no {wanted} (tables: {known})")


def unfolded_delta(listed: ListedTable, fold: Fold) -> int:
    """Return the first delta that ends the fold of its table; 0 for none.

    Raises:
        ArtifactInvalid: a delta is wrong.
        OSError: a file cannot be read now.
    """
    for number in listed.deltas:
        if not read_description(listed.delta_folder(number)).keeps(fold):
            return number
    return 0


def newest_fitting(
    tables: Sequence[ListedTable],
    manifest: Manifest,
    problem_of: Callable[[ListedTable], str] = lambda _: "",
) -> ListedTable | None:
    """Return the newest table that fits a version, which is the one that serves it; None if none.

    Args:
        tables: of one model and kind, by version. One that lacks a file fits no version.
        manifest: of the version.
        problem_of: returns why a server cannot open a table, as `table.opening_problem` does. By
            default, files that have the right sizes are taken for good.
    """
    for listed in reversed(tables):
        if not (_misfit(listed, manifest) or problem_of(listed)):
            return listed
    return None


def missing_table(
    model: Path, manifest: Manifest, problem_of: Callable[[ListedTable], str] = lambda _: ""
) -> str:
    """Return why servers refuse a version: the store has tables, and none fits it; else "".

    Args:
        model: the model's folder in the store.
        manifest: of the version.
        problem_of: as in `newest_fitting`.

    Raises:
        OSError: the folder cannot be read.
    """
    for kind in TABLE_KINDS:
        tables = tables_of(model, kind)
        if tables and newest_fitting(tables, manifest, problem_of) is None:
            newest = tables[-1]
            why = _misfit(newest, manifest) or problem_of(newest)
            return f"needs a table of {kind}: {newest.label}: {why}"
    return ""


def _misfit(listed: ListedTable, manifest: Manifest) -> str:
    """Return why a version cannot use a table; "" if it can."""
    try:
        description = read_description(listed.folder)
        check_sizes(listed.folder, description)
        return "; ".join(incompatibilities(description, manifest))
    except (ArtifactInvalid, OSError) as error:
        return str(error) or type(error).__name__
