"""Census-Income: the raw files, in a folder or in any archive, become three tables and a schema."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

from models import __main__ as cli, data
from models.data import census_income
from models.training import experiment
from tests import REPOSITORY

SAMPLE = Path(__file__).parent / "census_income"
CONFIGS = [
    REPOSITORY / "models" / "configs" / "census_income" / f"{name}.toml"
    for name in ("mmoe", "single_task", "shared_bottom", "moe", "cgc", "ple")
]
ROWS = {"train": 160, "validation": 40, "test": 40}


def nested_archive(path):
    """A zip with a tar inside, like the archive of UCI."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for file in SAMPLE.glob("census-income.*"):
            tar.add(file, f"deep/{file.name}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("census.tar.gz", inner.getvalue())
        archive.writestr("index.txt", "")
    return path


@pytest.fixture(autouse=True)
def ids_of_a_small_sample(tmp_path, monkeypatch):
    """In the sample, few ids occur as often as `min_count` of the schema."""
    schema = tmp_path / "schema.toml"
    schema.write_text(census_income.SCHEMA.read_text().replace("min_count = 10", "min_count = 1"))
    monkeypatch.setattr(census_income, "SCHEMA", schema)


@pytest.fixture
def folder(tmp_path):
    """The tables of the sample, and the configurations that read them."""
    shutil.copytree(CONFIGS[0].parent, tmp_path / "models" / "configs" / "census_income")
    out = tmp_path / "data" / "census-income"
    assert data.fetch("census-income", out, SAMPLE) == ROWS
    return tmp_path


def test_archives_and_folders_give_the_same_tables(tmp_path):
    archive = nested_archive(tmp_path / "census.zip")
    for name, source in (("a", SAMPLE), ("b", archive)):
        assert data.fetch("census-income", tmp_path / name, source) == ROWS
    for table in ROWS:
        one, other = (parquet.read_table(tmp_path / name / f"{table}.parquet") for name in "ab")
        assert one.equals(other)


def test_tables_hold_every_row_and_field_once(folder):
    tables = {
        name: parquet.read_table(folder / "data" / "census-income" / f"{name}.parquet")
        for name in ROWS
    }
    raw = [line.split(",") for line in (SAMPLE / "census-income.data").read_text().splitlines()]
    first = {name: str(tables["train"][name][0].as_py()) for name in census_income.COLUMNS}
    for (name, value), field in zip(first.items(), raw[0], strict=True):
        expected = field.strip()
        assert value == expected or float(value) == float(expected), name
    held_out = [tables[name].select(["age", "instance_weight"]) for name in ("validation", "test")]
    weights = np.concatenate([part["instance_weight"].to_numpy() for part in held_out])
    lines = (SAMPLE / "census-income.test").read_text().splitlines()
    assert sorted(weights) == sorted(float(line.split(",")[24]) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmoe", "ple"])
def test_configuration_trains_on_the_tables(folder, name, capsys):
    config = folder / "models" / "configs" / "census_income" / f"{name}.toml"
    status = cli.main(["train", "--config", str(config), "--store", str(folder / "store")])
    assert status == 0
    assert "published census-income/1" in capsys.readouterr().out.replace("\n", " ")


def test_labels_and_inputs_follow_the_papers(folder):
    config = folder / "models" / "configs" / "census_income" / "mmoe.toml"
    settings = experiment.read(config)
    splits = data.generate(settings.data, settings.tasks)
    raw = (SAMPLE / "census-income.data").read_text()
    names = {feature.name for feature in settings.features}
    batch = next(iter(splits.train.batches(1000)))
    assert batch.requests == batch.rows == ROWS["train"]  # every row is a request
    assert int(batch.labels["income"].sum()) == raw.count("50000+.")
    assert int(batch.labels["never_married"].sum()) == raw.count("Never married")
    assert not {"education", "marital_status", "instance_weight", "income"} & names
    assert len(names) == 42 - 4 + 1  # a number is an id too, and all numbers are one dense feature


def test_every_configuration_differs_in_the_network_only(folder):
    first, *others = (experiment.read(folder / path.relative_to(REPOSITORY)) for path in CONFIGS)
    for other in others:
        assert other.model_copy(update={"network": first.network}) == first


def test_fetch_command_prints_what_it_wrote(tmp_path, capsys):
    status = cli.main(
        ["fetch", "census-income", "--source", str(SAMPLE), "--out", str(tmp_path / "out")]
    )
    assert status == 0
    assert f"{tmp_path / 'out' / 'train'}.parquet: 160 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        ({}, "the source contains no file named census-income.data or census_income_1994"),
        ({"census-income.data": "1, 2\n", "census-income.test": ""}, "census-income.data: "),
    ],
)
def test_source_without_the_raw_files_is_refused(tmp_path, capsys, content, message):
    source = tmp_path / "source"
    if content is not None:
        source.mkdir()
        for name, text in content.items():
            (source / name).write_text(text)
    status = cli.main(
        ["fetch", "census-income", "--source", str(source), "--out", str(tmp_path / "out")]
    )
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


def test_failed_download_names_the_way_without_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(census_income, "URL", (tmp_path / "absent.zip").as_uri())
    status = cli.main(["fetch", "census-income", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert status == 1
    assert error.endswith("download it yourself and use --source FILE\n")
    assert not list((tmp_path / "out").glob("*.zip"))


def test_download_is_kept_for_the_next_time(tmp_path, monkeypatch):
    archive = nested_archive(tmp_path / "census.zip")
    monkeypatch.setattr(census_income, "URL", archive.as_uri())
    with pytest.raises(data.DataInvalid, match="has 160 training and 80 test rows, expected 199"):
        data.fetch("census-income", tmp_path / "out")
    monkeypatch.setattr(census_income, "ROWS", (160, 80))
    assert data.fetch("census-income", tmp_path / "out") == ROWS
    archive.unlink()
    assert data.fetch("census-income", tmp_path / "out") == ROWS
