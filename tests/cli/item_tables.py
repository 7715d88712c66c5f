"""A store of the model `feed`, files of items, and the tables that commands publish from them."""

import shutil
from pathlib import Path

from app.artifacts.tables.listing import tables_of
from app.artifacts.tables.table import open_table

ROWS = "item,quality\n1,0.1 0.2\n2,0.3 0.4\n3,0.5 0.6\n"


def default_store(models, tmp_path, monkeypatch):
    """Copy a store to where commands look for it: `store` in the current folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(models, tmp_path / "store")


def items(text: str, name: str = "items.csv") -> str:
    """Write a file into the current folder, and return its name."""
    Path(name).write_text(text, encoding="utf-8")
    return name


def table(store, kind="items"):
    """Open the newest table of `feed`."""
    return open_table(tables_of(store / "feed", kind)[-1], "feed")
