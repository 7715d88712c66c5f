import io

import numpy as np
import pytest
import torch
from rich.console import Console

from app.artifacts.columns import ModelInputs
from app.artifacts.inputs import IdListInput
from app.artifacts.loader import load
from app.artifacts.program import scores
from app.artifacts.store import Store
from app.main import gatehouse
from app.settings import Settings
from models import data
from models.export.export import GOLDEN_SIZES, description, export, golden_requests, task_outputs
from models.networks.build import build
from models.networks.config import NetworkConfig, links
from models.training import experiment, train
from models.training.evaluate import predict
from tests import TINY_EXPERIMENT
from tests.models import impressions
from tests.support.in_process import client_of

DEVICE = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny():
    return experiment.read(TINY_EXPERIMENT)


@pytest.fixture(scope="module")
def held_out(tiny):
    return data.generate(tiny.data).test


@pytest.fixture(scope="module")
def golden(tiny, held_out):
    return golden_requests(tiny, held_out)


def columns(batch):
    return [*batch.user.items(), *batch.candidate.items()]


def test_published_artifact_passes_the_checks_of_the_service(tiny, tmp_path):
    store = Store(tmp_path)
    artifact = train.run(tiny, store, console=Console(file=io.StringIO()))

    model = load(artifact, torch.device("cpu"))

    assert str(model) == "tiny/1"
    assert model.manifest.task_names == ("click", "like", "dwell")
    assert model.manifest.ranking == tiny.ranking
    assert experiment.Experiment.model_validate(model.manifest.training) == tiny
    assert store.versions("tiny") == [1]


def test_the_program_scores_as_the_network_did(tiny, held_out, tmp_path):
    network = build(tiny.network, tiny.features, tiny.tasks, seed=0)

    artifact = export(network, tiny, held_out, {}, Store(tmp_path))

    program = load(artifact, torch.device("cpu")).program
    request = held_out.take(torch.tensor([3, 0, 5]))
    batch = ModelInputs(
        {name: column.numpy() for name, column in request.user.items()},
        {name: column.numpy() for name, column in request.candidate.items()},
        request.row_to_request.numpy(),
    )
    np.testing.assert_allclose(program.run(batch), predict(network, request), atol=1e-5)


def test_network_in_training_mode_is_exported_without_its_dropout(tiny, held_out, tmp_path):
    dropout = tiny.network.model_copy(update={"dropout": 0.5})
    network = build(dropout, tiny.features, tiny.tasks, seed=0).train()

    artifact = export(network, tiny, held_out, {}, Store(tmp_path))

    load(artifact, torch.device("cpu"))  # runs every golden request twice
    assert not network.training


def test_golden_requests_have_all_sizes(golden):
    assert tuple(np.bincount(golden.row_to_request)) == GOLDEN_SIZES
    assert 64 <= golden.rows <= 100
    assert all(len(column) == len(GOLDEN_SIZES) for column in golden.user.values())
    assert all(len(column) == golden.rows for column in golden.candidate.values())


def test_golden_requests_include_unknown_ids_and_an_empty_history(golden):
    assert golden.user["user_id"][0] == data.UNKNOWN
    assert golden.candidate["item_id"][0] == data.UNKNOWN
    assert golden.user["user_id"][2:].any()
    assert (golden.user["recent_items"][1] == data.PADDING).all()
    assert (golden.user["recent_items"] != data.PADDING).any()


def test_making_golden_requests_leaves_the_data_alone(tiny, held_out):
    before = held_out.user["user_id"].clone()
    golden_requests(tiny, held_out)

    assert torch.equal(held_out.user["user_id"], before)


def test_few_held_out_rows_are_used_again(tiny, held_out):
    golden = golden_requests(tiny, held_out.take(torch.tensor([0])))

    assert golden.rows == sum(GOLDEN_SIZES)


def test_inputs_say_how_lists_are_filled(tiny):
    inputs = {feature.name: feature for feature in description(tiny, {}).inputs}

    recent = inputs["recent_items"]
    assert isinstance(recent, IdListInput)
    assert (recent.max_length, recent.padding, recent.padding_side) == (4, -1, "right")
    assert recent.unknown == 0
    assert recent.vocabulary_size == inputs["item_id"].model_dump()["vocabulary_size"] == 51
    assert [feature.side for feature in inputs.values()] == ["user"] * 4 + ["candidate"] * 3


def test_tasks_say_how_their_columns_become_scores(tiny):
    click, like, dwell = task_outputs(tiny)

    assert (click.link, click.unit, click.clamp) == ("sigmoid", "probability", None)
    assert (like.link, like.output.column) == ("sigmoid", 1)
    assert (dwell.link, dwell.unit, dwell.clamp) == ("exp", "seconds", (0, 600))


def test_esmm_product_is_a_probability_through_exp(tiny, held_out):
    esmm = tiny.model_copy(
        update={"network": NetworkConfig(architecture="esmm", expert_hidden_units=(8,))}
    )
    network = build(esmm.network, esmm.features, esmm.tasks, seed=0)

    outputs = task_outputs(esmm)
    score = scores(predict(network, held_out).numpy(), outputs)

    assert tuple(task.link for task in outputs) == links(esmm.network, esmm.tasks)
    assert outputs[1].link == "exp"
    assert (score[:, 1] <= score[:, 0]).all()
    assert (score[:, 1] > 0).all()


