"""Replicas behind a real HAProxy come and go; no request fails. `tests/soak/fleet.py` does more."""

import os
import re
import shutil
import subprocess

import httpx
import pytest
import yaml

from tests import REPOSITORY
from tests.soak import fleet

HAPROXY = REPOSITORY / "docker" / "haproxy" / "haproxy.cfg"


@pytest.mark.slow
def test_no_request_fails_while_replicas_come_and_go(capfd):
    if lacks := fleet.missing():
        pytest.skip(lacks)
    scenes = [fleet.new_version, fleet.restart_of_one, fleet.partition, fleet.loss]
    assert fleet.soak(scenes, callers=4, seconds=0.5) == []
    table = capfd.readouterr().out.splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table]
    assert [row[0] for row in cells] == ["new version", "restart of one", "partition", "loss"]
    assert all(int(requests) > 20 for _, requests, *_ in cells)
    # Otherwise nothing happened to any request, and the scenes prove nothing.
    assert sum(int(retried) + int(again) for *_, retried, again, _, _ in cells) > 0


def test_faults_of_responses_are_found():
    callers = fleet.Callers("http://unused", 0)
    sent = httpx.Request("POST", "http://unused", headers={"x-request-id": "a"})

    def fault(sums=(7.0, 8.0), versions=(3, 3), request_id="a"):
        document = {"version": 3, "scores": {"sum": list(sums), "version": list(versions)}}
        headers = {"x-request-id": request_id}
        response = httpx.Response(200, json=document, headers=headers, request=sent)
        return callers._fault(response, 7, [0.0, 1.0])

    assert fault() == ""
    assert "mixed versions" in fault(versions=(3, 4))
    assert "mixed versions" in fault(versions=(4, 4))
    assert "another request" in fault(sums=(8.0, 9.0))
    assert "id of another request" in fault(request_id="b")


@pytest.mark.parametrize("replicas", [0, 2, 3])
def test_haproxy_accepts_its_configuration(replicas):
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if haproxy is None:
        pytest.skip("haproxy is not installed")
    addresses = {f"REPLICA_{n + 1}": f"10.0.0.{n + 1}:8000" for n in range(replicas)}
    checked = subprocess.run(
        [haproxy, "-c", "-f", HAPROXY],
        capture_output=True,
        text=True,
        env=os.environ | addresses,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


def test_replica_of_compose_serves_until_haproxy_has_noticed_that_it_is_not_ready():
    compose = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())
    delay_s = float(compose["services"]["gatehouse"]["environment"]["GATEHOUSE_DRAIN_DELAY_S"])
    text = HAPROXY.read_text()
    times_s = {
        name: int(ms) / 1000 for name, ms in re.findall(r"(inter|fastinter|check) (\d+)ms", text)
    }
    assert set(times_s) == {"inter", "fastinter", "check"}
    assert "fall 2 " in text
    assert delay_s > times_s["inter"] + times_s["fastinter"] + 2 * times_s["check"]
