"""What every test shares: plain asyncio, one thread for torch, and one tiny artifact a run."""

import io

import hypothesis
import pytest
import torch
from rich.console import Console

from app.artifacts.store import Artifact, Store
from models import experiment, train
from tests import TINY_EXPERIMENT

torch.set_num_threads(1)
hypothesis.settings.register_profile(  # no test is measured by time
    "gatehouse", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("gatehouse")


@pytest.fixture(autouse=True)
def _same_draws_every_time():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Artifact:
    """A trained and published version; tests that change it copy it first."""
    store = Store(tmp_path_factory.mktemp("store"))
    console = Console(file=io.StringIO())
    return train.run(experiment.read(TINY_EXPERIMENT), store, quiet=True, console=console)


@pytest.fixture(scope="session")
def store(tiny) -> Store:
    """The store that holds `tiny` and nothing else."""
    return Store(tiny.folder.parent.parent)
