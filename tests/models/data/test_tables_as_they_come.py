"""Tables as people have them: delimiters, compression, missing values, labels in words."""

import gzip
import math
import subprocess
import sys

import numpy as np
import pyarrow.csv
import pytest
import torch

from models import data
from models.data import scan
from models.data.dataset import ROW_WEIGHT, joined
from models.data.schema import FilesConfig
from models.networks.config import DenseFeature
from models.training import experiment
from models.training.losses import task_losses
from tests import REPOSITORY
from tests.models import impressions
from tests.models.impressions import CANDIDATES, REQUESTS, columns, folder, read

ROWS = REQUESTS * CANDIDATES
SIMPLE = """
files = ["rows.*"]
[split]
by = "hash"
seed = 3
[[features]]
name = "item"
kind = "id"
side = "candidate"
encoding = { kind = "hash", ids = "int64", buckets = 50 }
[[features]]
name = "price"
kind = "dense"
side = "candidate"
[[labels]]
name = "click"
kind = "binary"
"""
EXPERIMENT = impressions.EXPERIMENT.replace(
    '[[tasks]]\nname = "like"\nkind = "binary"\nsample_space = "click"\n', ""
).replace(", like = 1.0", "")


def simple(tmp_path, text, *, name="rows.csv", schema=SIMPLE):
    """The experiment of a table with the columns item, price and click, and no group."""
    (tmp_path / "schema.toml").write_text(schema)
    (tmp_path / "shop.toml").write_text(EXPERIMENT)
    if isinstance(text, str):
        text = text.encode()
    (tmp_path / name).write_bytes(text)
    settings = experiment.read(tmp_path / "shop.toml")
    return settings, data.generate(settings.data, settings.tasks)


def lines(rows=200, delimiter=",", header="item,price,click", labels=(0, 1)):
    body = [f"{row % 9},{row / 10},{labels[row % 3 == 0]}" for row in range(rows)]
    return "\n".join([*([header] if header else []), *body, ""]).replace(",", delimiter)


def everything(splits):
    return joined([*splits.train.batches(10**6), splits.validation, splits.test])


def by_price(dataset):
    """Rows as (item, price, click), sorted."""
    item, price = dataset.candidate["item"], dataset.candidate["price"][:, 0]
    rows = zip(item.tolist(), price.tolist(), dataset.labels["click"].tolist(), strict=True)
    return sorted(map(repr, rows))


def test_without_a_group_column_every_row_is_a_request(tmp_path):
    _, splits = simple(tmp_path, lines())
    whole = everything(splits)
    assert whole.requests == whole.rows == 200
    assert 0 < splits.validation.rows < 60
    again = everything(simple(tmp_path, lines())[1])
    assert torch.equal(again.users, whole.users)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.tsv", lines(delimiter="\t")),
        ("rows.csv", lines(delimiter=";")),
        ("rows.txt", lines(delimiter="|")),
        ("rows.csv.gz", gzip.compress(lines().encode())),
        ("rows.csv", "\ufeff" + lines()),
        ("rows.csv", lines() + "\n\n  \n"),
        ("rows.csv", lines().replace("\n", "\r\n")),
        ("rows.csv", lines().rstrip("\n")),
    ],
)
def test_text_files_of_every_kind_hold_the_same_rows(tmp_path, name, content):
    expected = by_price(everything(simple(tmp_path, lines())[1]))
    (tmp_path / "rows.csv").unlink()
    assert by_price(everything(simple(tmp_path, content, name=name)[1])) == expected


def test_header_and_delimiter_can_be_given(tmp_path):
    schema = 'header = ["item", "price", "click"]\ndelimiter = "~"\n' + SIMPLE
    expected = by_price(everything(simple(tmp_path, lines())[1]))
    text = lines(header="", delimiter="~")
    assert by_price(everything(simple(tmp_path, text, schema=schema)[1])) == expected


def test_blocks_of_a_text_file_are_joined_without_loss(tmp_path, monkeypatch):
    expected = by_price(everything(simple(tmp_path, lines())[1]))
    monkeypatch.setattr("models.data.files.READ_BYTES", 37)
    assert by_price(everything(simple(tmp_path, lines())[1])) == expected


def test_line_numbers_count_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("models.data.files.READ_BYTES", 64)
    text = lines().splitlines()
    text[50] = ""
    text[100] = "7,cheap,1"
    with pytest.raises(data.DataInvalid, match=r"line 101: column 'price' is not a finite number"):
        simple(tmp_path, "\n".join(text))


