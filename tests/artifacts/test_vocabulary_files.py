"""Vocabulary files are read whole or refused with the line, and are served with the model."""

import json

import numpy as np
import pytest

from app.api.examples import example_request
from app.artifacts.encoding import Hashed, Listed, read_vocabulary, write_vocabulary
from app.artifacts.inputs import IdInput, IdListInput, Input
from app.artifacts.loader import load
from app.artifacts.publish import publish
from app.artifacts.store import Artifact, Store
from app.errors import ArtifactInvalid
from app.protocol.dialect import ParseContext
from app.protocol.native import read_request
from tests.support.builders import (
    CPU,
    INPUTS,
    Request,
    batch,
    description,
    own_policies,
    scripted,
)

FILE = "vocabulary.item.jsonl"
BRANDS = [f"brand-{i}" for i in range(9)]
CONTENT = write_vocabulary(BRANDS)
RECENT = IdListInput(
    name="recent", side="user", vocabulary_size=10, max_length=3, encoding=Listed(file=FILE)
)
ITEM = IdInput(name="item", side="candidate", vocabulary_size=10, encoding=Listed(file=FILE))
NAMED: tuple[Input, ...] = (INPUTS[0], RECENT, ITEM, INPUTS[3])


def published(folder, inputs=NAMED, content=CONTENT) -> Artifact:
    described = description(inputs=inputs)
    files = dict.fromkeys(described.vocabulary_files, content)
    return publish(Store(folder), described, scripted(Request()), batch(inputs), files)


@pytest.mark.parametrize("ids", [[], ["a"], ["a\nb", '"', "é", "0"], [0, -5, 2**63 - 1]])
def test_a_written_vocabulary_reads_back_the_same(ids):
    id_type = type(ids[0]) if ids else str
    assert read_vocabulary(write_vocabulary(ids), id_type) == {
        identifier: row for row, identifier in enumerate(ids, 1)
    }


@pytest.mark.parametrize(
    ("content", "id_type", "message"),
    [
        (b'"a"\n7\n', str, "line 2 is not a non-empty JSON string"),
        (b'"a"\n\n"b"\n', str, "line 2 is not a non-empty JSON string"),
        (b'"a"\n"b"\n"a"\n', str, "line 3 repeats line 1"),
        (b'""\n', str, "line 1 is not a non-empty JSON string"),
        (b"true\n", int, "line 1 is not an integer"),
        (b"1\n1.0\n", int, "line 2 is not an integer"),
        (b"plain\n", str, "line 1 is not a non-empty JSON string"),
        (b'"\xff"\n', str, "line 1 is not a non-empty JSON string"),
    ],
)
def test_a_wrong_line_is_named(content, id_type, message):
    with pytest.raises(ValueError, match=message):
        read_vocabulary(content, id_type)


def test_a_model_is_served_with_its_vocabulary(tmp_path):
    model = load(published(tmp_path), CPU)
    assert set(model.vocabularies) == {"recent", "item"}
    assert model.vocabularies["item"]["brand-0"] == 1
    assert model.vocabularies["item"] is model.vocabularies["recent"]


def test_the_example_shows_strings_that_give_the_golden_columns(tmp_path):
    model = load(published(tmp_path), CPU)
    sent = json.loads(json.dumps(example_request(model)))
    assert {type(item) for item in sent["candidates"]["item"]} == {str}
    context = ParseContext(model, own_policies(model.manifest), {}, max_candidates=9)
    features, _, _ = read_request(sent, context)
    golden = model.golden.batch
    np.testing.assert_array_equal(features.user["recent"], golden.user["recent"][:1])
    np.testing.assert_array_equal(features.candidate["item"], golden.candidate["item"][:3])


@pytest.mark.parametrize("ids", ["string", "int64"])
def test_the_example_of_a_hashed_model_is_accepted(tmp_path, ids):
    hashed = ITEM.model_copy(update={"encoding": Hashed(ids=ids, buckets=9)})
    model = load(published(tmp_path, (*INPUTS[:2], hashed, INPUTS[3])), CPU)
    sent = json.loads(json.dumps(example_request(model)))
    context = ParseContext(model, own_policies(model.manifest), {}, max_candidates=9)
    features, _, _ = read_request(sent, context)
    assert features.unknown_ids == {}
    assert {type(item) for item in sent["candidates"]["item"]} == {str if ids == "string" else int}


def test_a_changed_vocabulary_is_refused(tmp_path):
    artifact = published(tmp_path)
    path = artifact.folder / FILE
    path.write_bytes(path.read_bytes().replace(b"brand-3", b"brand-x"))
    with pytest.raises(ArtifactInvalid, match="its SHA-256 differs"):
        load(artifact, CPU)


def test_a_missing_vocabulary_is_refused(tmp_path):
    artifact = published(tmp_path)
    (artifact.folder / FILE).unlink()
    with pytest.raises(ArtifactInvalid, match=f"{FILE}: is missing"):
        load(artifact, CPU)


def test_a_manifest_must_list_the_file_that_an_encoding_names(tmp_path):
    artifact = published(tmp_path)
    path = artifact.folder / "model.json"
    document = json.loads(path.read_text())
    del document["files"][FILE]
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactInvalid, match=f"files: {FILE} is missing"):
        load(artifact, CPU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (write_vocabulary([str(i) for i in range(10)]), "has 10 ids, but recent has room for 9"),
        (b"x", f"{FILE}: line 1 is not a non-empty JSON string"),
    ],
)
def test_a_wrong_vocabulary_is_not_published(tmp_path, content, message):
    with pytest.raises(ArtifactInvalid, match=message):
        published(tmp_path, content=content)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_vocabulary_is_not_published(tmp_path):
    described = description(inputs=NAMED)
    with pytest.raises(ArtifactInvalid, match=f"{FILE}: is missing"):
        publish(Store(tmp_path), described, scripted(Request()), batch(NAMED))


def test_a_default_that_would_be_rejected_is_not_published(tmp_path):
    strict = ITEM.model_copy(update={"unknown": "reject", "default": "brand-99"})
    with pytest.raises(ArtifactInvalid, match="the default of item is missing"):
        published(tmp_path, (*NAMED[:2], strict, NAMED[3]))
