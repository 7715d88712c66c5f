"""Damaged inference requests: scores or a client error. The short form of `fuzz`."""

import pytest

from tests.protocol.open_inference.fuzz import Damage, fuzz, requests_of

pytestmark = pytest.mark.slow


@pytest.mark.no_cover
async def test_damaged_requests_never_cause_a_server_error(service, client):
    damage = Damage(await requests_of(client), seed=1)
    statuses = await fuzz(service.app, damage, 1500)
    assert statuses[200] > 100  # some damage is harmless
    assert {400, 422} <= statuses.keys()
