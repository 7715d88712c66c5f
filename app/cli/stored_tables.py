"""`gatehouse items` and `gatehouse users`: list, show, compact and prune the tables in a store."""

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table as TextTable

from app.artifacts.artifact_files import load_vocabularies, read_manifest
from app.artifacts.inputs import DenseInput, IdListInput, Input
from app.artifacts.manifest import Manifest
from app.artifacts.store import Artifact, Store, by_model
from app.artifacts.tables.compatibility import incompatibilities
from app.artifacts.tables.description import (
    Fold,
    TableDescription,
    TableKind,
    read_description,
)
from app.artifacts.tables.keys import Int64
from app.artifacts.tables.listing import (
    ListedTable,
    find_table,
    newest_fitting,
    tables_of,
    unfolded_delta,
)
from app.artifacts.tables.publish import compact, remove
from app.artifacts.tables.segment import check_sizes
from app.artifacts.tables.table import Table, TableKeys, open_table, opening_problem
from app.artifacts.unnamed_folder import remove_left_over
from app.cli.option_values import AGE_UNITS_S
from app.cli.output import Output, counted
from app.cli.parser import WrongUsage, complain
from app.cli.running_server import nudge_and_wait_for_table
from app.cli.settings_options import existing_store, store_of
from app.cli.stored_versions import versions_of_model
from app.errors import ArtifactInvalid, ExitCode


def run_list(options: argparse.Namespace, kind: TableKind) -> int:
    """Print the tables of one model or of all; return the exit code."""
    if options.model is None:
        artifacts = list(Store(existing_store(store_of(options))).artifacts())
    else:
        artifacts = versions_of_model(options)
    shown = TextTable("table", "rows", "deltas", "key", "created", "size", "fits versions", "note")
    for versions in by_model(artifacts):
        model, manifests = versions[0].folder.parent, _manifests(versions)
        for listed in tables_of(model, kind):
            shown.add_row(f"{model.name} {listed.version}", *_row(listed, manifests))
    if not shown.rows:
        complain(f'store "{store_of(options)}" has no {kind}')
        return ExitCode.FAILED
    Output().print(shown)
    return ExitCode.OK


def _row(listed: ListedTable, manifests: Mapping[int, Manifest]) -> list[str]:
    """Return what the list says of a table; only why, if it cannot be read."""
    try:
        table = newest = read_description(listed.folder)
        size = table.size
        for number in listed.deltas:
            newest = read_description(listed.delta_folder(number))
            size += newest.size
    except (ArtifactInvalid, OSError) as error:
        return ["", "", "", "", "", "", escape(str(error))]
    problem = _size_problem(listed.folder, table)
    reasons = {
        version: [problem] if problem else incompatibilities(table, manifest)
        for version, manifest in manifests.items()
    }
    fits = [version for version, why in reasons.items() if not why]
    note = f"unknown keys: {table.unknown}"
    if table.fold is not None:
        note += f"; {_fold_note(listed, table.fold, manifests)}"
    if table.max_age_s is not None:
        note += f"; at most {_age(table.max_age_s)} old"
    if reasons and not fits:
        newest_version = max(reasons)
        note = f"version {newest_version}: {'; '.join(reasons[newest_version])}"
    note = problem or "; ".join([*_delta_problems(listed), note])
    if listed.gap:
        note = f"{listed.gap}; {note}"
    return [
        _rows(listed, table),
        str(len(listed.deltas)),
        f"{table.key.name} ({table.key.type})",
        f"{newest.created:%Y-%m-%d %H:%M}",
        f"{size / 1e6:.1f} MB",
        ", ".join(map(str, fits)) or "none",
        escape(note),
    ]


def _rows(listed: ListedTable, table: TableDescription) -> str:
    """Return how many rows a table has with its deltas, if that can be read."""
    if not listed.deltas:
        return f"{table.rows:,}"
    try:
        return f"{TableKeys.of(listed).count:,}"
    except (ArtifactInvalid, OSError):
        return f"{table.rows:,} before deltas"


