"""Damaged requests through the whole service: never a server error, always a problem document."""

from itertools import islice

import pytest

from tests.support.json_fuzz import cases, status_of

pytestmark = pytest.mark.slow


@pytest.mark.no_cover
async def test_damaged_requests_get_scores_or_a_known_problem(service):
    statuses = {await status_of(service.app, sent) for sent in islice(cases(seed=7), 2000)}
    assert statuses == {200, 400, 422}