@pytest.mark.parametrize("word", ["", "NA", "NaN", "null", "None", "?", " n/a "])
def test_missing_number_is_filled_by_the_network(tmp_path, word):
    text = lines().splitlines()
    text[1] = f"7,{word},1"
    settings, splits = simple(tmp_path, "\n".join(text))
    price = everything(splits).candidate["price"]
    (feature,) = [feature for feature in settings.features if isinstance(feature, DenseFeature)]
    assert int(price.isnan().sum()) == 1
    assert feature.fills_missing
    assert feature.scaling == "auto"


def test_scaling_is_fitted_on_training_rows(tmp_path):
    _, splits = simple(tmp_path, lines())
    train = joined(list(splits.train.batches(1000)))
    sample = splits.dense_sample["price"]
    assert sorted(sample.flatten().tolist()) == sorted(train.candidate["price"].flatten().tolist())


def test_sample_for_the_scaling_is_uniform_and_bounded(monkeypatch):
    monkeypatch.setattr(scan, "SAMPLE_ROWS", 1000)
    sample = scan._Sample()
    for first in range(0, 10_000, 500):
        sample.add({"x": torch.arange(first, first + 500).float().view(-1, 1)})
    values = sample.columns["x"]
    assert len(values) == len(values.unique()) == 1000
    assert float(values.mean()) == pytest.approx(5000, abs=300)


def test_whole_floats_are_ids_and_fractions_are_refused(tmp_path):
    text = lines().splitlines()
    expected = by_price(everything(simple(tmp_path, "\n".join(text))[1]))
    floats = [text[0]] + [line.replace(",", ".0,", 1) for line in text[1:]]
    assert by_price(everything(simple(tmp_path, "\n".join(floats))[1])) == expected
    floats[3] = floats[3].replace(".0,", ".7,", 1)
    with pytest.raises(data.DataInvalid, match="line 4: feature 'item' is not an integer id"):
        simple(tmp_path, "\n".join(floats))


def test_float_column_of_parquet_holds_ids_and_missing_ids(tmp_path):
    encoding = 'encoding = { kind = "vocabulary", file = "items.jsonl" }'
    item = [float(row % 5) if row % 7 else math.nan for row in range(ROWS)]
    splits = data.generate(
        read(
            tmp_path,
            schema=(encoding, 'encoding = { kind = "identity", vocabulary_size = 5 }'),
            item=item,
            recent=[[1]] * ROWS,
        ).data
    )
    found = everything(splits).candidate["item"]
    assert sorted(found.tolist()) == sorted(
        0 if math.isnan(value) else int(value) for value in item
    )


@pytest.mark.parametrize(
    "labels", [("no", "yes"), ("False", "TRUE"), ("-1", "1"), ("0.0", "1.0"), ("f", "T")]
)
def test_binary_labels_may_be_words_or_signs(tmp_path, labels):
    expected = by_price(everything(simple(tmp_path, lines())[1]))
    assert by_price(everything(simple(tmp_path, lines(labels=labels))[1])) == expected


def test_positive_values_of_a_label_can_be_listed(tmp_path):
    schema = SIMPLE + 'positive = ["buy", "rent"]\n'
    text = lines(labels=("look", "buy")).replace("buy", "rent", 5)
    expected = by_price(everything(simple(tmp_path, lines())[1]))
    assert by_price(everything(simple(tmp_path, text, schema=schema)[1])) == expected


def test_json_lists_of_text_are_read_as_lists(tmp_path):
    bars = everything(data.generate(read(tmp_path / "a").data))
    path = folder(tmp_path / "b")
    (tmp_path / "b" / "rows.parquet").unlink()
    table = impressions.table()
    recent = [str(ids).replace("'", '"') for ids in columns()["recent"]]
    place = table.column_names.index("recent")
    pyarrow.csv.write_csv(table.set_column(place, "recent", [recent]), tmp_path / "b" / "rows.csv")
    read_back = everything(data.generate(experiment.read(path).data))
    assert torch.equal(read_back.user["recent"].sort(0).values, bars.user["recent"].sort(0).values)


def test_scattered_rows_of_a_request_are_reported(tmp_path):
    order = np.arange(ROWS).reshape(REQUESTS, CANDIDATES).T.flatten()
    shuffled = {name: [column[row] for row in order] for name, column in columns().items()}
    notes = data.generate(read(tmp_path, **shuffled).data).notes
    assert notes == (
        "column 'request': the rows of some requests are not adjacent, so that they are split "
        "into 180 requests more; sort the table by it",
    )
    assert data.generate(read(tmp_path / "sorted").data).notes == ()


