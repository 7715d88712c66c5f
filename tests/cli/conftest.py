"""Shared by the tests of the commands."""

import pytest

from app.settings import Settings


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal wide enough for a table, and no setting from outside."""
    monkeypatch.setenv("COLUMNS", "250")
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEHOUSE_{name.upper()}", raising=False)