def test_dense_features_are_scaled_in_the_artifact(tmp_path):
    price = impressions.columns()["price"]
    price[3] = None
    path = impressions.folder(
        tmp_path, schema=('missing = "refuse"', "missing_indicator = true"), price=price
    )
    settings = experiment.read(path)
    console = Console(file=io.StringIO())

    model = load(train.run(settings, Store(tmp_path / "store"), console=console), DEVICE)

    (quality,) = [feature for feature in model.manifest.inputs if feature.name == "quality"]
    assert quality.default is not None  # of a feature that had missing values in training
    held_out = data.generate(settings.data, settings.tasks).test
    raw = {name: column.numpy() for name, column in held_out.candidate.items()}
    user = {name: column.numpy() for name, column in held_out.user.items()}
    row_to_request = held_out.row_to_request.numpy()
    outputs = model.program.run(ModelInputs(user, raw, row_to_request))
    missing = raw | {"quality": np.full_like(raw["quality"], np.nan)}
    clipped = raw | {"quality": raw["quality"] + np.float32(1e6)}
    assert np.isfinite(model.program.run(ModelInputs(user, missing, row_to_request))).all()
    beyond = model.program.run(ModelInputs(user, clipped, row_to_request))
    assert np.abs(beyond - outputs).max() < 10  # clipped to the range of the training rows


def test_complete_dense_features_are_required_in_requests(tmp_path):
    settings = experiment.read(impressions.folder(tmp_path, schema=('missing = "refuse"', "")))
    splits = data.generate(settings.data, settings.tasks)
    network = build(settings.network, settings.features, settings.tasks, seed=0)
    network.columns.fit(splits.dense_sample)

    assert network.columns.defaults() == {}


def test_artifact_has_the_distributions_of_held_out_rows(tiny, held_out, tmp_path):
    artifact = train.run(tiny, Store(tmp_path), quiet=True, console=Console(file=io.StringIO()))
    model = load(artifact, DEVICE)
    known = model.manifest.distributions
    assert known is not None
    assert known.features.keys() == {feature.name for feature in tiny.features}
    assert known.scores.keys() == {task.name for task in tiny.tasks}
    columns = {**held_out.user, **held_out.candidate}
    for name, bins in known.features.items():
        counts = bins.counts(columns[name].numpy())
        assert counts / counts.sum() == pytest.approx(bins.shares, abs=1e-5)
    batch = ModelInputs(
        {name: column.numpy() for name, column in held_out.user.items()},
        {name: column.numpy() for name, column in held_out.candidate.items()},
        held_out.row_to_request.numpy(),
    )
    served = scores(model.program.run(batch), model.manifest.tasks)
    for k, bins in enumerate(known.scores.values()):
        assert bins.stability_index(bins.counts(served[:, k])) < 1e-4
    assert (artifact.folder / "model.json").stat().st_size < 30_000


async def test_missing_values_of_requests_agree_with_the_table_bit_for_bit(tmp_path):
    """Null in JSON, NaN in a tensor, and null in the table are one thing to the network."""
    price, item = impressions.columns()["price"], impressions.columns()["item"]
    for row in range(0, len(price), 3):
        price[row], item[row + 1] = None, None
    path = impressions.folder(
        tmp_path,
        schema=('missing = "refuse"', "missing_indicator = true"),
        price=price,
        item=item,
    )
    settings = experiment.read(path)
    model = load(
        train.run(settings, Store(tmp_path / "store"), console=Console(file=io.StringIO())), DEVICE
    )
    test = data.generate(settings.data, settings.tasks).test
    rows = np.flatnonzero(test.row_to_request.numpy() == 0)
    missing = np.isnan(test.candidate["quality"].numpy()[rows])
    assert missing.any()
    assert not missing.all()

    batch = ModelInputs(
        {"user": np.array([data.UNKNOWN]), "recent": np.array([[data.PADDING] * 2])},
        {name: column.numpy()[rows] for name, column in test.candidate.items()},
        np.zeros(len(rows), np.int64),
    )
    want = scores(model.program.run(batch), model.manifest.tasks)
    names = {row: name for name, row in model.vocabularies["item"].items()}
    quality = batch.candidate["quality"].tolist()
    items = [names.get(row) for row in batch.candidate["item"].tolist()]
    assert None in items
    numbers = [[None if number != number else number for number in row] for row in quality]
    request = {
        "user": {"user": None, "recent": None},
        "candidates": {"item": items, "quality": numbers},
    }
    required = {feature.name: feature.missing for feature in model.manifest.inputs}
    assert required == dict.fromkeys(("user", "recent", "item"), "unknown") | {"quality": "nan"}

    serving = Settings(store=tmp_path / "store", lanes=1, request_timeout_ms=30_000)
    async with gatehouse(serving) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            answer = (await client.post("/v1/models/shop/score", json=request)).json()
    np.testing.assert_array_equal(np.float32(answer["scores"]["click"]), want[:, 0])
