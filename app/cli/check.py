"""`gatehouse check`: verify a store: every artifact, item and user tables, the policies file."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from app.artifacts.artifact_files import read_manifest
from app.artifacts.store import Artifact, Store, by_model
from app.artifacts.tables.description import TABLE_KINDS
from app.artifacts.tables.listing import ListedTable, missing_table, tables_of
from app.artifacts.tables.table import Table as ItemTable, open_table
from app.artifacts.unnamed_folder import unnamed_folders
from app.cli.output import Output
from app.cli.parser import Parser, WrongUsage, complain, not_empty
from app.cli.settings_options import (
    add_store,
    existing_store,
    policies_followed,
    store_of,
)
from app.cli.signals import importing
from app.cli.traffic_changes import active_of, traffic_of
from app.errors import ArtifactInvalid, ConfigurationInvalid, ExitCode, PoliciesInvalid
from app.files import read_small_file
from app.ranking.policies import LARGEST_FILE, PolicySet

Check = Callable[[], tuple[str, str]]
"""Returns what is shown of something that is valid."""

_DESCRIPTION = """\
Load every artifact in a store, run its golden examples, verify the item and user tables and the
policies file, and print a table. A broken artifact or a folder that cannot be read is a row of the
table; the others are checked all the same. The policies file is the one that serve would follow:
GATEHOUSE_POLICIES, else policies.toml beside the store; it must fit the active versions. Then the
folders that killed commands have left are listed."""
_EPILOG = """\
exit codes: 0 all of them are valid; 1 some are not, or there is no artifact; 2 there is no such
store

example:
  gatehouse check store
