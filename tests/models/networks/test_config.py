"""Configurations are checked where they are made, and say which field breaks which rule."""

import tomllib

import pydantic
import pytest

from models.networks.config import Feature, IdListFeature, NetworkConfig, Task, links

TOML = """
[network]
architecture = "ple"
num_task_experts = [1, 2]
expert_hidden_units = [64, 32]

[[features]]
kind = "id_list"
name = "history"
side = "user"
vocabulary_size = 100
embedding_dim = 8
max_length = 20

[[tasks]]
name = "click"
kind = "binary"

[[tasks]]
name = "dwell"
kind = "duration"
loss = "log1p_mse"
sample_space = "click"
"""


def test_configuration_is_read_from_toml():
    tables = tomllib.loads(TOML)
    network = NetworkConfig.model_validate(tables["network"])
    assert network.task_experts(2) == (1, 2)
    assert network.expert_hidden_units == (64, 32)
    feature = pydantic.TypeAdapter(Feature).validate_python(tables["features"][0])
    assert isinstance(feature, IdListFeature)
    assert feature.pooling == "mean"
    tasks = [Task.model_validate(table) for table in tables["tasks"]]
    assert links(network, tasks) == ("sigmoid", "expm1")


@pytest.mark.parametrize(
    ("kind", "loss", "link", "unit"),
    [
        ("binary", "bce", "sigmoid", "probability"),
        ("duration", "weighted_logistic", "exp", "seconds"),
        ("regression", "mse", "identity", ""),
    ],
)
def test_kind_of_task_has_its_usual_loss_link_and_unit(kind, loss, link, unit):
    task = Task(name="t", kind=kind)
    assert (task.loss, task.link, task.unit) == (loss, link, unit)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "binary", "loss": "mse"}, "loss: must be bce for a binary task, not mse"),
        (
            {"kind": "duration", "loss": "bce"},
            "must be weighted_logistic or log1p_mse for a duration task, not bce",
        ),
        ({"kind": "binary", "sample_space": "t"}, "'t' cannot be its own sample space"),
        ({"kind": "binary", "weight": -1.0}, "weight"),
        ({"kind": "binary", "wieght": 1.0}, "wieght"),
        ({"kind": "ordinal"}, "kind"),
    ],
)
def test_impossible_task_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Task(name="t", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_task_experts": -1}, "num_task_experts: must be 0 or more"),
        ({"num_task_experts": []}, "num_task_experts: must be 0 or more"),
        (
            {"num_task_experts": [2, 0], "num_shared_experts": 0, "num_levels": 1},
            r"num_task_experts \+ num_shared_experts: every task needs at least 1",
        ),
        ({"num_shared_experts": 0}, "num_shared_experts: must be 1 or more when num_levels > 1"),
        ({"num_levels": 0}, "num_levels"),
        ({"expert_hidden_units": []}, "expert_hidden_units"),
        ({"tower_hidden_units": [0]}, "tower_hidden_units"),
        ({"dropout": 1.0}, "dropout"),
        ({"experts": 3}, "experts"),
    ],
)
def test_impossible_sizes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(architecture="ple", **fields)


def test_unused_sizes_are_ignored():
    assert NetworkConfig(architecture="mmoe", num_shared_experts=0).levels == 1
    assert NetworkConfig(architecture="cgc", num_shared_experts=0, num_levels=3).levels == 1
    assert NetworkConfig(architecture="esmm", esmm_body="ple", num_levels=3).levels == 3


def test_configuration_cannot_be_changed():
    network = NetworkConfig(architecture="ple")
    with pytest.raises(ValueError, match="frozen"):
        network.num_levels = 3  # type: ignore[misc]
