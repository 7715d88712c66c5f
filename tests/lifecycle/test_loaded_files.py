"""A loaded version serves on without its files in the store, and that is reported."""

import os

from app.main import gatehouse
from tests.lifecycle.serving import active, gauge, settings
from tests.support.artifacts import add_version, corrupt
from tests.support.in_process import client_of


async def test_an_active_version_stays_active_while_it_is_missing(folder):
    newer = add_version(folder, "tiny", 2)
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        newer.rename(folder / "elsewhere")
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/2"]
        (folder / "elsewhere").rename(newer)
        await parts.deployment.refresh()
        assert active(parts) == ["tiny/2"]


async def test_a_removed_or_damaged_active_version_is_reported(folder, caplog):
    newer = add_version(folder, "tiny", 2)
    async with gatehouse(settings(folder)) as parts:
        await parts.deployment.refresh()
        assert gauge(parts, "active_version_intact", model="tiny") == 1
        newer.rename(folder / "elsewhere")
        for _ in range(2):
            await parts.deployment.refresh()
        assert caplog.text.count("model tiny/2 (active) was removed from the store") == 1
        assert gauge(parts, "active_version_intact", model="tiny") == 0
        (folder / "elsewhere").rename(newer)
        await parts.deployment.refresh()
        assert gauge(parts, "active_version_intact", model="tiny") == 1
        os.utime(newer / "model.ts")  # a new time, the same content
        await parts.deployment.refresh()
        assert parts.service.registry.damaged == {}
        corrupt(newer / "model.ts")
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            (version,) = (await client.get("/v1/models/tiny")).json()["versions"]
        assert version["problem"] == (
            "its files in the store have changed: model.ts: its SHA-256 differs from the manifest's"
        )
        assert gauge(parts, "active_version_intact", model="tiny") == 0
