"""`gatehouse items publish` and `gatehouse users publish`: files become a table or a delta."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from app.artifacts.manifest import DenseInput, IdInput, Input, Manifest
from app.artifacts.store import Artifact
from app.artifacts.tables.compatibility import (
    fold_problems,
    incompatibilities,
    key_problem,
    key_type_of,
    vocabulary_digest,
)
from app.artifacts.tables.description import (
    KeyType,
    TableColumn,
    TableDescription,
    TableKey,
    TableKind,
    read_description,
    side_of,
)
from app.artifacts.tables.keys import Int64
from app.artifacts.tables.listing import ListedTable, find_table, newest_fitting, tables_of
from app.artifacts.tables.publish import publish_delta, publish_table
from app.artifacts.tables.segment import open_segment
from app.artifacts.tables.table import open_table
from app.artifacts.tables.writer import DuplicateKeys, TablePlan, TableWriter
from app.cli.output import Output
from app.cli.parser import WrongUsage, complain
from app.cli.signals import importing
from app.cli.table_files import TableFile, open_file
from app.cli.table_rows import EncodedRows, RowEncoder, Source, column_problem, key_type_in
from app.cli.traffic_changes import check_version, chosen, nudge_and_wait_for_table
from app.errors import ArtifactInvalid, ExitCode, did_you_mean

if TYPE_CHECKING:  # it imports torch
    from app.cli.table_fold import TableFold

MOST_PROBLEMS = 20


def run_publish(options: argparse.Namespace, kind: TableKind) -> int:
    """Publish the files; return the exit code."""
    began = time.monotonic()
    try:
        plan = _planned(options, kind)
        rows = _Rows(plan, options.max_bad_rows)
        with _progress(plan.files) as rows.progress:
            listed = _publish(plan, rows, options.table)
    except Refused as refused:
        for problem in refused.problems[:MOST_PROBLEMS]:
            complain(problem)
        complain(refused.total)
        return ExitCode.USAGE
    except ArtifactInvalid as error:
        raise WrongUsage(str(error)) from None
    published = time.monotonic()
    _report(plan, listed, published - began)
    if rows.folded:
        Output().print_line(rows.folded)
    elif plan.former is not None and (fold := plan.former.fold) is not None:
        label = plan.former.label
        what = f"{label} was folded for version {fold.version}, this table is not"
        Output().print_line(f"{what}; --fold folds it")
    return nudge_and_wait_for_table(plan.artifact.model, listed, options, published)


class Refused(Exception):
    """The files cannot be published; `problems` has the reasons, `total` says how many."""

    def __init__(self, problems: Sequence[str], total: str) -> None:
        super().__init__(total)
        self.problems = problems
        self.total = total


@dataclass(frozen=True, slots=True)
class _Plan:
    """A table to be published.

    Attributes:
        artifact: the version of the model that rows are encoded for.
        files: the input.
        kind: whose features they are.
        table: the plan of the table, but for the type of its key.
        former: the newest table that fits the version, if the new one must be like it.
        encoder: of the rows.
        is_delta: whether rows change a table.
        fold: what folds the rows; None if the table is not folded.
        unused: columns that are not read.
        defaulted: features without a column, which have their default.
    """

    artifact: Artifact
    files: Sequence[TableFile]
    kind: TableKind
    table: TablePlan
    former: TableDescription | None
    encoder: RowEncoder
    is_delta: bool
    fold: "TableFold | None"
    unused: Sequence[str]
    defaulted: Sequence[str]


def _planned(options: argparse.Namespace, kind: TableKind) -> _Plan:
    """Compare the files with the model.

    Raises:
        Refused: with every reason why they do not fit.
        WrongUsage: the options do not fit each other or the store.
    """
    from app.artifacts.loader import load_vocabularies

    versions = chosen(options)
    model = versions[0].folder.parent
    base = _base(options, model, kind)
    artifact, manifest = _version(options, versions, base)
    problems: list[str] = []
    files = [open_file(path) for path in options.files]
    inputs = {each.name: each for each in manifest.inputs if each.side == side_of(kind)}
    key = _key(options, tables_of(model, kind), list(inputs.values()), base, files)
    mapped = _mapped(options, inputs, key, problems)
    if key not in inputs and any(each.name == key for each in manifest.inputs):
        problems.append(f"--key {key}: is a feature of the other side of the model")
    key_type = _key_type(inputs.get(key), mapped.get(key, (key,))[0], files, base, problems)
    features = [each for each in inputs.values() if each.name not in options.sent]
    if base is not None:
        features = [each.feature for each in base.columns]
    is_delta, may_lack = base is not None, options.deleted is not None
    sources, defaulted = _sources(
        features, key, mapped, files, problems, is_delta=is_delta, may_lack=may_lack
    )
    sent = base.sent if base is not None else _sent(options, inputs, key, problems)
    problems += _option_problems(options, sources, key, files)
    former = None if options.force or is_delta else _former(model, kind, manifest)
    problems += _key_problems(TableKey(name=key, type=key_type), former)
    if not sources and not problems:
        problems.append(f"{files[0].path}: has no column of a feature ({_listing(inputs)})")
    if options.fold:
        problems += fold_problems([each.feature.name for each in sources], manifest)
    if problems:
        raise Refused(problems, _nothing(len(problems), "problem"))
    fold = _fold(options, artifact)
    if base is not None:
        fold = _delta_fold(find_table(model, kind, options.table), versions)
    column, vocabularies = mapped.get(key, (key,))[0], load_vocabularies(artifact, manifest)
    encoder = RowEncoder(sources, column, key_type, vocabularies, options.deleted)
    table = TablePlan(
        model=model,
        kind=kind,
        key=TableKey(name=key, type=key_type),
        columns=tuple(_column(each.feature, manifest) for each in sources),
        defaults=encoder.defaults(),
        sent=tuple(sent),
        unknown=options.unknown or "error",
        max_age_s=options.max_age,
        source=", ".join(each.path.name for each in files)[:1024],
    )
    named = dict.fromkeys(name for each in files for name in each.names)
    unused = [each for each in named if each not in encoder.columns]
    return _Plan(artifact, files, kind, table, former, encoder, is_delta, fold, unused, defaulted)


def _fold(options: argparse.Namespace, artifact: Artifact) -> "TableFold | None":
    """Return what folds the rows of a new table.

    Raises:
        Refused: the version cannot be folded.
    """
    if not options.fold:
        return None
    with importing():
        from app.cli.table_fold import TableFold
    try:
        return TableFold.of(artifact)
    except ArtifactInvalid as error:
        raise Refused([f"version {artifact.version}: {error}"], _nothing(1, "problem")) from None


def _delta_fold(listed: ListedTable, versions: Sequence[Artifact]) -> "TableFold | None":
    """Return what folds the rows of a delta; without it, its table serves from the features."""
    if read_description(listed.folder).fold is None:
        return None
    with importing():
        from app.cli.table_fold import fold_of_delta
    try:
        return fold_of_delta(listed, versions)
    except ArtifactInvalid as error:
        complain(_not_folded(str(error)))
        return None


def _not_folded(reason: str) -> str:
    return f"the delta is not folded, so its table will serve from its features: {reason}"


def _column(feature: Input, manifest: Manifest) -> TableColumn:
    return TableColumn(feature=feature, vocabulary=vocabulary_digest(feature, manifest))


def _former(model: Path, kind: TableKind, manifest: Manifest) -> TableDescription | None:
    """Return the newest table that a new one replaces for a version; None if there is none."""
    listed = newest_fitting(tables_of(model, kind), manifest)
    return None if listed is None else read_description(listed.folder)


def _key_problems(key: TableKey, former: TableDescription | None) -> Iterator[str]:
    """Yield why a table must not replace another one."""
    if former is not None and former.key != key:
        yield (
            f"the key would be {key.name} ({key.type}), that of {former.label} is "
            f"{former.key.name} ({former.key.type}): requests with the former keys would fail; "
            "--force changes it"
        )


def _option_problems(
    options: argparse.Namespace, sources: Sequence[Source], key: str, files: Sequence[TableFile]
) -> Iterator[str]:
    """Yield why options do not fit the files."""
    if options.unknown == "default":
        for feature in [each.feature for each in sources]:
            if feature.default is None and feature.name != key:
                why = "has no default, which --unknown default needs"
                yield f'feature "{feature.name}": {why}'
    if options.deleted is not None:
        for file in [each for each in files if options.deleted not in each.names]:
            hint = did_you_mean(options.deleted, file.names)
            yield f'{file.path}: no column "{options.deleted}" for --deleted{hint}'


def _base(options: argparse.Namespace, model: Path, kind: TableKind) -> TableDescription | None:
    """Return the table that a delta changes; None for a new table."""
    if not options.delta:
        for name in ("table", "deleted"):
            if getattr(options, name) is not None:
                raise WrongUsage(f"--{name} is for deltas; add --delta")
        return None
    for name in ("key", "unknown", "max_age"):
        if getattr(options, name) is not None:
            option = name.replace("_", "-")
            raise WrongUsage(f"--{option} cannot be used with --delta: its table has one")
    if options.fold:
        raise WrongUsage("--fold cannot be used with --delta: a delta is folded if its table is")
    if options.sent:
        raise WrongUsage("--sent cannot be used with --delta: a delta has the columns of its table")
    return read_description(find_table(model, kind, options.table).folder)


def _version(
    options: argparse.Namespace, versions: Sequence[Artifact], base: TableDescription | None
) -> tuple[Artifact, Manifest]:
    """Return the version of the model that rows are encoded for."""
    from app.artifacts.loader import read_manifest

    if options.version is not None:
        check_version(versions, options.version)
        versions = [each for each in versions if each.version == options.version]
    reasons: list[str] = []
    for artifact in reversed(versions):
        manifest = read_manifest(artifact)
        reasons = [] if base is None else incompatibilities(base, manifest)
        if not reasons:
            return artifact, manifest
    assert base is not None
    which = "this version" if options.version is not None else "no version of the model"
    raise Refused(reasons, f"nothing is published: {which} fits {base.label}")


def _key(
    options: argparse.Namespace,
    tables: Sequence[ListedTable],
    features: Sequence[Input],
    base: TableDescription | None,
    files: Sequence[TableFile],
) -> str:
    """Return the name of the key."""
    if base is not None:
        return base.key.name
    if options.key is not None:
        named: str = options.key
        return named
    if tables:
        return read_description(tables[-1].folder).key.name
    ids = [each.name for each in features if isinstance(each, IdInput)]
    if len(ids) == 1:
        return ids[0]
    columns = _listing([name for each in files[:1] for name in each.names])
    raise WrongUsage(
        f"choose the key with --key (id features: {_listing(ids)}; columns of the file: {columns})"
    )


def _key_type(
    feature: Input | None,
    column: str,
    files: Sequence[TableFile],
    base: TableDescription | None,
    problems: list[str],
) -> KeyType:
    """Return the type of the key."""
    for each in files:
        if column not in each.names:
            hint = did_you_mean(column, each.names)
            known = _listing(each.names)
            problems.append(f'{each.path}: no column "{column}", the key{hint} (columns: {known})')
    if base is not None:
        return base.key.type
    if feature is not None:
        if reason := key_problem(feature):
            problems.append(f"--key {feature.name}: {reason}")
            return "string"
        assert isinstance(feature, IdInput)
        return key_type_of(feature)
    types = {key_type_in(each, column) for each in files if column in each.names}
    return "int64" if types == {"int64"} else "string"


def _mapped(
    options: argparse.Namespace, inputs: Mapping[str, Input], key: str, problems: list[str]
) -> dict[str, tuple[str, ...]]:
    """Return the columns that `--column` names, by feature."""
    mapped: dict[str, tuple[str, ...]] = dict(options.column)
    for name, columns in mapped.items():
        feature = inputs.get(name)
        dim = feature.dim if isinstance(feature, DenseInput) else 1
        if feature is None and name != key:
            hint = did_you_mean(name, inputs)
            problems.append(f"--column {name}: is not a feature{hint} ({_listing(inputs)})")
        elif len(columns) not in (1, dim):
            problems.append(f"--column {name}: {len(columns)} columns, the feature needs {dim}")
    return mapped


def _sent(
    options: argparse.Namespace, inputs: Mapping[str, Input], key: str, problems: list[str]
) -> list[str]:
    """Return the features that requests send."""
    for name in options.sent:
        if name not in inputs:
            hint = did_you_mean(name, inputs)
            problems.append(f"--sent {name}: is not a feature{hint} ({_listing(inputs)})")
        elif name == key:
            problems.append(f"--sent {name}: is the key")
    return list(dict.fromkeys(options.sent))


def _sources(
    features: Sequence[Input],
    key: str,
    mapped: Mapping[str, tuple[str, ...]],
    files: Sequence[TableFile],
    problems: list[str],
    *,
    is_delta: bool,
    may_lack: bool,
) -> tuple[list[Source], list[str]]:
    """Return where features come from, and the features that have their default.

    With `may_lack`, a file need not have the columns: its rows may only remove keys.
    """
    sources, defaulted = [], []
    for feature in features:
        source = Source(feature, mapped.get(feature.name, (feature.name,)))
        missing = [(f, c) for f in files for c in source.columns if c not in f.names]
        if not missing or (may_lack and feature.name not in mapped and feature.name != key):
            complete = [each for each in files if each not in [file for file, _ in missing]]
            problems += [p for each in complete if (p := column_problem(source, each))]
            sources.append(source)
        elif feature.name == key:
            pass  # _key_type says so
        elif feature.default is not None and not is_delta and feature.name not in mapped:
            defaulted.append(feature.name)
        else:
            for file, column in missing:
                hint = did_you_mean(column, file.names)
                why = "a delta has every column of its table" if is_delta else "it has no default"
                problems.append(
                    f'{file.path}: no column "{column}" for feature "{feature.name}": {why}{hint}'
                )
    return sources, defaulted


class _Rows:
    """Reads and encodes the rows of the files, once; knows where each came from."""

    def __init__(self, plan: _Plan, most_bad: int) -> None:
        self.progress: Progress | None = None
        self.bad = 0
        self.folded = ""
        self._plan = plan
        self._most_bad = most_bad
        self._problems: list[str] = []
        self._numbers: list[tuple[TableFile, Int64]] = []

    def fill(self, writer: TableWriter) -> None:
        """Add the rows to a table.

        Raises:
            Refused: there are too many bad rows, or too few good ones.
        """
        for rows in self._encoded():
            if self.bad <= self._most_bad:
                writer.add(rows.keys, rows.records)
        self._check()
        former = self._plan.former
        if writer.rows == 0:
            raise Refused([], "nothing is published: there is no row")
        if former is not None and writer.rows < former.rows / 2:
            raise Refused(
                [],
                f"nothing is published: {_counted(writer.rows, 'row')}, under half of the "
                f"{former.rows:,} of {former.label}; --force publishes them",
            )
        if self._plan.fold is not None:
            try:
                self._fold(writer, self._plan.fold)
            except ArtifactInvalid as error:
                raise Refused([str(error)], _nothing(1, "problem")) from error

    def _fold(self, writer: TableWriter, fold: "TableFold") -> None:
        """Say what folding takes, then fold the rows.

        Raises:
            ArtifactInvalid: the disk is too full, or the scores of rows differ by too much.
        """
        # On a terminal it has to come above the bar, which belongs to another console.
        console = Output() if self.progress is None else self.progress.console
        console.print(fold.memory(writer), markup=False, highlight=False, soft_wrap=True)
        show = partial(self._show_folded, writer.rows)
        self.folded = fold.summary(fold.fill(writer, show))

    def _show_folded(self, rows: int, done: int) -> None:
        if self.progress is not None:
            task = self.progress.task_ids[0]
            self.progress.update(task, description="folding", total=rows, completed=done)

    def fill_delta(self, writer: TableWriter) -> None:
        """Add the rows to a delta; the last row of a key counts.

        Raises:
            Refused: there are too many bad rows.
        """
        parts = list(self._encoded())
        self._check()
        keys = [key for each in parts for key in each.keys]
        last = {key: row for row, key in enumerate(keys)}
        kept = np.array(sorted(last.values()), np.int64)
        none = np.zeros(0, self._plan.table.defaults.dtype)
        records = np.concatenate([none, *(each.records for each in parts)], dtype=none.dtype)[kept]
        removed = np.concatenate([np.zeros(0, np.bool_), *(each.removed for each in parts)])[kept]
        is_integer = self._plan.table.key.type == "int64"
        for goes, rows in ((False, kept[~removed]), (True, kept[removed])):
            chosen_keys = [keys[row] for row in rows.tolist()]
            as_keys = np.array(chosen_keys, np.int64) if is_integer else chosen_keys
            if goes:
                writer.remove(as_keys)
            else:
                writer.add(as_keys, records[~removed])
        if self._plan.fold is not None:
            try:
                self._fold(writer, self._plan.fold)
            except ArtifactInvalid as error:
                writer.give_up_fold()
                complain(_not_folded(str(error)))

    def _encoded(self) -> Iterator[EncodedRows]:
        encoder = self._plan.encoder
        done = 0
        for file in self._plan.files:
            for chunk in file.chunks(encoder.columns_in(file)):
                rows = encoder.encode(file, chunk)
                for number in sorted(rows.bad):
                    self.bad += 1
                    if len(self._problems) < MOST_PROBLEMS:
                        why = "; ".join(rows.bad[number])
                        self._problems.append(f"{file.place(number)}: {why}")
                self._numbers.append((file, rows.numbers))
                if self.progress is not None:
                    self.progress.update(self.progress.task_ids[0], completed=done + chunk.read)
                yield rows
            done += file.size

    def _check(self) -> None:
        if self.bad > self._most_bad:
            limit = f", --max-bad-rows {self._most_bad}" if self._most_bad else ""
            raise Refused(self._problems, _nothing(self.bad, "bad row") + limit)
        for problem in self._problems:
            complain(f"left out: {problem}")

    def duplicates(self, error: DuplicateKeys) -> Refused:
        """Return the error that names the rows that repeat a key."""
        pairs = error.pairs[np.argsort(error.pairs[:, 1])]
        problems = [
            f"{self._place(again)}: repeats the key of {self._place(first)}"
            for first, again in pairs[:MOST_PROBLEMS].tolist()
        ]
        return Refused(problems, _nothing(len(pairs), "repeated key"))

    def _place(self, row: int) -> str:
        for file, numbers in self._numbers:
            if row < len(numbers):
                return file.place(int(numbers[row]))
            row -= len(numbers)
        raise IndexError(row)


def _publish(plan: _Plan, rows: _Rows, table: int | None) -> ListedTable:
    """Publish the rows; a delta changes `table`, or the newest table when it is complete."""
    try:
        if not plan.is_delta:
            return publish_table(plan.table, rows.fill)
        return publish_delta(plan.table, rows.fill_delta, table)
    except DuplicateKeys as error:
        raise rows.duplicates(error) from error


def _report(plan: _Plan, listed: ListedTable, took_s: float) -> None:
    """Print what has been published, and what a careful reader should know."""
    folder = listed.folder if not plan.is_delta else listed.delta_folder(len(listed.deltas))
    found = read_description(folder)
    output = Output()
    removed = ""
    if found.removed:
        unknown = _removed_in_vain(listed)
        removed = f", {_counted(found.removed, 'removed key')}"
        removed += f" ({unknown:,} unknown)" if unknown else ""
    output.print_line(
        f"published {found.label} of {found.model}: {_counted(found.rows, 'row')}{removed}, "
        f"{len(found.columns)} features, key {found.key.name} ({found.key.type}), "
        f"{found.size / 1e6:.1f} MB, encoded for version {plan.artifact.version}, in {took_s:.1f} s"
    )
    for name, count in plan.encoder.unknown_ids.items():
        output.print_line(f'feature "{name}": {_counted(count, "unknown id")}')
    if plan.defaulted:
        output.print_line(f"without a column, so always the default: {_listing(plan.defaulted)}")
    if plan.unused:
        hints = "".join(did_you_mean(each, plan.defaulted) for each in plan.unused[:1])
        output.print_line(f"columns not used: {_listing(plan.unused)}{hints}")


def _removed_in_vain(listed: ListedTable) -> int:
    """Return how many keys the last delta removes that its table did not have."""
    last = len(listed.deltas)
    before = open_table(listed, listed.folder.parent.parent.name, last - 1)
    index = open_segment(listed.delta_folder(last)).index
    removed = index.keys_at(np.flatnonzero(index.rows < 0))
    return int(np.count_nonzero(before.find(before.as_keys(removed)) < 0))


@contextmanager
def _progress(files: Sequence[TableFile]) -> Iterator[Progress | None]:
    """Yield a progress bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        progress.add_task("publishing", total=sum(each.size for each in files))
        yield progress


def _nothing(count: int, what: str) -> str:
    return f"nothing is published: {_counted(count, what)}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _listing(names: Iterable[str]) -> str:
    """Return names as a message lists them, at most twenty."""
    listed = list(names)
    more = f" and {len(listed) - MOST_PROBLEMS} more" if len(listed) > MOST_PROBLEMS else ""
    return (", ".join(listed[:MOST_PROBLEMS]) or "none") + more