def _size_problem(folder: Path, description: TableDescription) -> str:
    """Return which file is missing or has another size; "" if none. None is read."""
    try:
        check_sizes(folder, description)
    except (ArtifactInvalid, OSError) as error:
        return str(error)
    return ""


def _delta_problems(listed: ListedTable) -> Iterator[str]:
    """Yield the first delta that lacks a file: servers apply the ones before it."""
    for number in listed.deltas:
        folder = listed.delta_folder(number)
        if problem := _size_problem(folder, read_description(folder)):
            yield f"delta {number}: {problem}"
            return


def _fold_note(listed: ListedTable, fold: Fold, manifests: Mapping[int, Manifest]) -> str:
    """Return which versions of the model serve from the folded rows of a table."""
    if unfolded := unfolded_delta(listed, fold):
        return f"not folded any more: delta {unfolded} is not"
    serves = [version for version, manifest in manifests.items() if fold.serves(manifest)]
    versions = ", ".join(map(str, serves)) or f"{fold.version}, which the store does not have"
    return f"folded for version {versions} ({4 * fold.width:,} bytes per item)"


def _age(seconds: float) -> str:
    """Return an age in the largest unit that divides it."""
    fitting = [unit for unit, length in AGE_UNITS_S.items() if seconds % length == 0]
    unit = fitting[-1] if fitting else "s"
    return f"{seconds / AGE_UNITS_S[unit]:g}{unit}"


def run_show(options: argparse.Namespace, kind: TableKind) -> int:
    """Print one row; return the exit code."""
    versions = versions_of_model(options)
    model = versions[0].folder.parent
    listed = find_table(model, kind, options.table)
    table = open_table(listed, model.name)
    key = _key(table, options.key)
    position = table.find(key)
    if position[0] < 0:
        complain(f"{table.kind}/{table.label} has no key {options.key}")
        return ExitCode.FAILED
    record = table.take(position)
    ids = _ids(table.description, versions)
    output = Output()
    folded = "" if table.fold is None else f", folded for version {table.fold.version}"
    output.print_line(
        f"{table.kind}/{table.label} of {model.name}, {table.key} {options.key}{folded}"
    )
    features = {column.feature.name: column.feature for column in table.description.columns}
    for name in table.columns:
        values = np.atleast_1d(record[name][0]).tolist()
        shown = " ".join(_shown_values(features[name], values, ids.get(name, {})))
        output.print_line(f"  {name}: {shown}")
    return ExitCode.OK


def _shown_values(feature: Input, values: list[Any], ids: Mapping[int, object]) -> Iterator[str]:
    """Yield the numbers of a feature, or its rows of the embedding table with their ids."""
    if isinstance(feature, DenseInput):
        for number in values:
            yield f"{number:.7g}"
        return
    padding = feature.padding if isinstance(feature, IdListInput) else None
    for row in values:
        if row != padding:
            yield f"{row} ({ids[row]})" if row in ids else str(row)


def _key(table: Table, key: str) -> Int64 | list[str]:
    """Return a key as the table takes it.

    Raises:
        WrongUsage: the table has integers, and the key is none.
    """
    if table.key_type is str:
        return [key]
    try:
        return np.array([int(key)], np.int64)
    except (ValueError, OverflowError):
        raise WrongUsage(f"KEY {key}: keys of this table are integers of 64 bits") from None


def _ids(
    description: TableDescription, versions: Sequence[Artifact]
) -> Mapping[str, Mapping[int, object]]:
    """Return the id of each row of an embedding table, by feature, if a version still has them."""
    for version, manifest in reversed(_manifests(versions).items()):
        if not incompatibilities(description, manifest):
            (artifact,) = (artifact for artifact in versions if artifact.version == version)
            vocabularies = load_vocabularies(artifact, manifest)
            return {
                name: {row: id_ for id_, row in vocabulary.items()}
                for name, vocabulary in vocabularies.items()
            }
    return {}


