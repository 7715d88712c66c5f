"""A policies file that changes under load on a real server, without a signal or a restart."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import START_S, failed_start, running_server

pytestmark = pytest.mark.slow

SCORE = "/v1/models/tiny/score"


def policies(weight: float) -> str:
    """Use one weight everywhere: an answer that mixes two files has two weights."""
    return f"""
        [default]
        tiny = "home"
        [policy.home]
        formula = "power_product"
        weights = {{ click = {weight}, like = {weight} }}
    """


def replace(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


def checked(answer: dict[str, Any]) -> tuple[str, float]:
    """Return the version that an answer names and the weight that it was computed with."""
    (weight,) = set(answer["policy"]["weights"].values())
    scores = zip(answer["scores"]["click"], answer["scores"]["like"], strict=True)
    expected = [(click * like) ** weight for click, like in scores]
    assert answer["rank_score"] == pytest.approx(expected, rel=1e-4)
    return answer["policy"]["version"], weight


async def test_no_response_mixes_two_policies_files_that_change_under_load(store, tmp_path):
    file = tmp_path / "policies.toml"
    file.write_text(policies(0.25))
    flags = ("--policies", str(file), "--store-poll-s", "0.02", "--request-timeout-ms", "30000")
    found: dict[str, set[float]] = {}
    with running_server(store.folder, tmp_path / "log", *flags) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            done = False

            async def ask() -> None:
                while not done:
                    version, weight = checked((await client.post(SCORE, json=example)).json())
                    found.setdefault(version, set()).add(weight)

            async def applied(weight: float) -> None:
                patience = time.monotonic() + START_S
                while not any(weight in weights for weights in found.values()):
                    assert time.monotonic() < patience
                    await asyncio.sleep(0.01)

            callers = [asyncio.create_task(ask()) for _ in range(16)]
            for weight in (0.5, 0.75, 1.0, 1.25):
                replace(file, policies(weight))
                await applied(weight)
            replace(file, "[policy.home")
            await _refused(client)
            done = True
            await asyncio.gather(*callers)
            assert checked((await client.post(SCORE, json=example)).json())[1] == 1.25
        assert server.terminate() == 0
    assert {weight for weights in found.values() for weight in weights} >= {0.5, 0.75, 1.0, 1.25}
    assert all(len(weights) == 1 for weights in found.values())


async def _refused(client: httpx.AsyncClient) -> None:
    patience = time.monotonic() + START_S
    while not (state := (await client.get("/v1/models")).json()["policies"])["refused"]:
        assert time.monotonic() < patience
        await asyncio.sleep(0.01)
    assert state["refused"][0].startswith("not valid TOML")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[default]\ntiny = 'home'", 'default.tiny: unknown policy "home" (known: default)'),
        (
            "[policy.x]\nweights = {buy = 1}\nmodels = ['tiny']",  # known once the model is loaded
            'policy.x: model "tiny": unknown task "buy" (known: ',
        ),
    ],
)
def test_a_policies_file_that_does_not_fit_at_start_ends_the_server(
    store, tmp_path, content, problem
):
    file = tmp_path / "policies.toml"
    file.write_text(content)
    ended = failed_start("--port", "0", "--store", str(store.folder), "--policies", str(file))
    assert ended.returncode == 2
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"gatehouse: {file}: {problem}")
