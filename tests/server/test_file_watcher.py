"""Files of secrets are read again when they change, and wrong ones change nothing."""

import logging

import pytest

from app.errors import Unauthorized
from app.scoring.keys import Keys
from app.server.file_watcher import FileWatcher

OLD, NEW = "old-" * 5, "new-" * 5


def may_call(keys: Keys, secret: str) -> bool:
    try:
        return keys.caller(f"Bearer {secret}".encode()) == "anna"
    except Unauthorized:
        return False


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"anna:{OLD}")
    return file


async def test_a_changed_file_is_in_force_after_the_next_look(file):
    keys = Keys(file=file)
    rotation = FileWatcher(keys)
    await rotation.look()
    file.write_text(f"anna:{NEW} # later")
    assert may_call(keys, OLD)
    await rotation.look()
    assert may_call(keys, NEW)
    assert not may_call(keys, OLD)


async def test_a_change_between_the_first_reading_and_the_first_look_is_seen(file):
    keys = Keys(file=file)
    file.write_text(f"anna:{NEW}")
    await FileWatcher(keys).look()
    assert may_call(keys, NEW)


async def test_a_link_that_is_swapped_is_a_change(file, tmp_path):
    """As a Kubernetes volume does it."""
    link = tmp_path / "link"
    link.symlink_to(file)
    keys = Keys(file=link)
    rotation = FileWatcher(keys)
    await rotation.look()
    (tmp_path / "newer").write_text(f"anna:{NEW}")
    (tmp_path / "swap").symlink_to(tmp_path / "newer")
    (tmp_path / "swap").rename(link)
    await rotation.look()
    assert may_call(keys, NEW)


@pytest.mark.parametrize("damage", ["removed", "empty", "wrong"])
async def test_a_file_that_cannot_be_used_leaves_the_old_keys_and_is_logged_once(
    file, caplog, damage
):
    keys = Keys(file=file)
    rotation = FileWatcher(keys)
    await rotation.look()
    match damage:
        case "removed":
            file.unlink()
        case "empty":
            file.write_text("")
        case _:
            file.write_text(f"anna:{NEW} bert:tooshort")
    with caplog.at_level(logging.INFO):
        await rotation.look()
        await rotation.look()
    assert may_call(keys, OLD)
    (logged,) = caplog.records
    assert "cannot be used" in logged.getMessage()
    assert "tooshort" not in logged.getMessage()
    file.write_text(f"anna:{NEW}")
    await rotation.look()
    assert may_call(keys, NEW)


async def test_an_unchanged_file_is_not_read_again(file, caplog):
    rotation = FileWatcher(Keys(file=file))
    with caplog.at_level(logging.DEBUG, "app.server.file_watcher"):
        for _ in range(3):
            await rotation.look()
    assert len(caplog.records) == 1


async def test_a_fault_in_reading_a_file_does_not_end_the_following(file, caplog):
    class Faulty(Keys):
        def prepare(self):
            if b"fault" in file.read_bytes():
                raise ZeroDivisionError
            return super().prepare()

    keys = Faulty(file=file)
    rotation = FileWatcher(keys)
    file.write_text("fault")
    await rotation.look()
    assert "cannot be used" in caplog.text
    assert may_call(keys, OLD)
    file.write_text(f"anna:{NEW}")
    await rotation.look()
    assert may_call(keys, NEW)
