"""`model.pt2`: the same outputs as TorchScript, for any number of requests and rows."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.artifacts.columns import ModelInputs
from app.artifacts.loader import load
from app.artifacts.store import EXPORTED, Store
from app.errors import ArtifactInvalid
from models import data
from models.export.export import export
from models.export.precision import reduced
from models.export.torch_export import exported
from models.networks.build import build
from models.training import experiment
from models.training.experiment import ExportConfig
from tests import TINY_EXPERIMENT
from tests.models.cases import ARCHITECTURES, FEATURES, small, tasks, values
from tests.support.artifacts import corrupt

pytestmark = pytest.mark.slow

CASES = [(architecture, "fp32") for architecture in ARCHITECTURES]
CASES += [("ple", "bf16"), ("mmoe", "int8-embeddings")]


def requests(sizes=(1, 2, 4)) -> ModelInputs:
    user, candidate, _ = values(len(sizes), sum(sizes))
    return ModelInputs(
        {name: column.numpy() for name, column in user.items()},
        {name: column.numpy() for name, column in candidate.items()},
        np.repeat(np.arange(len(sizes)), sizes),
    )


@pytest.mark.parametrize(("architecture", "precision"), CASES)
def test_exported_program_equals_torchscript_for_any_requests_and_rows(architecture, precision):
    network = reduced(build(small(architecture), FEATURES, tasks(3), seed=1), precision)
    scripted = torch.jit.freeze(torch.jit.script(network))
    program = torch.export.load(io.BytesIO(exported(network, requests()))).module()
    for num_requests in (1, 2, 64):
        for num_rows in (1, 2, 64):
            arguments = values(num_requests, num_rows, seed=num_rows)
            outputs = program(*arguments)
            assert outputs.shape == (num_rows, 3)
            torch.testing.assert_close(outputs, scripted(*arguments), rtol=1e-5, atol=1e-5)


def test_network_without_user_features_is_exported():
    features = [feature for feature in FEATURES if feature.side == "candidate"]
    network = build(small("mmoe"), features, tasks(2), seed=1).eval()
    _, candidate, row_to_request = values(2, 7, features=features)
    columns = {name: column.numpy() for name, column in candidate.items()}
    content = exported(network, ModelInputs({}, columns, row_to_request.numpy()))
    program = torch.export.load(io.BytesIO(content)).module()
    arguments = values(1, 1, features=features)
    torch.testing.assert_close(program(*arguments), network(*arguments))


def test_file_contains_no_features_of_users():
    network = build(small("mmoe"), FEATURES, tasks(2), seed=1).eval()
    content = exported(network, requests())
    assert torch.export.load(io.BytesIO(content)).example_inputs is None


class Branching(nn.Module):
    def forward(self, user: dict[str, Tensor], candidate: dict[str, Tensor], _: Tensor) -> Tensor:
        price = candidate["price"]
        return price + user["age"][:1, :1] if bool(price.sum() > 0) else -price


class Traced(nn.Module):
    """Gives other outputs when it is traced, as a bug of a compiler would."""

    def forward(self, user: dict[str, Tensor], candidate: dict[str, Tensor], _: Tensor) -> Tensor:
        return candidate["price"] + (user["age"].size(1) if torch.compiler.is_exporting() else 0)


def test_network_that_torch_export_cannot_express_is_refused():
    with pytest.raises(
        ArtifactInvalid, match=r"torch\.export cannot express the network: ."
    ) as caught:
        exported(Branching(), requests())
    assert "\n" not in str(caught.value)


def test_program_with_other_outputs_is_refused():
    with pytest.raises(ArtifactInvalid, match="gives other outputs than the network for 7 rows"):
        exported(Traced(), requests())


@pytest.fixture
def artifact(tmp_path):
    tiny = experiment.read(TINY_EXPERIMENT)
    tiny = tiny.model_copy(update={"export": ExportConfig(torch_export=True)})
    network = build(tiny.network, tiny.features, tiny.tasks, seed=0)
    return export(network, tiny, data.generate(tiny.data).test, {}, Store(tmp_path))


def test_artifact_holds_the_exported_program_where_it_is_asked_for(artifact):
    model = load(artifact, torch.device("cpu"))
    assert EXPORTED in model.manifest.files
    program = torch.export.load(artifact.folder / EXPORTED).module()
    golden = model.golden
    user = {name: torch.from_numpy(column) for name, column in golden.batch.user.items()}
    candidate = {name: torch.from_numpy(column) for name, column in golden.batch.candidate.items()}
    outputs = program(user, candidate, torch.from_numpy(golden.batch.row_to_request))
    np.testing.assert_allclose(outputs.detach().numpy(), golden.raw, rtol=1e-5, atol=1e-5)


def test_damaged_exported_program_makes_the_artifact_invalid(artifact):
    corrupt(artifact.folder / EXPORTED)
    with pytest.raises(ArtifactInvalid, match=r"model\.pt2: its SHA-256 differs"):
        load(artifact, torch.device("cpu"))
