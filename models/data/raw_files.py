"""Raw files of public data sets: downloaded, or found in a folder or an archive."""

import io
import shutil
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.data.schema import DataInvalid

ARCHIVES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz")


def download(url: str, path: Path) -> Path:
    """Download a file, unless it exists already.

    Raises:
        OSError: the download failed.
    """
    if not path.exists():
        # `url` is a constant of this package, not input.
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        try:
            with (
                urllib.request.urlopen(url, timeout=60) as response,  # noqa: S310
                partial.open("wb") as file,
            ):
                shutil.copyfileobj(response, file)
        except OSError as error:
            raise OSError(
                f"{url}: download failed: {error}; download it yourself and use --source FILE"
            ) from error
        partial.replace(path)
    return path


def find(source: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The content of the wanted files in a folder or an archive, at any depth, by name.

    Raises:
        DataInvalid: the source does not exist.
    """
    if not source.exists():
        raise DataInvalid(f"{source}: no such file or folder")
    if not source.is_dir():
        return dict(_members(source.name, source.read_bytes(), wanted))
    found: dict[str, bytes] = {}
    for each in sorted(source.rglob("*")):
        if each.is_file() and _may_hold(each.name, wanted):
            found |= _members(each.name, each.read_bytes(), wanted)
    return found


def first(files: dict[str, bytes], names: Sequence[str]) -> tuple[str, bytes]:
    """The name and the content of the first of the named files that exists.

    Raises:
        DataInvalid: there is none.
    """
    for name in names:
        if name in files:
            return name, files[name]
    raise DataInvalid(f"the source contains no file named {' or '.join(names)}")


def _may_hold(name: str, wanted: Sequence[str]) -> bool:
    return name in wanted or name.endswith(ARCHIVES)


def _members(name: str, content: bytes, wanted: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """A wanted file, or those in an archive and in the archives inside it."""
    if name in wanted:
        yield name, content
    elif zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in map(Path, archive.namelist()):
                if _may_hold(member.name, wanted):
                    yield from _members(member.name, archive.read(str(member)), wanted)
    elif name.endswith((".tar", ".tar.gz", ".tgz")):
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for entry in tar:
                entry_name = Path(entry.name).name
                file = tar.extractfile(entry) if _may_hold(entry_name, wanted) else None
                if file is not None:
                    yield from _members(entry_name, file.read(), wanted)
