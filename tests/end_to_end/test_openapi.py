"""The OpenAPI document tells the truth: schemathesis over every route of a real server."""

import pytest

from tests.support.fuzz_openapi import fuzz
from tests.support.server import running_server

pytestmark = pytest.mark.slow
KEY = "a-key-for-the-fuzzer"


def test_no_route_responds_with_an_undocumented_status(store, tmp_path):
    keys = {"GATEHOUSE_KEYS": f"fuzzer:{KEY}"}
    flags = ("--request-timeout-ms", "60000", "--lanes", "1")
    with running_server(store.folder, tmp_path / "log", *flags, environment=keys) as server:
        report = fuzz(server.url, cases=10, key=KEY)
        log = server.log.read_text()
    assert report.failures == [], report.output
    assert report.operations >= 20
    assert report.accepted > 200
    assert "Traceback" not in log
