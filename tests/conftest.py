"""What every test shares: one thread for torch, plain asyncio, and no test measured by time."""

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("gatehouse", deadline=None)
hypothesis.settings.load_profile("gatehouse")


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"
