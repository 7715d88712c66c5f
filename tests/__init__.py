"""Tests mirror the modules; what a person does with the whole is in `test_server`."""

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
TINY_EXPERIMENT = REPOSITORY / "tests" / "support" / "tiny.toml"
