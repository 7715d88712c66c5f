"""What is folded has the scores of the features, for every network that is trained here."""

import warnings

import numpy as np
import pytest
import torch

from app.artifacts import loader
from app.artifacts.columns import ModelInputs
from app.artifacts.fold import check_golden, check_rows, check_table, fold_of, fold_records
from app.artifacts.inputs import DenseInput, IdInput, IdListInput
from app.artifacts.loader import load
from app.artifacts.manifest import Manifest
from app.artifacts.model_tables import BoundTable
from app.artifacts.onednn_products import FEWEST_ROWS
from app.artifacts.publish import publish
from app.artifacts.store import Store
from app.artifacts.tables.compatibility import fold_problems
from app.artifacts.tables.description import record_dtype
from app.artifacts.tables.table import open_table
from app.errors import ArtifactInvalid
from models import data
from models.export.export import export
from models.networks.build import build
from models.networks.config import DenseFeature, IdFeature
from models.training import experiment
from tests import TINY_EXPERIMENT
from tests.models.cases import ARCHITECTURES, FEATURES, small, tasks
from tests.support.builders import (
    CPU,
    Folding,
    Request,
    batch,
    description,
    manifest as described,
    published,
    task,
)
from tests.support.model_tables import change_rows, publish_rows, random_rows


def inputs():
    """Return the features of the networks of `tests.models.cases` for a manifest."""
    for feature in FEATURES:
        if isinstance(feature, DenseFeature):
            yield DenseInput(name=feature.name, side=feature.side, dim=feature.dim)
        elif isinstance(feature, IdFeature):
            size = feature.vocabulary_size
            yield IdInput(name=feature.name, side=feature.side, vocabulary_size=size)
        else:
            yield IdListInput(
                name=feature.name,
                side=feature.side,
                vocabulary_size=feature.vocabulary_size,
                max_length=feature.max_length,
            )


def network_artifact(folder, architecture):
    """Publish a network with features of every kind."""
    network = build(small(architecture), FEATURES, tasks(3), seed=1).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(network)
    names = [("click", "sigmoid"), ("like", "sigmoid"), ("dwell", "exp")]
    outputs = tuple(
        task(name, kind="duration" if link == "exp" else "binary", link=link, output={"column": k})
        for k, (name, link) in enumerate(names)
    )
    made = description(
        architecture=architecture,
        inputs=tuple(inputs()),
        tasks=outputs,
        folded_width=network.folded_width,
    )
    return publish(Store(folder), made, scripted, batch(tuple(inputs())))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_rows_of_every_architecture_have_the_same_scores(architecture, tmp_path):
    artifact = network_artifact(tmp_path, architecture)
    model = load(artifact, CPU)
    manifest, program = model.manifest, model.program
    assert check_golden(model) <= 1e-6
    rows = random_rows(manifest, "items", list(range(50)))
    listed = publish_rows(tmp_path, manifest, "items", "key", rows, artifact)
    table = open_table(listed, "feed")
    assert table.fold == fold_of(manifest)
    assert check_table(model, table) <= 1e-6
    positions = table.find(np.arange(50))[::-1]
    records, folded = table.take(positions), table.take_folded(positions)
    users = batch(tuple(inputs()), [25, 25], seed=3)
    columns = {feature.name: records[feature.name].copy() for feature in manifest.candidate_inputs}
    plain = program.run(ModelInputs(users.user, columns, users.row_to_request))
    got = program.run(ModelInputs(users.user, {}, users.row_to_request, folded))
    np.testing.assert_allclose(got, plain, rtol=1e-6, atol=1e-6)
    others = program.run(ModelInputs(users.user, {}, users.row_to_request, folded[::-1].copy()))
    assert np.abs(others - plain).max() > 1e-3  # the rows matter


@pytest.mark.parametrize("precision", ["bf16", "int8-embeddings"])
def test_reduced_precision_passes_the_gate_or_is_told(precision, tmp_path):
    config = experiment.read(TINY_EXPERIMENT)
    loose = config.export.model_copy(
        update={
            "precision": precision,
            "max_probability_change": 1.0,
            "max_number_change": 100.0,
            "max_auc_change": 1.0,
            "min_top_50_overlap": 0.0,
            "min_kendall_tau": -1.0,
        }
    )
    network = build(config.network, config.features, config.tasks, seed=0)
    held_out = data.generate(config.data).test
    changed = config.model_copy(update={"export": loose})
    model = load(export(network, changed, held_out, {}, Store(tmp_path)), CPU)
    tolerance = model.manifest.precision.tolerance["cpu"]
    assert model.manifest.folded_width == network.folded_width
    assert check_golden(model) <= tolerance


def test_scores_beyond_the_tolerance_are_refused(tmp_path):
    good = load(published(tmp_path, Folding(), folded_width=2), CPU)
    assert check_golden(good) <= 1e-6
    off = load(published(tmp_path, Folding(1e-3), folded_width=2), CPU)
    with pytest.raises(ArtifactInvalid) as refused:
        check_golden(off)
    assert str(refused.value).startswith("fold: raw output of task click differs by 0.000")
    assert str(refused.value).endswith("on golden examples, tolerance 1e-05")


def rows_of(model, number):
    made = batch(model.manifest.inputs, [number])
    records = np.zeros(number, record_dtype(list(model.manifest.candidate_inputs)))
    for name, column in made.candidate.items():
        records[name] = column
    return records


