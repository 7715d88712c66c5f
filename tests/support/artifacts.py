"""Copies of version 1 of `tiny`, and damage to files."""

import json
import shutil
from pathlib import Path


def add_version(store: Path, model: str, version: int, *, name: str = "tiny") -> Path:
    """Copy `tiny/1` to another version or model, and update the manifest."""
    target = store / model / str(version)
    shutil.copytree(store / "tiny" / "1", target)
    manifest = json.loads((target / "model.json").read_text())
    manifest |= {"name": name, "version": version}
    (target / "model.json").write_text(json.dumps(manifest))
    return target


def corrupt(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
