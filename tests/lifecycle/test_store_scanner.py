"""A store, or a folder in it, that cannot be read is reported once and harms nothing else."""

import asyncio

import pytest

from app.artifacts.store import Store
from app.lifecycle.poll_timer import PollTimer
from app.main import gatehouse
from tests.lifecycle.serving import active, settings
from tests.support.artifacts import add_version
from tests.support.in_process import client_of


class Volume(Store):
    """A store on a network volume that cannot be read at first."""

    def scan(self):
        marker = self.folder / "away"
        if marker.exists():
            marker.unlink()
            raise PermissionError(13, "Permission denied")
        return super().scan()


async def test_a_store_that_was_unreadable_for_a_while_is_followed_again(folder):
    async with gatehouse(settings(folder)) as parts:
        parts.deployment._scanner._store = Volume(folder)
        (folder / "away").touch()
        following = asyncio.ensure_future(parts.deployment.follow(PollTimer(0.01)))
        async with asyncio.timeout(30):
            while not parts.service.is_ready:  # noqa: ASYNC110  (as a load balancer does)
                await asyncio.sleep(0.01)
        assert not (folder / "away").exists()
        following.cancel()


async def test_a_folder_that_cannot_be_read_costs_the_others_nothing(folder, caplog):
    async with gatehouse(settings(folder)) as parts:
        (folder / "other").symlink_to("other")
        (folder / "tiny" / "3").symlink_to("3")
        for _ in range(2):
            await parts.deployment.refresh()
        assert active(parts) == ["tiny/1"]
        add_version(folder, "tiny", 2)
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/2"]
        reason = "cannot be read: Too many levels of symbolic links"
        assert parts.service.registry.ignored == {"other": reason, "tiny/3": reason}
        assert caplog.text.count(f"other in the store is ignored: {reason}") == 1
        async with client_of(parts) as client:
            listed = (await client.get("/v1/models")).json()["ignored"]
        assert {"folder": "other", "reason": reason} in listed


async def test_a_store_that_disappears_is_logged_once_and_counted(folder, tmp_path_factory, caplog):
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        elsewhere = folder.rename(tmp_path_factory.mktemp("away") / "store")
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                await parts.deployment.refresh()
        assert active(parts) == ["tiny/1"]
        assert caplog.text.count(f'the store "{folder}" does not exist') == 1
        count = parts.metrics.registry.get_sample_value
        assert count("gatehouse_store_errors_total") == 3
        elsewhere.rename(folder)
        add_version(folder, "tiny", 2)
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/2"]


async def test_a_store_that_does_not_exist_at_the_start_is_logged_and_waited_for(tmp_path, caplog):
    async with gatehouse(settings(tmp_path / "none")) as parts:
        await parts.deployment.refresh()
        assert not parts.service.is_ready
        assert f'the store "{tmp_path / "none"}" does not exist' in caplog.text