"""


def add_arguments(parser: Parser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "folder",
        type=not_empty(Path),
        nargs="?",
        metavar="STORE",
        help="folder of artifacts (default: GATEHOUSE_STORE, else store)",
    )
    add_store(choice)


def run(options: argparse.Namespace) -> int:
    """Check a store; the exit code is 1 if anything in it cannot be served."""
    store = existing_store(options.folder or store_of(options))
    table = Table("artifact", "network", "tasks", "status")
    failures = 0

    def refuse(name: str, reason: str) -> None:
        nonlocal failures
        failures += 1
        table.add_row(escape(name), "", "", f"[red]{escape(reason)}")

    try:
        listing = Store(store).scan()
    except OSError as error:
        complain(f'store "{store}": {error.strerror}')
        return ExitCode.FAILED
    for folder, reason in listing.ignored.items():
        refuse(folder, reason)
    checks: list[tuple[str, Check]]
    active = _active(listing.artifacts)
    checks = [
        (str(artifact), partial(_load, artifact, artifact in active))
        for artifact in listing.artifacts
    ]
    for versions in by_model(listing.artifacts):
        checks += _table_checks(versions)
    policies = policies_followed(store)
    if policies is not None and (checks or failures):
        checks.append((str(policies), partial(_check_policies, policies, active)))
    for name, load in checks:
        try:
            network, tasks = load()
        except (ArtifactInvalid, ConfigurationInvalid) as error:
            refuse(name, str(error))
        except OSError as error:
            file = "" if error.filename is None else f"{Path(str(error.filename)).name}: "
            refuse(name, f"cannot be read now: {file}{error.strerror or error}")
        except Exception as error:  # noqa: BLE001  (whatever it is, the others are checked)
            refuse(name, f"{type(error).__name__}: {error}")
        else:
            table.add_row(escape(name), escape(network), escape(tasks), "[green]ok")
    if not table.row_count:
        complain(f'store "{store}" has no artifacts')
        failures += 1
    else:
        Output().print(table)
    for line in _unnamed(store):
        Output().print_line(line)
    return ExitCode.FAILED if failures else ExitCode.OK


def _check_policies(file: Path, active: Sequence[Artifact]) -> tuple[str, str]:
    """Compile a file's policies for the active versions; return what it is, and their names.

    Raises:
        ConfigurationInvalid: the file is wrong, or does not fit one of them.
        OSError: it cannot be read.
    """
    policies = PolicySet.parse(read_small_file(file, max_bytes=LARGEST_FILE))
    problems: list[str] = []
    for artifact in active:
        with suppress(ArtifactInvalid, OSError):  # it has a row of its own
            manifest = read_manifest(artifact)
            try:
                policies.policies_for(manifest.traits)
            except PoliciesInvalid as error:
                problems += error.problems
    if problems:
        raise PoliciesInvalid(problems)
    return "policies", ", ".join(policies.policies)


def _unnamed(store: Path) -> Iterator[str]:
    """Yield what killed commands have left in a store; it takes space, and nothing serves it."""
    models = sorted(path for path in store.iterdir() if path.is_dir() and path.name[0] != ".")
    for folder in [folder for model in models for folder in (model, *_table_folders(model))]:
        for unnamed in unnamed_folders(folder):
            size = f"{unnamed.path.relative_to(store)}: {unnamed.size / 1e6:.1f} MB"
            if unnamed.is_left_over:
                yield f"{size} of a command that was killed; the next publish or prune removes it"
            else:
                since = f"{datetime.fromtimestamp(unnamed.changed, UTC):%Y-%m-%d %H:%M} UTC"
                yield (
                    f"{size}, last written {since}, of a command that was killed, or runs on "
                    "another host; a publish or prune removes it a day after that"
                )


def _table_folders(model: Path) -> list[Path]:
    return [model / kind for kind in TABLE_KINDS]


def _table_checks(versions: Sequence[Artifact]) -> list[tuple[str, Check]]:
    """Return what verifies the item and user tables of a model, by their names."""
    model = versions[0].folder.parent
    return [
        (
            f"{model.name}/{kind}/{listed.version}",
            partial(_open_table, listed, model.name, versions),
        )
        for kind in TABLE_KINDS
        for listed in tables_of(model, kind)
    ]


def _open_table(listed: ListedTable, model: str, artifacts: Sequence[Artifact]) -> tuple[str, str]:
    """Verify a table and its deltas; return what it is, and how many keys it has."""
    table = open_table(listed, model)
    if listed.gap:
        raise ArtifactInvalid(listed.gap)
    deltas = f" with {table.delta} deltas" if table.delta else ""
    folded = ""
    if table.fold is not None:
        folded = f", folded for version {table.fold.version}"
        _check_fold(table, artifacts)
    return f"table{deltas}{folded}", f"{table.rows:,} keys"


def _check_fold(table: ItemTable, artifacts: Sequence[Artifact]) -> None:
    """Compare the scores of some rows, folded and not, as a server does before it uses them.

    Raises:
        ArtifactInvalid: they differ by too much.
    """
    with importing():
        import torch

        from app.artifacts.fold import check_table, version_of
        from app.artifacts.loader import load
    artifact = None if table.fold is None else version_of(table.fold, artifacts)
    if artifact is None:
        return  # no version runs from it
    try:
        model = load(artifact, torch.device("cpu"))
    except ArtifactInvalid:
        return  # it has a row of its own
    check_table(model, table)


def _active(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Return the version of each model that should be active."""
    every: list[Artifact] = []
    for versions in by_model(artifacts):
        with suppress(WrongUsage):  # a traffic file that cannot be used leaves all as they are
            active = active_of(versions, traffic_of(versions))
            every += [artifact for artifact in versions if artifact.version == active]
    return every


def _load(artifact: Artifact, is_active: bool) -> tuple[str, str]:
    """Load an artifact and return its network and its tasks.

    Raises:
        ArtifactInvalid: it is damaged, or it should be active and servers refuse it.
    """
    with importing():
        import torch

        from app.artifacts.loader import load
    manifest = load(artifact, torch.device("cpu")).manifest
    if is_active and (problem := missing_table(artifact.folder.parent, manifest)):
        raise ArtifactInvalid(problem)
    return manifest.architecture, ", ".join(manifest.task_names)
