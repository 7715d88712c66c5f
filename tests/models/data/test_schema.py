"""Schemas: what cannot be is refused when the file is read, with field and rule."""

import pytest

from models.data.schema import FilesConfig
from models.training import experiment
from tests.models.impressions import folder


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("buckets = 50", "buckets = 0", "buckets: must be at least 1"),
        ("max_length = 2", "max_length = 0", "max_length: must be greater than 0"),
        ("max_length = 2", "max_length = -3", "max_length: must be greater than 0"),
        ('"age"]', '"age"]\ndim = 3', "dim: is 3, but there are 2 columns"),
        ('"age"]', '"age"]\ndim = 0', "dim: must be greater than 0"),
        ("group =", "shuffle_rows = 0\ngroup =", "shuffle_rows: must be greater than 0"),
        ("group =", "max_bad_rows = -1\ngroup =", "max_bad_rows: must be at least 0"),
        ("", "[split]\nseed = 3", "data.split.by: required key is missing"),
        (
            "",
            "[split]\nby = 'hash'\nvalidation = 0.5\ntest = 0.5",
            "validation + test: must be below 1",
        ),
        ("", "[split]\nby = 'hash'\nvalidation = 0", "validation: must be greater than 0"),
        ('shared_with = "item"', 'shared_with = "thing"', "'thing' is not an id feature"),
        ('shared_with = "item"', 'shared_with = "quality"', "'quality' is not an id feature"),
        ('shared_with = "item"', "", "needs either encoding or shared_with"),
        ('name = "quality"', 'name = "item"', "features: the name 'item' is used twice"),
        ('name = "like"', 'name = "click"', "labels: the name 'click' is used twice"),
        ('kind = "duration"', 'kind = "time"', 'labels[dwell].kind: must be "binary"'),
        ('name = "quality"', "", "data.features[3].name: required key is missing"),
        ('"age"]', '"age"]\nclip = [2, 1]', "clip: must be [low, high] with low < high"),
        ('"age"]', '"age"]\nmissing_indicator = true', 'missing_indicator: needs missing = "fill"'),
        ('"age"]', '"age"]\nscaling = "logs"', 'or "none"; did you mean "log"?'),
        ('kind = "duration"', 'kind = "duration"\npositive = [1]', "positive: only binary labels"),
        ('files = ["rows.*"]', "", "files: required, unless the split is by file"),
        ('side = "user"', 'side = "left"', 'side: must be "user" or "candidate"'),
        ('kind = "dense"', 'kind = "text"', 'kind: must be "dense", "id"'),
        ('name = "quality"', 'name = "our quality"', "name: must have 1 to 64"),
        ('name = "like"', 'name = "../like"', "name: must have 1 to 64"),
        ("group =", "groups = 1\ngroup =", 'unknown key "groups" in [data]; did you mean "group"?'),
    ],
)
def test_invalid_schema_is_reported_in_one_line(tmp_path, old, new, message):
    path = folder(tmp_path, schema=(old, new))
    with pytest.raises(experiment.ExperimentInvalid) as caught:
        experiment.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"like"\nkind',
            '"love"\nkind',
            'the data has no binary label "love" (labels: click (binary)',
        ),
        ('"like"\nkind = "binary"', '"like"\nkind = "duration"', 'no duration label "like"'),
        ('space = "click"', 'space = "dwell"', 'the data has no binary label "dwell"'),
        ('"schema.toml"', '"absent.toml"', "absent.toml: No such file"),
        (
            'space = "click"',
            'space = "click"\nbehaviour_weights = { love = 1.0 }',
            'tasks.like.behaviour_weights: the data has no label "love"',
        ),
        (
            'space = "click"',
            'space = "click"\nbehaviour_weights = { dwell = -1.0 }',
            "behaviour_weights.dwell: must be at least 0",
        ),
    ],
)
def test_experiment_that_does_not_fit_its_schema_is_refused(tmp_path, old, new, message):
    path = folder(tmp_path, tasks=(old, new))
    with pytest.raises(experiment.ExperimentInvalid) as caught:
        experiment.read(path)
    assert message in str(caught.value)


def test_files_lie_beside_the_schema_that_names_them(tmp_path):
    folder(tmp_path / "data")
    (tmp_path / "shop.toml").write_text(
        (tmp_path / "data" / "shop.toml").read_text().replace('"schema.toml"', '"data/schema.toml"')
    )
    settings = experiment.read(tmp_path / "shop.toml")
    assert isinstance(settings.data, FilesConfig)
    assert settings.data.path("rows.parquet") == tmp_path / "data" / "rows.parquet"
    (tmp_path / "other.toml").write_text('extends = "data/shop.toml"\nname = "other"')
    extended = experiment.read(tmp_path / "other.toml")
    assert extended.data == settings.data


def test_the_experiment_overrides_its_schema(tmp_path):
    path = folder(tmp_path, tasks=('"schema.toml"', '"schema.toml"\nmax_bad_rows = 7'))
    settings = experiment.read(path)
    assert isinstance(settings.data, FilesConfig)
    assert settings.data.max_bad_rows == 7


def test_experiment_survives_its_trip_through_the_manifest(tmp_path):
    settings = experiment.read(folder(tmp_path))
    dumped = settings.model_dump(mode="json")
    assert experiment.Experiment.model_validate(dumped) == settings