def test_row_weight_is_that_of_the_training_loss(tmp_path):
    weight = [float(row % 3) for row in range(ROWS)]
    settings = read(tmp_path, schema=("group =", 'weight = "weight"\ngroup ='), weight=weight)
    batch = everything(data.generate(settings.data))
    assert sorted(batch.labels[ROW_WEIGHT].tolist()) == sorted(weight)
    task = settings.tasks[:1]
    outputs = torch.randn(ROWS, 1)
    labels = {name: batch.labels[name] for name in ("click", ROW_WEIGHT)}
    repeated = torch.repeat_interleave(torch.arange(ROWS), labels[ROW_WEIGHT].long())
    expected = task_losses(
        outputs[repeated], {"click": labels["click"][repeated]}, task, [task[0].link]
    )
    torch.testing.assert_close(task_losses(outputs, labels, task, [task[0].link]), expected)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_invalid_row_weight_is_refused(tmp_path, wrong):
    weight = [wrong] + [1.0] * (ROWS - 1)
    settings = read(tmp_path, schema=("group =", 'weight = "weight"\ngroup ='), weight=weight)
    with pytest.raises(data.DataInvalid, match=r"row 0: column 'weight' \(weight\) is not"):
        data.generate(settings.data)


def test_small_training_set_is_read_once(tmp_path):
    settings = read(tmp_path)
    assert isinstance(settings.data, FilesConfig)
    streamed = data.generate(settings.data.model_copy(update={"shuffle_rows": 20}))
    in_memory = data.generate(settings.data)
    (tmp_path / "rows.parquet").unlink()
    rows = joined(list(in_memory.train.batches(10)))
    assert rows.rows == in_memory.train.rows == streamed.train.rows
    with pytest.raises(data.DataInvalid):
        list(streamed.train.batches(10))


@pytest.mark.slow
def test_wrong_delimiter_ends_every_process_with_status_2(tmp_path):
    folder(tmp_path)
    (tmp_path / "rows.parquet").unlink()
    impressions.write_csv(tmp_path / "rows.csv", impressions.table())
    text = (tmp_path / "rows.csv").read_text().replace(",", ";")
    (tmp_path / "rows.csv").write_text(text)
    schema = (tmp_path / "schema.toml").read_text()
    (tmp_path / "schema.toml").write_text('delimiter = ","\n' + schema)
    command = [sys.executable, "-m", "models", "train", "--config", str(tmp_path / "shop.toml")]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert 'no column "' in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_decimal_comma_is_read_if_the_schema_says_so(tmp_path):
    text = "item;price;click\n" + "".join(f"{i % 9};{i},5;{i % 2}\n" for i in range(200))
    _, splits = simple(tmp_path, text, schema='decimal = ","\n' + SIMPLE)
    prices = everything(splits).candidate["price"][:, 0]
    assert sorted(prices.tolist()) == [i + 0.5 for i in range(200)]
    with pytest.raises(data.DataInvalid, match=r'decimal comma need decimal = ","'):
        simple(tmp_path, text)


@pytest.mark.parametrize("date", ["2024-01-31 10:00", "31.1.2024", "1/31/24", "2024-01-31T10:00"])
def test_date_in_place_of_a_number_says_what_to_do(tmp_path, date):
    text = "item,price,click\n" + f'1,"{date}",0\n2,"{date}",1\n' * 100
    with pytest.raises(data.DataInvalid) as caught:
        simple(tmp_path, text)
    assert "line 2: column 'price' is not a finite number; dates are no features: make hour" in str(
        caught.value
    )


def test_date_column_of_parquet_says_what_to_do(tmp_path):
    days = [np.datetime64("2024-01-01") + day for day in range(ROWS)]
    with pytest.raises(data.DataInvalid) as caught:
        data.generate(read(tmp_path, price=np.array(days)).data)
    assert 'column "price" is date32[day], feature "quality" needs numbers; dates are no' in str(
        caught.value
    )


def test_null_in_place_of_a_vector_is_missing_in_every_column(tmp_path):
    vectors = [None if row % 5 == 0 else [0.5, row] for row in range(ROWS)]
    schema = ('columns = ["price", "age"]\nmissing = "refuse"', 'columns = ["price"]\ndim = 2')
    splits = data.generate(read(tmp_path, schema=schema, price=vectors).data)
    quality = everything(splits).candidate["quality"]
    assert torch.isnan(quality).all(1).sum() == torch.isnan(quality).any(1).sum() == ROWS / 5
    refused = (schema[0], schema[1] + '\nmissing = "refuse"')
    with pytest.raises(data.DataInvalid, match="column 'price' is not a list of 2 finite numbers"):
        data.generate(read(tmp_path, schema=refused, price=vectors).data)
