import pytest

from models.data import FeedConfig
from models.training import experiment
from tests import TINY_EXPERIMENT

GOOD = TINY_EXPERIMENT.read_text()


def test_file_becomes_one_checked_object():
    tiny = experiment.read(TINY_EXPERIMENT)

    assert tiny.name == "tiny"
    assert tiny.network.architecture == "ple"
    assert [task.name for task in tiny.tasks] == ["click", "like", "dwell"]
    assert isinstance(tiny.data, FeedConfig)
    assert tiny.clamp == {"dwell": (0, 600)}


def test_features_come_from_the_data():
    tiny = experiment.read(TINY_EXPERIMENT)
    features = {f.name: f.model_dump() for f in tiny.features}

    assert features["item_id"]["vocabulary_size"] == 51
    assert features["item_id"]["embedding_dim"] == 4
    assert features["recent_items"]["shared_with"] == "item_id"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"\n', "", "name: required key is missing"),
        ('name = "tiny"', 'name = "../up"', "name: must have 1 to 64 letters"),
        ('"ple"', '"plee"', "network.architecture: must be"),
        (
            "num_levels = 2",
            "num_level = 2",
            'unknown key "num_level" in [network]; did you mean "num_levels"?',
        ),
        ("num_shared_experts = 1", "num_shared_experts = 0", "network: num_shared_experts: must"),
        (
            "num_task_experts = 1",
            "num_task_experts = [1, 2]",
            "num_task_experts: has 2 entries for 3",
        ),
        ('kind = "duration"', 'kind = "binary"', 'tasks: the data has no binary label "dwell"'),
        (
            '"like"\nkind = "binary"\nsample_space = "click"',
            '"click"\nkind = "binary"',
            "tasks: the name 'click' is used twice",
        ),
        (
            '"like"\nkind',
            '"love"\nkind',
            'tasks: the data has no binary label "love" (labels: click',
        ),
        (
            'space = "click"',
            'space = "dwell"',
            "tasks.like.sample_space: the data has no binary label",
        ),
        ("weight = 0.05", "weight = -1", "tasks[dwell].weight: must be at least 0"),
        ("weight = 0.05", f"unit = '{'x' * 33}'", "tasks.dwell.unit: longer than 32 characters"),
        ("[0, 600]", "[0, 1e39]", "clamp.dwell[1]: must be at most 3.4e+38"),
        (
            'source = "feed"',
            'source = "food"',
            'source: must be "feed", "synthetic" or "files"',
        ),
        (
            "rounds = 5",
            "rounds = 2",
            "data.rounds: must be at least 3",
        ),
        ("epochs = 2", "epochs = 0", "training.epochs: must be greater than 0"),
        (
            "like = 0.5",
            "likes = 0.5",
            'ranking.weights: unknown task "likes" (tasks: click, like, dwell); did you mean',
        ),
        ("dwell = [0, 600]", "watch = [0, 600]", 'clamp: unknown task "watch"'),
        ("dwell = [0, 600]", "dwell = [9, 9]", "clamp.dwell: must be [low, high] with low < high"),
        ("epochs = 2", "epochs = ", "not valid TOML: Invalid value"),
        ("epochs = 2", "epochs = -1\npatience = 0", "training.epochs: must be greater"),
        (
            "epochs = 2",
            "epochs = 2\nlr = 0.1",
            'unknown key "lr" in [training]; did you mean "learning_rate"?',
        ),
        ("[training]", "[trainig]", 'unknown key "trainig"; did you mean "training"?'),
        ("rounds = 5", "round = 5", 'unknown key "round" in [data]; did you mean "rounds"?'),
        (
            "weight = 0.05",
            "wieght = 0.05",
            'unknown key "wieght" in tasks[dwell]; did you mean "weight"?',
        ),
        (
            "epochs = 2",
            "epochs = 2\nxyz = 1",
            'unknown key "xyz" in [training] (known: epochs, batch_rows, learning_rate, ',
        ),
        ('"ple"', '"plee"', '"ple" or "esmm"; did you mean "ple"?'),
        ('source = "feed"', 'source = "fed"', 'did you mean "feed"?'),
    ],
)
def test_invalid_experiment_is_reported_in_one_line(tmp_path, old, new, message):
    path = tmp_path / "wrong.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))

    with pytest.raises(experiment.ExperimentInvalid) as caught:
        experiment.read(path)

    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


def test_error_counts_further_problems(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(GOOD.replace("epochs = 2", "epochs = -1\npatience = 0"))

    with pytest.raises(experiment.ExperimentInvalid, match=r"\(and 1 more\)$"):
        experiment.read(path)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(experiment.ExperimentInvalid, match=r"absent.toml: No such file"):
        experiment.read(tmp_path / "absent.toml")


def test_extending_file_replaces_whole_tables(tmp_path):
    (tmp_path / "base.toml").write_text(GOOD)
    path = tmp_path / "mmoe.toml"
    path.write_text('extends = "base.toml"\n[network]\narchitecture = "mmoe"\n')

    extended = experiment.read(path)
    base = experiment.read(tmp_path / "base.toml")

    assert extended.network.architecture == "mmoe"
    assert extended.network.expert_hidden_units == (256, 128)  # nothing is left of the other table
    assert extended.model_copy(update={"network": base.network}) == base


@pytest.mark.parametrize(
    ("extends", "message"),
    [('"absent.toml"', "absent.toml: No such file"), ("3", "extends: must be a file name")],
)
def test_missing_extended_file_is_reported(tmp_path, extends, message):
    path = tmp_path / "mmoe.toml"
    path.write_text(f"extends = {extends}\n")

    with pytest.raises(experiment.ExperimentInvalid, match=message):
        experiment.read(path)
