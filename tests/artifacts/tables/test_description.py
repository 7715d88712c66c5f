"""Which versions of a model a table fits."""

from datetime import UTC, datetime

import numpy as np
import pytest

from app.artifacts.encoding import Hashed, Listed
from app.artifacts.inputs import DenseInput, IdInput, IdListInput, Input
from app.artifacts.manifest import FileDigest
from app.artifacts.tables.compatibility import incompatibilities
from app.artifacts.tables.description import TableColumn, TableDescription, TableKey, record_dtype
from tests.support.builders import manifest

USER = DenseInput(name="age", side="user")
BRAND = Listed(file="vocabulary.brand.jsonl")
INPUTS = (
    USER,
    IdInput(name="item", side="candidate", vocabulary_size=100, default=3),
    DenseInput(name="price", side="candidate", dim=2),
    IdInput(name="brand", side="candidate", vocabulary_size=9, encoding=BRAND),
)


def model(*inputs, digest="a" * 64):
    made = manifest(inputs=(USER, *inputs))
    files = {
        name: FileDigest(sha256=digest, size=0) if "vocabulary" in name else file
        for name, file in made.files.items()
    }
    return made.model_copy(update={"files": files})


def table(*features, key=("item", "int64"), **changes):
    columns = tuple(
        TableColumn(feature=feature, vocabulary="a" * 64 if feature.name == "brand" else None)
        for feature in features
    )
    fields = {
        "kind": "items",
        "model": "feed",
        "version": 1,
        "id": "0" * 32,
        "key": TableKey(name=key[0], type=key[1]),
        "rows": 0,
        "bits": 1,
        "seed": 0,
        "columns": columns,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return TableDescription.model_construct(
        **{name: field.default for name, field in TableDescription.model_fields.items()}
        | fields
        | changes
    )


def test_a_table_fits_the_manifest_that_it_was_made_with():
    assert incompatibilities(table(*INPUTS[1:]), model(*INPUTS[1:])) == []
    more = DenseInput(name="extra", side="candidate", default=(0.0,))
    assert incompatibilities(table(*INPUTS[1:]), model(*INPUTS[1:], more)) == []
    assert incompatibilities(table(*INPUTS[1:], more), model(*INPUTS[1:])) == []


def test_a_key_need_not_be_a_feature():
    assert incompatibilities(table(INPUTS[2], key=("sku", "string")), model(INPUTS[2])) == []
    assert incompatibilities(table(INPUTS[2], key=("age", "string")), model(INPUTS[2])) == [
        'key "age": is a feature of the other side'
    ]
    assert incompatibilities(table(INPUTS[2], key=("price", "int64")), model(INPUTS[2])) == [
        'key "price": is a feature of kind dense; a key is one id'
    ]


def test_a_feature_that_requests_send_may_lack():
    assert incompatibilities(table(INPUTS[1]), model(*INPUTS[1:3])) == [
        'feature "price": is not in the table and has no default'
    ]
    assert incompatibilities(table(INPUTS[1], sent=("price",)), model(*INPUTS[1:3])) == []


def test_every_reason_is_told_at_once():
    price = DenseInput(name="price", side="candidate", dim=3, default=(1, 2, 3))
    brand = IdInput(
        name="brand", side="candidate", vocabulary_size=8, encoding=Hashed(buckets=7), unknown=1
    )
    found = incompatibilities(table(*INPUTS[1:], unknown="default"), model(price, brand))
    assert found[:2] == [
        'feature "price": dim is 3, the table was made with 2',
        'feature "price": default is [1.0,2.0,3.0], the table was made with null',
    ]
    assert [problem for problem in found if "brand" in problem] == [
        'feature "brand": vocabulary_size is 8, the table was made with 9',
        'feature "brand": unknown is 1, the table was made with 0',
        'feature "brand": encoding is {"kind":"hash","ids":"string","buckets":7,"seed":0}, '
        "the table was made with "
        '{"kind":"vocabulary","ids":"string","file":"vocabulary.brand.jsonl"}',
        'feature "brand": has no default, which unknown = default needs',
    ]


def test_lists_that_may_contain_a_reserved_padding_are_told():
    tags = IdListInput(
        name="tags", side="candidate", vocabulary_size=9, max_length=2, padding=0, unknown=1
    )
    problem = (
        'feature "tags": lists of the table may contain 0, the padding, which is no id of this '
        "version: publish the table again"
    )
    measured = tags.measured()
    assert incompatibilities(table(INPUTS[1], tags), model(INPUTS[1], measured)) == [problem]
    assert incompatibilities(table(INPUTS[1], measured), model(INPUTS[1], measured)) == []
    assert incompatibilities(table(INPUTS[1], measured), model(INPUTS[1], tags)) == []
    assert incompatibilities(table(INPUTS[1], tags), model(INPUTS[1], tags)) == []


def test_a_column_of_a_measured_list_is_the_same_when_it_is_read_again():
    tags = IdListInput(
        name="tags", side="candidate", vocabulary_size=9, max_length=2, padding=0, unknown=1
    )
    outside = tags.model_copy(update={"padding": -1})
    for feature in (tags, tags.measured(), outside.measured()):
        column = TableColumn(feature=feature)
        again = TableColumn.model_validate_json(column.model_dump_json())
        assert again == column
        assert isinstance(again.feature, IdListInput)
        assert again.feature.reserves_padding == feature.reserves_padding


def test_another_vocabulary_is_told():
    assert incompatibilities(table(*INPUTS[1:]), model(*INPUTS[1:], digest="b" * 64)) == [
        'feature "brand": the table was made with another vocabulary'
    ]


def test_keys_of_another_type_or_model_are_told():
    strings = IdInput(name="item", side="candidate", vocabulary_size=9, encoding=BRAND)
    assert 'key "item": ids of the model are string, keys of the table are int64' in (
        incompatibilities(table(INPUTS[1]), model(strings))
    )
    assert incompatibilities(table(INPUTS[1], model="other"), model(INPUTS[1])) == [
        'the table is of the model "other"'
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_a_record_holds_ids_before_numbers(order):
    features: list[Input] = [
        DenseInput(name="a", side="user", dim=3),
        IdListInput(name="b", side="user", vocabulary_size=5, max_length=2),
        IdInput(name="c", side="user", vocabulary_size=5),
    ]
    record = record_dtype(features[::order])
    assert record.itemsize == 40
    assert record["a"] == np.dtype(("<f4", (3,)))
    assert record["b"] == np.dtype(("<i8", (2,)))
    assert record["c"] == np.dtype("<i8")
    assert record.fields is not None
    assert record.fields["a"][1] == 24
