"""The store: the folder of artifacts, `<store>/<model>/<version>/`."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MANIFEST: Final = "model.json"
PROGRAM: Final = "model.ts"
GOLDEN: Final = "golden.safetensors"
EXPORTED: Final = "model.pt2"
"""Optional: the same program, as `torch.export` writes it."""

LARGEST_VERSION: Final = 2**53 - 1
"""Every JSON reader holds integers up to this one exactly (RFC 8259, section 6)."""

NOT_A_MODEL: Final = (
    "not a model name: a letter or a digit, then up to 63 letters, digits, '_', '.' or '-'"
)
NOT_A_VERSION: Final = (
    f"not a version: a whole number from 1 to {LARGEST_VERSION}, without zeros before it"
)

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,15}")
_TEMPORARY = "."  # names of files and folders that are being written


def is_model_name(name: str) -> bool:
    """Whether a model may have this name."""
    return _MODEL_NAME.fullmatch(name) is not None


def is_version(name: str) -> bool:
    """Whether this is the name of a version's folder."""
    return _VERSION.fullmatch(name) is not None and int(name) <= LARGEST_VERSION


Fingerprint = frozenset[tuple[str, int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Artifact:
    """One version of one model in the store; its files are not read yet."""

    model: str
    version: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"

    def fingerprint(self) -> Fingerprint:
        """Return what tells changed files apart; empty if the folder has been removed.

        Raises:
            OSError: the folder or a file in it cannot be read.
        """
        return fingerprint(self.folder)


def fingerprint(folder: Path) -> Fingerprint:
    """Return what tells a changed file apart: of every file its name, inode, size and times.

    Size and modification time can both stay the same, as with `cp -p`; the time of the last
    change of the inode (ctime) cannot. It is empty if the folder has been removed.

    Raises:
        OSError: the folder or a file in it cannot be read.
    """
    try:
        files = [(file.name, file.stat()) for file in folder.iterdir()]
    except FileNotFoundError:
        return frozenset()
    return frozenset(
        (name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for name, status in files
    )


@dataclass(frozen=True, slots=True)
class StoreListing:
    """The content of a store.

    Attributes:
        artifacts: complete versions, by model name, then by version.
        ignored: the reason why a folder is not served, by its path in the store.
    """

    artifacts: list[Artifact] = field(default_factory=list)
    ignored: Mapping[str, str] = field(default_factory=dict)


def by_model(artifacts: Iterable[Artifact]) -> list[list[Artifact]]:
    """Return artifacts as a list for each model, in their order."""
    models: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        models.setdefault(artifact.model, []).append(artifact)
    return list(models.values())


@dataclass(frozen=True, slots=True)
class Store:
    """Artifacts under one folder. Only names that the store itself listed become paths."""

    folder: Path

    def scan(self) -> StoreListing:
        """Return every complete artifact, and why other folders are ignored.

        An artifact is complete when its manifest is there: it is written under a temporary name,
        which starts with a dot, and renamed as a whole. Files, folders that start with a dot, and
        folders without a complete artifact are ignored without a reason. A folder that cannot be
        read does not affect the others.

        Raises:
            OSError: the store's own folder is missing or cannot be read.
        """
        artifacts: list[Artifact] = []
        ignored: dict[str, str] = {}
        for model in self._folders(self.folder, ignored):
            try:
                versions = self._folders(model, ignored)
            except (FileNotFoundError, NotADirectoryError):  # removed since it was listed
                continue
            except OSError as error:
                ignored[self._place(model)] = f"cannot be read: {error.strerror}"
                continue
            complete = [version for version in versions if self._is_complete(version, ignored)]
            if complete and not is_model_name(model.name):
                ignored[self._place(model)] = NOT_A_MODEL
                continue
            for folder in complete:
                if is_version(folder.name):
                    artifacts.append(Artifact(model.name, int(folder.name), folder))
                else:
                    ignored[self._place(folder)] = NOT_A_VERSION
        artifacts.sort(key=lambda artifact: (artifact.model, artifact.version))
        return StoreListing(artifacts, ignored)

    def artifacts(self) -> Iterator[Artifact]:
        """Yield every complete artifact; none if there is no store.

        Raises:
            OSError: the store's own folder cannot be read.
        """
        try:
            yield from self.scan().artifacts
        except (FileNotFoundError, NotADirectoryError):
            return

    def versions(self, model: str) -> list[int]:
        """Return the complete versions of a model, ascending."""
        return [artifact.version for artifact in self.artifacts() if artifact.model == model]

    def _folders(self, parent: Path, ignored: dict[str, str]) -> list[Path]:
        """Return the folders in a folder, by name; note those that cannot be looked at."""
        folders = []
        with os.scandir(parent) as entries:
            for entry in entries:
                if entry.name.startswith(_TEMPORARY):
                    continue
                try:
                    if entry.is_dir():
                        folders.append(Path(entry.path))
                except OSError as error:  # such as a link that leads to itself
                    ignored[self._place(Path(entry.path))] = f"cannot be read: {error.strerror}"
        return sorted(folders)

    def _is_complete(self, version: Path, ignored: dict[str, str]) -> bool:
        try:
            manifest = (version / MANIFEST).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            ignored[self._place(version)] = f"cannot be read: {error.strerror}"
            return False
        if stat.S_ISREG(manifest.st_mode):
            return True
        ignored[self._place(version)] = f"{MANIFEST} is not a regular file"
        return False

    def _place(self, folder: Path) -> str:
        """Return a path in the store as logs and JSON can show it: any bytes can be a name."""
        path = str(folder.relative_to(self.folder))
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        return "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in name
        )
