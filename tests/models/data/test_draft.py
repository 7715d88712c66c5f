"""A drafted schema can be used as it is, and says what each column was taken for."""

import tomllib
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from models import __main__ as cli, data
from models.data.schema import FilesConfig
from tests.models import impressions
from tests.models.impressions import columns


def drafted(path):
    return tomllib.loads(data.draft_schema(path))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.parquet"
    kept = {name: column for name, column in columns().items() if name != "request"}
    kept["request_id"] = columns()["request"]
    kept["wage per hour"] = [row * 1.5 if row % 3 else None for row in range(len(kept["user"]))]
    parquet.write_table(pa.table(kept), path)
    return path


def test_every_column_has_one_entry(table):
    schema = drafted(table)
    features = {feature["name"]: feature for feature in schema["features"]}
    assert schema["group"] == "request_id"
    assert [label["name"] for label in schema["labels"]] == ["click", "like"]
    assert {name: feature["kind"] for name, feature in features.items()} == {
        "user": "id",
        "recent": "id_list",
        "item": "id",
        "price": "dense",
        "age": "id",  # fewer than 50 integers
        "dwell": "dense",
        "wage_per_hour": "dense",
    }
    assert features["user"]["side"] == "user"
    assert features["item"]["encoding"]["ids"] == "string"
    assert features["age"]["encoding"]["ids"] == "int64"
    assert features["wage_per_hour"]["columns"] == ["wage per hour"]


def test_draft_reads_its_own_table(table):
    config = FilesConfig.model_validate({"folder": str(table.parent)} | drafted(table))
    data.make_vocabularies(config)
    splits = data.generate(config)
    assert splits.train.rows + splits.validation.rows + splits.test.rows == len(columns()["click"])


def test_text_is_drafted_by_its_values(tmp_path):
    path = tmp_path / "people.tsv"
    path.write_text("name\tbought\tscore\nanna\tyes\t1.5\nb\u00f6rn\tno\tNA\n")
    schema = drafted(path)
    assert [label["name"] for label in schema["labels"]] == ["bought"]
    assert {feature["name"]: feature["kind"] for feature in schema["features"]} == {
        "name": "id",
        "score": "dense",
    }
    assert "group" not in schema


def test_table_without_a_label_says_how_to_add_one(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('a,"b ""quoted"" name"\n1.5,x\n2.5,y\n')
    text = data.draft_schema(path)
    assert "# No label was found" in text
    assert tomllib.loads(text)["features"][1]["column"] == 'b "quoted" name'


def test_schema_command_prints_the_draft(table, capsys):
    assert cli.main(["schema", str(table)]) == 0
    assert capsys.readouterr().out == data.draft_schema(table)
    assert cli.main(["schema", str(table.parent / "absent.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_schema_of_csv_is_that_of_parquet_except_for_lists(tmp_path):
    impressions.write_csv(tmp_path / "rows.csv", impressions.table())
    parquet.write_table(impressions.table(), tmp_path / "rows.parquet")
    a, b = (drafted(tmp_path / f"rows.{ending}") for ending in ("csv", "parquet"))
    kinds = [[(f["name"], f["kind"]) for f in schema["features"]] for schema in (a, b)]
    assert [pair for pair in kinds[0] if pair[0] != "recent"] == [
        pair for pair in kinds[1] if pair[0] != "recent"
    ]


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


PANDAS = """;user id;clip id;price;watched at;tags;genres;code;bought?
0;9.0;3.0;5,75;2024-01-31 10:00;4.0 30.0;a|b;007;yes
1;;4.0;6;2024-02-01 11:00;;b;012;no
2;7.0;;-7,25;2024-02-01 12:00;29.0;a|c d;007;yes
"""


def test_table_that_pandas_wrote_is_understood(tmp_path):
    path = written(tmp_path / "rows.csv", PANDAS)
    text = data.draft_schema(path)
    schema = tomllib.loads(text)
    features = {feature["name"]: feature for feature in schema["features"]}
    assert schema["decimal"] == ","
    assert [label["column"] for label in schema["labels"]] == ["bought?"]
    assert {name: feature["kind"] for name, feature in features.items()} == {
        "user_id": "id",
        "clip_id": "id",
        "price": "dense",
        "tags": "id_list",
        "genres": "id_list",
        "code": "id",
    }
    ids = {
        name: feature["encoding"]["ids"] for name, feature in features.items() if name != "price"
    }
    assert ids == {
        "user_id": "int64",
        "clip_id": "int64",
        "tags": "int64",
        "genres": "string",
        "code": "string",  # 007 is not 7
    }
    assert features["genres"]["separator"] == "|"
    assert '# "" numbers the rows.' in text
    assert '# "watched at" has dates, such as 2024-01-31 10:00: make hour' in text


def test_text_file_without_a_header_gets_names(tmp_path):
    path = written(tmp_path / "rows.txt", "1\t5\t68fd1e64\n0\t\t68fd1e64\n0\t7\t80e26c9b\n")
    schema = drafted(path)
    assert schema["header"] == ["column_1", "column_2", "column_3"]
    assert [label["name"] for label in schema["labels"]] == ["column_1"]
    assert schema["features"][1]["encoding"]["ids"] == "string"
    with pytest.raises(data.DataInvalid, match=r"two columns have the same name, '5'; if it has"):
        data.generate(
            FilesConfig.model_validate(
                {
                    "files": [written(tmp_path / "b.csv", "5,5\n1,2\n").name],
                    "folder": str(tmp_path),
                    "features": [{"name": "a", "kind": "dense", "side": "user"}],
                    "labels": [{"name": "b", "kind": "binary"}],
                }
            )
        )


def test_columns_of_parquet_that_are_no_features_are_named(tmp_path):
    path = tmp_path / "rows.parquet"
    moments = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    parquet.write_table(
        pa.table(
            {
                "ts": moments,
                "day": [moment.date() for moment in moments],
                "embedding": [[0.5, 1.0], None, [2.0, 3.5]],
                "country": pa.array(["de", "fr", "de"]).dictionary_encode(),
                "click": [True, False, None],
            }
        ),
        path,
    )
    text = data.draft_schema(path)
    features = {feature["name"]: feature for feature in tomllib.loads(text)["features"]}
    assert list(features) == ["embedding", "country"]
    assert (features["embedding"]["kind"], features["embedding"]["dim"]) == ("dense", 2)
    assert features["country"]["encoding"]["ids"] == "string"
    assert '# "ts" has dates' in text
    assert '# "day" has dates' in text