def test_a_single_wrong_row_is_found(tmp_path):
    model = load(published(tmp_path, Folding(), folded_width=2), CPU)
    records = rows_of(model, 9)
    (folded,) = fold_records(model.program, records)
    assert check_rows(model, records, folded) <= 1e-6
    assert check_rows(model, records[:0], folded[:0]) == 0
    for wrong in (0.001, np.nan, np.inf):
        changed = folded.copy()
        changed[7, 1] += wrong
        with pytest.raises(ArtifactInvalid, match="task dwell differs by"):
            check_rows(model, records, changed)


def test_rows_are_folded_in_parts(tmp_path, monkeypatch):
    model = load(published(tmp_path, Folding(), folded_width=2), CPU)
    records = rows_of(model, 9)
    monkeypatch.setattr("app.artifacts.fold._AT_ONCE", 8)
    parts = list(fold_records(model.program, records))
    assert [len(part) for part in parts] == [4, 4, 1]
    expected = np.stack([-0.1 * records["item"], records["quality"].sum(1)], 1)
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-6)


def test_a_manifest_without_a_fold_is_one_that_earlier_servers_read(tmp_path):
    plain, folding = published(tmp_path, Request()), published(tmp_path, Folding(), folded_width=2)
    assert "folded_width" not in (plain.folder / "model.json").read_text()
    assert '"folded_width": 2' in (folding.folder / "model.json").read_text()
    assert load(plain, CPU).manifest.folded_width is None


def test_the_manifest_is_compared_with_the_module(tmp_path):
    with pytest.raises(ArtifactInvalid, match="folded_width, but the module has no method fold"):
        published(tmp_path, Request(), folded_width=2)
    model = load(published(tmp_path, Folding(), folded_width=3), CPU)
    with pytest.raises(ArtifactInvalid, match=r"fold must return \(6, 3\), it returned \(6, 2\)"):
        check_golden(model)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"inputs": (DenseInput(name="age", side="user"),)}, "there is no candidate input"),
        (
            {
                "call": {
                    "layout": "rows",
                    "style": "positional",
                    "arguments": [
                        {"name": name, "pack": [name], "dtype": "float32"}
                        for name in ("age", "recent", "item", "quality")
                    ],
                }
            },
            'the layout of the call must be "request"',
        ),
    ],
)
def test_only_modules_with_candidates_by_request_are_folded(changes, rule):
    with pytest.raises(ValueError, match=f"folded_width: {rule}"):
        description(folded_width=2, **changes)


def test_a_table_needs_every_candidate_feature():
    assert fold_problems(["item", "quality"], described(folded_width=2)) == []
    assert fold_problems(["item"], described(folded_width=2)) == [
        'feature "quality": is not in the table, so the table cannot be folded'
    ]
    (reason,) = fold_problems(["item", "quality"], described())
    assert reason.startswith("version 1 cannot be folded: its model.json has no folded_width")


def test_a_fold_serves_its_program_only():
    made = fold_of(described(folded_width=2))
    assert made.serves(described(folded_width=2, version=2))  # a copy of the version
    assert not made.serves(described(folded_width=3))
    document = described(folded_width=2).model_dump(mode="json")
    document["files"]["model.ts"]["sha256"] = "1" * 64
    assert not made.serves(Manifest.model_validate(document))


def test_a_delta_that_is_folded_for_another_version_ends_the_fold(tmp_path):
    one = published(tmp_path, Folding(), folded_width=2)
    two = published(tmp_path, Folding(1e-9), folded_width=2)
    manifest = load(one, CPU).manifest
    rows = random_rows(manifest, "items", [1, 2, 3])
    publish_rows(tmp_path, manifest, "items", "item", rows, one)
    listed = change_rows(tmp_path, manifest, "items", "item", {2: rows[3]}, fold=two)
    assert open_table(listed, "feed", 0).fold == fold_of(manifest)
    assert open_table(listed, "feed").fold is None


def test_only_whole_rows_of_the_table_are_folded(tmp_path):
    artifact = published(tmp_path, Folding(), folded_width=2)
    model = load(artifact, CPU)
    manifest, program = model.manifest, model.program
    rows = random_rows(manifest, "items", [1, 2, 3])
    table = open_table(publish_rows(tmp_path, manifest, "items", "item", rows, artifact), "feed")
    bound = BoundTable.of(table, "items", manifest, program)
    some = np.array([0, 2])
    assert bound.folded_by({"item", "quality"}, some) is program
    assert bound.folded_by({"quality"}, some) is program  # the key is as it was sent
    assert bound.folded_by({"item"}, some) is None
    assert bound.folded_by({"item", "quality"}, np.array([0, -1])) is None  # the defaults
    assert bound.folded_by({"item", "quality"}, some[:0]) is None
    unfolded = BoundTable.of(table, "items", manifest)
    assert unfolded.folded_by({"item", "quality"}, some) is None


@pytest.mark.parametrize("architecture", ["shared_bottom", "mmoe", "ple"])
def test_folded_batches_are_padded_and_run_with_onednn(architecture, tmp_path, monkeypatch):
    artifact = network_artifact(tmp_path, architecture)
    monkeypatch.setattr(loader, "least_work", lambda: 1)
    program = load(artifact, CPU).program
    monkeypatch.undo()
    assert program.pads_from == FEWEST_ROWS
    assert "_linear_pointwise" in str(program._module.score_folded.graph)
    for sizes in ([7], [33], [500], [1, 40], [1] * 18):
        plain = batch(tuple(inputs()), sizes, seed=len(sizes))
        folded = program.fold(plain.candidate)
        padded = np.concatenate([folded, folded[-1:].repeat(program.padded(len(folded)), 0)])
        expected = program.run(plain)
        for rows in (folded, padded[: program.padded(len(folded))]):
            got = program.run(ModelInputs(plain.user, {}, plain.row_to_request, rows))
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
