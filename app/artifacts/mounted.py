"""A store made of what another system mounted: one version, one model's folder, or a store.

KServe downloads a URI into `/mnt/models`, whatever it leads to, and expects the model under the
name of the InferenceService. For a folder that is not a store, a store of symbolic links is made;
only the manifest of a version that is served under another name is written again.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.artifacts.store import (
    LARGEST_VERSION,
    MANIFEST,
    NOT_A_MODEL,
    Store,
    is_model_name,
    is_version,
)
from app.errors import ArtifactInvalid, did_you_mean


def store_of_mount(folder: Path, model_name: str | None, temporary: Callable[[], Path]) -> Path:
    """Return the store to serve: `folder` itself, or a new folder, filled with links into it.

    `folder` may contain, with `model.json` as the manifest of a version:

    - `<model>/<version>/model.json`: a store. It is returned as it is, also if it is empty, missing
      or unreadable now.
    - `<version>/model.json`: the folder of one model, with any number of versions.
    - `model.json`, or `<any name>/model.json`: one version.

    A link to a model's folder is followed as a store is. What is renamed stays as it is now.

    Args:
        folder: what was mounted.
        model_name: the model is served under this name; None means the name that it was published
            under. A store must contain it.
        temporary: creates an empty folder.

    Raises:
        ArtifactInvalid: a manifest has no name or version, a folder has versions of several models,
            or the store has no model of that name.
        OSError: a manifest cannot be read, or the links cannot be written.
    """
    if model_name is not None and not is_model_name(model_name):
        raise ArtifactInvalid(f'model name "{model_name}": {NOT_A_MODEL}')
    try:
        folders = _folders_of_versions(folder)
        if not folders:
            _check_contains(folder, model_name)
            return folder
    except OSError:  # a network volume may come back
        return folder
    names = {_name_and_version(version)[0] for version in folders}
    if len(names) > 1:
        raise ArtifactInvalid(
            f"{folder}: has versions of {', '.join(sorted(names))}; a store of several models is "
            f"<model>/<version>/{MANIFEST}"
        )
    [name] = names
    store = temporary()
    if model_name in (None, name) and all(is_version(version.name) for version in folders):
        (store / name).symlink_to(folder.absolute())
    else:
        for version in folders:
            _link_version(version, store / (model_name or name))
    return store


def _folders_of_versions(folder: Path) -> list[Path]:
    """Return the folder itself or those in it that have a manifest; none if it is a store."""
    if (folder / MANIFEST).is_file():
        return [folder]
    if any(Store(folder).artifacts()):
        return []
    return [version for version in sorted(folder.glob("[!.]*")) if (version / MANIFEST).is_file()]


def _check_contains(store: Path, model_name: str | None) -> None:
    """Check that a store that is not empty contains a model."""
    known = {artifact.model for artifact in Store(store).artifacts()}
    if model_name is not None and known and model_name not in known:
        raise ArtifactInvalid(
            f'the store has no model "{model_name}"{did_you_mean(model_name, known)} '
            f"(models: {', '.join(sorted(known))})"
        )


def _link_version(folder: Path, model: Path) -> None:
    """Add a version to a model's folder, under the model's name."""
    name, version = _name_and_version(folder)
    model.mkdir(exist_ok=True)
    target = model / str(version)
    if model.name == name:
        target.symlink_to(folder.absolute())
        return
    target.mkdir()
    for file in folder.iterdir():
        if file.name != MANIFEST:
            (target / file.name).symlink_to(file.absolute())
    manifest = {**_manifest(folder), "name": model.name}
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _name_and_version(folder: Path) -> tuple[str, int]:
    """Return the model and the version that a manifest describes; the rest is checked later.

    Raises:
        ArtifactInvalid: it has none.
    """
    manifest = _manifest(folder)
    name, version = manifest.get("name"), manifest.get("version")
    if not isinstance(name, str) or not is_model_name(name):
        raise ArtifactInvalid(f"{folder / MANIFEST}: name: {NOT_A_MODEL}")
    if not isinstance(version, int) or not 1 <= version <= LARGEST_VERSION:
        raise ArtifactInvalid(f"{folder / MANIFEST}: version: must be an integer of 1 or more")
    return name, version


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactInvalid(f"{folder / MANIFEST}: is not JSON") from error
    if not isinstance(manifest, dict):
        raise ArtifactInvalid(f"{folder / MANIFEST}: must be a JSON object")
    return manifest
