"""The store: the folder of artifacts, `<store>/<model>/<version>/`."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MANIFEST: Final = "model.json"
PROGRAM: Final = "model.ts"
GOLDEN: Final = "golden.safetensors"
EXPORTED: Final = "model.pt2"
"""The program once more, as `torch.export` writes it; an artifact may do without."""

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """One version of one model in the store; its files are not read yet."""

    model: str
    version: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"

    def fingerprint(self) -> frozenset[tuple[str, int, int]]:
        """Return name, size and time of change of every file: it differs when one was changed.

        It is empty where the files are being removed.
        """
        try:
            files = [(each.name, each.stat()) for each in self.folder.iterdir()]
        except FileNotFoundError:
            return frozenset()
        return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)


@dataclass(frozen=True, slots=True)
class Store:
    """Artifacts under one folder. Only names that the store itself listed become paths."""

    folder: Path

    def artifacts(self, on_error: Callable[[OSError], None] | None = None) -> Iterator[Artifact]:
        """Yield every complete artifact, by model name, then version.

        An artifact is complete when its manifest is there: it is written under a temporary name
        and renamed as a whole. Other files and folders are passed over.

        Args:
            on_error: called for each folder that cannot be read, and the others are still yielded;
                without it, the error is raised.
        """

        def skip(error: OSError) -> None:
            if on_error is None:
                raise error
            on_error(error)

        for model in sorted(_folders(self.folder, _MODEL_NAME, skip)):
            versions = sorted(int(each.name) for each in _folders(model, _VERSION, skip))
            for version in versions:
                folder = model / str(version)
                try:
                    is_complete = (folder / MANIFEST).is_file()
                except OSError as error:
                    skip(error)
                else:
                    if is_complete:
                        yield Artifact(model.name, version, folder)

    def versions(self, model: str) -> list[int]:
        """Return the complete versions of a model, ascending."""
        return [each.version for each in self.artifacts() if each.model == model]


def _folders(
    parent: Path, name: re.Pattern[str], on_error: Callable[[OSError], None]
) -> list[Path]:
    try:
        return [each for each in parent.iterdir() if name.fullmatch(each.name) and each.is_dir()]
    except (FileNotFoundError, NotADirectoryError):  # perhaps removed since it was listed
        return []
    except OSError as error:
        on_error(error)
        return []
