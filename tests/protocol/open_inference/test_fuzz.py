"""Whatever is damaged in a request, the answer is the caller's error or scores: the short form."""

import pytest

from tests.protocol.open_inference.fuzz import Damage, fuzz, requests_of

pytestmark = pytest.mark.slow


async def test_damaged_requests_never_fail_the_server(service, client):
    damage = Damage(await requests_of(client), seed=1)
    statuses = await fuzz(service.app, damage, 1500)
    assert statuses[200] > 100  # some damage does none
    assert {400, 422} <= statuses.keys()