def run_compact(options: argparse.Namespace, kind: TableKind) -> int:
    """Write a table and its deltas as a new table; return the exit code."""
    versions = versions_of_model(options)
    model = versions[0].folder.parent

    def check(old: ListedTable) -> None:
        if not options.force:
            _check_replaces_none(old, tables_of(model, kind), versions)

    listed = compact(model, kind, options.table, check)
    published = time.monotonic()
    table = read_description(listed.folder)
    folded = "" if table.fold is None else f", folded for version {table.fold.version}"
    Output().print_line(
        f"published {table.label} of {model.name}: {table.source}, {counted(table.rows, 'row')}"
        f"{folded}"
    )
    return nudge_and_wait_for_table(model.name, listed, options, published)


def _check_replaces_none(
    old: ListedTable, tables: Sequence[ListedTable], versions: Sequence[Artifact]
) -> None:
    """Check that no version would get the rows of a table in place of those of a newer one.

    A version of the model gets the newest table that fits it, so an older one may be compacted if
    only other versions can use the newer ones.

    Raises:
        ArtifactInvalid: names the version and its table.
    """
    if tables[-1].version == old.version:
        return
    for manifest in _all_manifests(versions, "nothing is published"):
        serving = newest_fitting(tables, manifest)
        would_serve = newest_fitting([old], manifest) is not None
        if would_serve and serving is not None and serving.version > old.version:
            raise ArtifactInvalid(
                f"nothing is published: version {manifest.version} serves from {serving.label}, "
                f"which is newer than {old.label}, and would get the old rows; "
                "--force publishes them"
            )


def run_prune(options: argparse.Namespace, kind: TableKind) -> int:
    """Remove the tables that are neither among the newest nor serve; return the exit code.

    Raises:
        ArtifactInvalid: it is not known which table a version needs.
    """
    if options.keep < 1:
        raise WrongUsage("--keep must be 1 or more")
    versions = versions_of_model(options)
    model = versions[0].folder.parent
    if not options.dry_run:
        for folder in (model, model / kind):
            remove_left_over(folder)
    tables = tables_of(model, kind)
    kept = tables
    if len(tables) > options.keep:
        kept = _kept(tables, _all_manifests(versions, "nothing is removed"), options.keep)
    for listed in tables:
        if listed not in kept:
            if not options.dry_run:
                remove(listed)
            verb = "would remove" if options.dry_run else "removed"
            Output().print_line(f"{verb} {listed.label} of {model.name}")
    return ExitCode.OK


def _kept(
    tables: Sequence[ListedTable], manifests: Iterable[Manifest], newest: int
) -> list[ListedTable]:
    """Return the tables that stay: the newest ones, and what each version needs.

    Tables are opened as a server opens them. One that it would refuse is not counted. It stays
    if it is newer than those that are: it may be a copy that is under way.
    """
    problem_of = cache(opening_problem)
    fitting = [newest_fitting(tables, manifest, problem_of) for manifest in manifests]
    kept = [listed for listed in fitting if listed is not None]
    counted = 0
    for listed in reversed(tables):
        if counted == newest:
            break
        kept.append(listed)
        if problem := problem_of(listed):
            complain(f"{listed.label} stays and is not counted; servers refuse it: {problem}")
        else:
            counted += 1
    return kept


def _all_manifests(versions: Sequence[Artifact], consequence: str) -> list[Manifest]:
    """Return the manifests of all versions.

    Args:
        versions: of a model.
        consequence: what does not happen without them, for the message.

    Raises:
        ArtifactInvalid: one of them cannot be read: nobody knows which table its version needs.
    """
    manifests = []
    for artifact in versions:
        try:
            manifests.append(read_manifest(artifact))
        except (ArtifactInvalid, OSError) as error:
            raise ArtifactInvalid(
                f"{consequence}: {artifact} may need any of the tables: {error}; restore it, "
                "or remove it with gatehouse prune or by hand"
            ) from error
    return manifests


def _manifests(versions: Sequence[Artifact]) -> dict[int, Manifest]:
    """Return the manifests that can be read, by version."""
    manifests = {}
    for artifact in versions:
        try:
            manifests[artifact.version] = read_manifest(artifact)
        except (ArtifactInvalid, OSError):
            continue
    return manifests
