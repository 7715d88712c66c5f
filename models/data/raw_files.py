"""Raw files of public data sets: downloaded, or found in a folder or an archive."""

import hashlib
import http.client
import io
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.data.schema import DataInvalid

ARCHIVES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz")


def download(url: str, path: Path, sha256: str | None = None) -> Path:
    """Download a file, unless it exists already. A failed download leaves nothing.

    Args:
        url: a constant of this package, not input.
        path: where the file is kept.
        sha256: of the file, if its publisher never changes it.

    Raises:
        OSError: the download failed or was cut off, or the file has another hash.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        _receive(url, partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        if sha256 not in (None, digest):
            raise OSError(f"its SHA-256 is {digest}, expected {sha256}")
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise OSError(
            f"{url}: download failed: {error}; download it yourself and use --source FILE"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _receive(url: str, path: Path) -> None:
    """Write what a server sends, following redirects; check that it is all of it."""
    request = urllib.request.Request(url, headers={"user-agent": "gatehouse"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as response, path.open("wb") as file:  # noqa: S310
        shutil.copyfileobj(response, file)
        received, announced = file.tell(), response.headers.get("content-length")
    if announced is not None and received != int(announced):
        raise OSError(f"received {received:,} of {int(announced):,} bytes")


def find(source: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The content of the wanted files in a folder or an archive, at any depth, by name.

    Raises:
        DataInvalid: the source does not exist, or an archive is damaged.
    """
    if not source.exists():
        raise DataInvalid(f"{source}: no such file or folder")
    paths = sorted(source.rglob("*")) if source.is_dir() else [source]
    contents: dict[str, bytes] = {}
    for path in paths:
        if path.is_file() and (path is source or _may_hold(path.name, wanted)):
            try:
                contents |= _members(path.name, path.read_bytes(), wanted)
            except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
                raise DataInvalid(
                    f"{path}: the archive is damaged: {error}; delete it and fetch it again"
                ) from error
    return contents


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
