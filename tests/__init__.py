"""Tests. The folders mirror `app` and `models`; `end_to_end` starts real servers."""

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
TINY_EXPERIMENT = REPOSITORY / "tests" / "support" / "tiny.toml"
