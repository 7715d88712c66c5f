"""The service on a GPU gives what it gives on the CPU."""

import httpx
import pytest
import torch

from app.artifacts.loader import load
from app.main import gatehouse
from app.settings import Settings
from tests.app.direct import direct_scores

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def test_an_artifact_passes_its_golden_check_on_the_gpu(tiny):
    model = load(tiny, torch.device("cuda"))
    assert model.program.device.type == "cuda"


async def test_scores_of_the_gpu_are_those_of_the_torchscript_file(store, tiny):
    settings = Settings(store=store.folder, device="cuda", request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.deployment.refresh()
        transport = httpx.ASGITransport(parts.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gatehouse") as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            answer = (await client.post("/v1/score", json=example)).json()
    for task, expected in direct_scores(tiny, example).items():
        assert answer["scores"][task] == pytest.approx(expected, rel=1e-4)
