"""Compare files with a model: the plan of a table or a delta, or every reason against it."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from app.artifacts.artifact_files import load_vocabularies, read_manifest
from app.artifacts.inputs import (
    FEATURE_NAME_PATTERN,
    DenseInput,
    FeatureName,
    IdInput,
    Input,
)
from app.artifacts.manifest import PATTERNS, Manifest
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
from app.artifacts.tables.listing import ListedTable, find_table, newest_fitting, tables_of
from app.artifacts.tables.table import TableKeys
from app.artifacts.tables.writer import TablePlan
from app.cli.output import counted, joined_names
from app.cli.parser import WrongUsage, complain
from app.cli.signals import importing
from app.cli.stored_versions import check_version, versions_of_model
from app.cli.table_files import TableFile, has_no_line, open_file
from app.cli.table_rows import (
    RowEncoder,
    Source,
    column_problem,
    key_column_problem,
    key_type_in,
)
from app.errors import ArtifactInvalid, did_you_mean

if TYPE_CHECKING:  # it imports torch
    from app.cli.table_fold import TableFold


class Refused(Exception):
    """The files cannot be published; `problems` has the reasons, `total` says how many."""

    def __init__(self, problems: Sequence[str], total: str) -> None:
        super().__init__(total)
        self.problems = problems
        self.total = total


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """A table or a delta to be published.

    Attributes:
        artifact: the version of the model that rows are encoded for.
        files: the input.
        table: the plan of the table, or of the delta's table.
        former: the newest table that fits the version, if the new one must be like it.
        former_rows: how many rows that has with its deltas; 0 without it.
        encoder: of the rows.
        changed: the table that rows change; None if they are a new one.
        may_shrink: whether a delta may remove most rows of its table.
        may_be_empty: whether a delta may change nothing.
        fold: what folds the rows; None if the table is not folded.
        unused: columns that are not read.
        defaulted: features without a column, which have their default.
        guessed_key: the feature that is the key because it is the only id; None if the key is that
            of `--key` or of another table.
    """

    artifact: Artifact
    files: Sequence[TableFile]
    table: TablePlan
    former: TableDescription | None
    former_rows: int
    encoder: RowEncoder
    changed: ListedTable | None
    may_shrink: bool
    may_be_empty: bool
    fold: "TableFold | None"
    unused: Sequence[str]
    defaulted: Sequence[str]
    guessed_key: IdInput | None


def plan_of(options: argparse.Namespace, kind: TableKind) -> PublishPlan:
    """Compare the files with the model.

    Raises:
        Refused: with every reason why they do not fit.
        WrongUsage: the options do not fit each other or the store.
        FileUnreadable: a file is not a table.
        ArtifactInvalid: a table, manifest or vocabulary is wrong.
        OSError: the store cannot be read now.
    """
    versions = versions_of_model(options)
    model = versions[0].folder.parent
    changed = _changed(options, model, kind)
    base = None if changed is None else read_description(changed.folder)
    artifact, manifest = _version(options, versions, base)
    draft = _Draft.of(options, model, kind, manifest, base)
    listed = None if options.force or base is not None else _former(model, kind, manifest)
    former = None if listed is None else read_description(listed.folder)
    if problems := list(draft.problems(former)):
        raise Refused(problems, nothing_published(len(problems), "problem"))
    fold = _fold(options, artifact) if changed is None else _delta_fold(changed, versions)
    vocabularies = load_vocabularies(artifact, manifest)
    encoder = RowEncoder(
        draft.sources, draft.key_column, draft.key.type, vocabularies, options.deleted
    )
    table = TablePlan(
        model=model,
        kind=kind,
        key=draft.key,
        columns=tuple(_column(source.feature, manifest) for source in draft.sources),
        defaults=encoder.defaults(),
        sent=tuple(dict.fromkeys(options.sent)) if base is None else base.sent,
        unknown=options.unknown or "error",
        max_age_s=options.max_age,
        source=_shown_names(draft.files),
    )
    names = dict.fromkeys(name for file in draft.files for name in file.names)
    return PublishPlan(
        artifact=artifact,
        files=draft.files,
        table=table,
        former=former,
        former_rows=0 if listed is None else _rows(listed),
        encoder=encoder,
        changed=changed,
        may_shrink=options.force,
        may_be_empty=options.allow_empty,
        fold=fold,
        unused=[name for name in names if name not in encoder.columns],
        defaulted=draft.defaulted,
        guessed_key=draft.guessed_key,
    )


def _shown_names(files: Sequence[TableFile]) -> str:
    """Return the names of files as text; bytes that are not UTF-8 are replaced."""
    names = ", ".join(file.path.name for file in files)
    return names.encode("utf-8", "surrogateescape").decode("utf-8", "replace")[:1024]


def _column(feature: Input, manifest: Manifest) -> TableColumn:
    return TableColumn(feature=feature, vocabulary=vocabulary_digest(feature, manifest))


def _changed(options: argparse.Namespace, model: Path, kind: TableKind) -> ListedTable | None:
    """Return the table that a delta changes; None for a new table."""
    if not options.delta:
        for name in ("table", "deleted", "allow_empty"):
            if getattr(options, name) not in (None, False):
                option = name.replace("_", "-")
                raise WrongUsage(f"--{option} is for deltas; add --delta")
        return None
    for name in ("key", "unknown", "max_age"):
        if getattr(options, name) is not None:
            option = name.replace("_", "-")
            raise WrongUsage(f"--{option} cannot be used with --delta: its table has one")
    if options.fold:
        raise WrongUsage("--fold cannot be used with --delta: a delta is folded if its table is")
    if options.sent:
        raise WrongUsage("--sent cannot be used with --delta: a delta has the columns of its table")
    return find_table(model, kind, options.table)


def _version(
    options: argparse.Namespace, versions: Sequence[Artifact], base: TableDescription | None
) -> tuple[Artifact, Manifest]:
    """Return the version of the model that rows are encoded for."""
    if options.version is not None:
        check_version(versions, options.version)
        versions = [artifact for artifact in versions if artifact.version == options.version]
    reasons: list[str] = []
    for artifact in reversed(versions):
        manifest = read_manifest(artifact)
        reasons = [] if base is None else incompatibilities(base, manifest)
        if not reasons:
            return artifact, manifest
    assert base is not None
    which = "this version" if options.version is not None else "no version of the model"
    raise Refused(reasons, f"nothing is published: {which} fits {base.label}")


def _former(model: Path, kind: TableKind, manifest: Manifest) -> ListedTable | None:
    """Return the newest table that a new one replaces for a version; None if there is none."""
    return newest_fitting(tables_of(model, kind), manifest)


def _rows(listed: ListedTable) -> int:
    """Return how many rows a table has with its deltas; without them, if they are damaged."""
    try:
        return TableKeys.of(listed).count
    except (ArtifactInvalid, OSError):
        return read_description(listed.folder).rows


@dataclass(frozen=True, slots=True)
class _Draft:
    """What options and files say of a table, right or wrong.

    Attributes:
        options: of the command.
        manifest: of the version that rows are encoded for.
        base: the table that a delta changes; None for a new table.
        files: the input.
        inputs: the features of the table's side of the model, by name.
        mapped: the columns that `--column` names, by feature.
        key: of the table.
        sources: the features that have columns.
        defaulted: the features that have none, and a default.
        missing: why the others cannot be read.
        guessed_key: as in `PublishPlan`.
    """

    options: argparse.Namespace
    manifest: Manifest
    base: TableDescription | None
    files: Sequence[TableFile]
    inputs: Mapping[str, Input]
    mapped: Mapping[str, tuple[str, ...]]
    key: TableKey
    sources: Sequence[Source]
    defaulted: Sequence[str]
    missing: Sequence[str]
    guessed_key: IdInput | None

    @classmethod
    def of(
        cls,
        options: argparse.Namespace,
        model: Path,
        kind: TableKind,
        manifest: Manifest,
        base: TableDescription | None,
    ) -> "_Draft":
        """Open the files, and choose the key and the columns.

        Raises:
            WrongUsage: the key has to be chosen with `--key`.
            FileUnreadable: a file is not a table.
        """
        side = side_of(kind)
        # JSON lines have no header, so a file without a line is their form of no rows.
        files = [
            open_file(path)
            for path in options.files
            if not (options.allow_empty and has_no_line(path))
        ]
        inputs = {feature.name: feature for feature in manifest.inputs if feature.side == side}
        name = _chosen_key(options, tables_of(model, kind), base)
        guessed = None
        if name is None:
            guessed = _only_id(list(inputs.values()), files)
            name = guessed.name
        mapped: dict[str, tuple[str, ...]] = dict(options.column)
        column = mapped.get(name, (name,))[0]
        key = TableKey(name=name, type=_key_type(inputs.get(name), column, files, base))
        if base is not None:
            features = [stored.feature for stored in base.columns]
        else:
            features = [inputs[feature] for feature in inputs if feature not in options.sent]
        may_lack = options.deleted is not None
        sources, defaulted, missing = _sources(
            features, name, mapped, files, is_delta=base is not None, may_lack=may_lack
        )
        return cls(
            options=options,
            manifest=manifest,
            base=base,
            files=files,
            inputs=inputs,
            mapped=mapped,
            key=key,
            sources=sources,
            defaulted=defaulted,
            missing=missing,
            guessed_key=guessed,
        )

    @property
    def key_column(self) -> str:
        """The column of the key."""
        return self.mapped.get(self.key.name, (self.key.name,))[0]

    def problems(self, former: TableDescription | None) -> Iterator[str]:
        """Yield every reason why the table cannot be published.

        Args:
            former: the table that it replaces; None if it may be another.
        """
        own = list(self._own_problems(former))
        yield from own
        if not self.sources and not own:
            known = joined_names(self.inputs)
            yield f"{self.files[0].path}: has no column of a feature ({known})"
        if self.options.fold:
            names = [source.feature.name for source in self.sources]
            yield from fold_problems(names, self.manifest)

    def _own_problems(self, former: TableDescription | None) -> Iterator[str]:
        yield from self._mapping_problems()
        yield from self._key_problems()
        yield from self.missing
        if self.base is None:
            yield from self._sent_problems()
        yield from self._option_problems()
        if former is not None and former.key != self.key:
            yield (
                f"the key would be {self.key.name} ({self.key.type}), that of {former.label} is "
                f"{former.key.name} ({former.key.type}): requests with the former keys would fail; "
                "--force changes it"
            )

    def _mapping_problems(self) -> Iterator[str]:
        """Yield why features do not have the columns that `--column` names."""
        for name, columns in self.mapped.items():
            feature = self.inputs.get(name)
            dim = feature.dim if isinstance(feature, DenseInput) else 1
            if feature is None and name != self.key.name:
                hint = did_you_mean(name, self.inputs)
                yield f"--column {name}: is not a feature{hint} ({joined_names(self.inputs)})"
            elif len(columns) not in (1, dim):
                yield f"--column {name}: {len(columns)} columns, the feature needs {dim}"

    def _key_problems(self) -> Iterator[str]:
        """Yield why the key cannot be the key."""
        name, column = self.key.name, self.key_column
        feature = self.inputs.get(name)
        if feature is None and any(other.name == name for other in self.manifest.inputs):
            yield f"--key {name}: is a feature of the other side of the model"
        for file in self.files:
            if column not in file.names:
                hint, known = did_you_mean(column, file.names), joined_names(file.names)
                yield f'{file.path}: no column "{column}", the key{hint} (columns: {known})'
            elif feature is None and (reason := key_column_problem(file, column, self._key_needs)):
                yield reason
        if self.base is None and feature is not None and (reason := key_problem(feature)):
            yield f"--key {name}: {reason}"

    @property
    def _key_needs(self) -> KeyType | None:
        """The type that the key must have; None if its values need not be integers."""
        is_guessed = self.base is None and self.key.type == "int64"
        return None if is_guessed else self.key.type

    def _sent_problems(self) -> Iterator[str]:
        """Yield why requests cannot send the features that `--sent` names."""
        for name in self.options.sent:
            if name not in self.inputs:
                hint = did_you_mean(name, self.inputs)
                yield f"--sent {name}: is not a feature{hint} ({joined_names(self.inputs)})"
            elif name == self.key.name:
                yield f"--sent {name}: is the key"

    def _option_problems(self) -> Iterator[str]:
        """Yield why `--unknown` and `--deleted` do not fit the model and the files."""
        if self.options.unknown == "default":
            for feature in [source.feature for source in self.sources]:
                if feature.default is None and feature.name != self.key.name:
                    why = "has no default, which --unknown default needs"
                    yield f'feature "{feature.name}": {why}'
        deleted = self.options.deleted
        if deleted is not None:
            for file in [file for file in self.files if deleted not in file.names]:
                hint = did_you_mean(deleted, file.names)
                yield f'{file.path}: no column "{deleted}" for --deleted{hint}'


def _chosen_key(
    options: argparse.Namespace, tables: Sequence[ListedTable], base: TableDescription | None
) -> str | None:
    """Return the name of the key: `--key`, else that of the newest table; None without both.

    Raises:
        WrongUsage: `--key` cannot be a name.
    """
    if base is not None:
        return base.key.name
    if options.key is not None:
        return _checked_key(options.key)
    for listed in reversed(tables):
        with suppress(ArtifactInvalid):  # servers refuse it: a new table may replace it
            return read_description(listed.folder).key.name
    return None


def _only_id(features: Sequence[Input], files: Sequence[TableFile]) -> IdInput:
    """Return the only id feature.

    Raises:
        WrongUsage: the features have no id, or several.
    """
    ids = [feature for feature in features if isinstance(feature, IdInput)]
    if len(ids) == 1:
        return ids[0]
    columns = joined_names(files[0].names)
    raise WrongUsage(
        f"choose the key with --key (id features: {joined_names([id_.name for id_ in ids])}; "
        f"columns of the file: {columns})"
    )


def _checked_key(name: str) -> str:
    """Return the name of `--key` if requests can have it.

    Raises:
        WrongUsage: they cannot; it proposes a name that they can have.
    """
    if _is_name(name):
        return name
    near = re.sub(r"[\s/\\]+", "-", name).strip("-").lstrip(".")[:64]
    hint = ""
    if name.isprintable() and _is_name(near):
        hint = f'; to read that column, use --key {near} --column "{near}={name}"'
    raise WrongUsage(f'--key "{name}": {PATTERNS[FEATURE_NAME_PATTERN]}{hint}')


def _is_name(text: str) -> bool:
    """Whether text may be the name of a key or a feature."""
    try:
        TypeAdapter(FeatureName).validate_python(text)
    except ValidationError:
        return False
    return True


def _key_type(
    feature: Input | None, column: str, files: Sequence[TableFile], base: TableDescription | None
) -> KeyType:
    """Return the type of the key: of its table, its feature, or its values in the files."""
    if base is not None:
        return base.key.type
    if feature is not None:
        return key_type_of(feature) if isinstance(feature, IdInput) else "string"
    types = {key_type_in(file, column) for file in files if column in file.names}
    return "int64" if types == {"int64"} else "string"


def _sources(
    features: Sequence[Input],
    key: str,
    mapped: Mapping[str, tuple[str, ...]],
    files: Sequence[TableFile],
    *,
    is_delta: bool,
    may_lack: bool,
) -> tuple[list[Source], list[str], list[str]]:
    """Return where features come from, the features that have their default, and the problems.

    With `may_lack`, a file need not have the columns: its rows may only remove keys.
    """
    sources, defaulted, problems = [], [], []
    for feature in features:
        source = Source(feature, mapped.get(feature.name, (feature.name,)))
        missing = [
            (file, name) for file in files for name in source.columns if name not in file.names
        ]
        if not missing or (may_lack and feature.name not in mapped and feature.name != key):
            lacking = [file for file, _ in missing]
            complete = [file for file in files if file not in lacking]
            problems += [why for file in complete if (why := column_problem(source, file))]
            sources.append(source)
        elif feature.name == key:
            pass  # `_Draft._key_problems` names the missing column
        elif feature.default is not None and not is_delta and feature.name not in mapped:
            defaulted.append(feature.name)
        else:
            why = "a delta has every column of its table" if is_delta else "it has no default"
            for file, name in missing:
                hint = did_you_mean(name, file.names)
                problems.append(
                    f'{file.path}: no column "{name}" for feature "{feature.name}": {why}{hint}'
                )
    return sources, defaulted, problems


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
        raise Refused(
            [f"version {artifact.version}: {error}"], nothing_published(1, "problem")
        ) from None


def _delta_fold(listed: ListedTable, versions: Sequence[Artifact]) -> "TableFold | None":
    """Return what folds the rows of a delta; without it, its table serves from the features."""
    fold = read_description(listed.folder).fold
    if fold is None:
        return None
    with importing():
        from app.cli.table_fold import fold_of_delta
    try:
        return fold_of_delta(listed, fold, versions)
    except ArtifactInvalid as error:
        complain(not_folded(str(error)))
        return None


def not_folded(reason: str) -> str:
    """Return the warning that a delta is published without a fold."""
    return f"the delta is not folded, so its table will serve from its features: {reason}"


def nothing_published(count: int, what: str) -> str:
    """Return the last line of a refusal: how many problems there are."""
    return f"nothing is published: {counted(count, what)}"
