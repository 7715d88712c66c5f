"""A Ray cluster of several nodes loses a replica and a node; tests/soak/ray_serve.py does more."""

import importlib.util
import subprocess
import sys

import pytest

from tests import REPOSITORY
from tests.support.server import patient_environment


@pytest.mark.slow
def test_no_call_fails_while_a_ray_cluster_loses_a_replica_and_a_node():
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    finished = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "tests.soak.ray_serve"),
            *("--short", "--seconds", "1", "--callers", "4"),
        ],
        cwd=REPOSITORY,
        env=patient_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    rows = [line for line in finished.stdout.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[0] for row in cells] == ["quiet", "loss of a replica", "loss of a node"]
    assert all(int(requests) > 0 for _, requests, *_ in cells)
    assert sum(int(retried) for _, _, _, _, retried, *_ in cells) > 0  # some calls were open
