"""Folded tables: their scores are those of the features, or the features serve."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.artifacts import fold as folding
from app.artifacts.loader import load
from app.artifacts.store import Artifact, Store
from app.artifacts.tables.publish import compact
from app.engine import fold, lanes
from app.engine.lanes import Staging, collate
from app.engine.request import RequestFeatures, TableRows, TableUse
from app.lifecycle import folds
from app.main import gatehouse
from app.scoring.gate_sampler import mean_weights
from app.settings import Settings
from models import data
from models.export.export import export
from models.networks.build import build
from models.training import experiment
from tests import TINY_EXPERIMENT
from tests.support.artifacts import add_version, corrupt
from tests.support.fakes import chunk_of
from tests.support.in_process import client_of
from tests.support.model_tables import change_rows, publish_rows, random_rows

KEYS = list(range(1, 41))
TOLERANCE = 1e-5


@pytest.fixture
def calls(monkeypatch):
    """How many rows each batch had that ran from folded rows."""
    found = []

    def counted(chunks, rows, allocate):
        found.append(rows)
        return gather(chunks, rows, allocate)

    gather = fold.gather_folded
    monkeypatch.setattr(lanes, "gather_folded", counted)
    return found


def version(folder, number=1):
    return Artifact("tiny", number, folder / "tiny" / str(number))


def publish(folder, manifest, *, seed=0, fold=1, **changes):
    artifact = version(folder, fold) if fold else None
    rows = random_rows(manifest, "items", KEYS, seed)
    return publish_rows(folder, manifest, "items", "item_id", rows, artifact, **changes)


def change(folder, manifest, keys, *, seed=9, fold=1, removed=()):
    artifact = version(folder, fold) if fold else None
    rows = random_rows(manifest, "items", keys, seed)
    return change_rows(folder, manifest, "items", "item_id", rows, removed, artifact)


def running(folder):
    return gatehouse(Settings(store=folder, lanes=1, request_timeout_ms=30_000))


def user_of(manifest, seed=0):
    return random_rows(manifest, "users", [1], seed)[1]


async def scored(client, sent):
    got = await client.post("/v1/models/tiny/score", json=sent)
    assert got.status_code == 200, got.text
    return got.json()


async def same_as_features(client, manifest, candidates, rows):
    """Score keys only and with all features; return whether the keys had the same scores."""
    user = user_of(manifest)
    short = await scored(client, {"user": user, "candidates": candidates})
    full = {name: [rows[key][name] for key in candidates] for name in rows[candidates[0]]}
    long = await scored(client, {"user": user, "candidates": full})
    for task, expected in long["scores"].items():
        np.testing.assert_allclose(short["scores"][task], expected, rtol=TOLERANCE, atol=TOLERANCE)
    return True


def state(parts):
    """Return the items table that the active version serves from, as it was bound."""
    registry = parts.service.registry
    bound = registry.tables[registry.active("tiny")].items
    assert bound is not None
    return bound


async def shown(client):
    return (await client.get("/v1/models/tiny")).json()["tables"][0]["folded"]


async def test_a_folded_table_is_shown_and_warmed_up_before_it_serves(folder, manifest, calls):
    publish(folder, manifest)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        assert {1, 512} <= set(calls)  # the smallest and the largest batch, a few times
        assert calls.count(512) >= 3
        calls.clear()
        assert await shown(client) == {
            "version": 1,
            "bytes_per_item": 4 * manifest.folded_width,
            "serves": True,
            "problem": None,
        }
        text = (await client.get("/metrics")).text
        assert 'gatehouse_table_folded{model="tiny",table="items"} 1.0' in text
        await parts.deployment.refresh()
        assert calls == []  # nothing is done again
        publish(folder, manifest, seed=1)
        await parts.deployment.refresh()
        assert state(parts).table.version == 2
        assert state(parts).folded_for is not None
        assert calls == []  # the version is warm


async def test_a_table_that_is_not_folded_serves_its_features(folder, manifest, calls):
    publish(folder, manifest, fold=0)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        await scored(client, {"user": user_of(manifest), "candidates": KEYS})
        assert calls == []
        assert await shown(client) is None
        text = (await client.get("/metrics")).text
        assert 'gatehouse_table_folded{model="tiny",table="items"} 0.0' in text
        publish(folder, manifest, seed=3)
        await parts.deployment.refresh()
        calls.clear()
        rows = random_rows(manifest, "items", KEYS, 3)
        assert await same_as_features(client, manifest, KEYS, rows)
        assert calls == [40]


async def test_only_candidates_that_come_whole_from_the_table_are_folded(folder, manifest, calls):
    publish(folder, manifest, unknown="drop")
    rows = random_rows(manifest, "items", KEYS)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        user, keys = user_of(manifest), KEYS[:6]
        key_objects = [{"item_id": key} for key in keys]
        calls.clear()
        forms = {
            "keys": keys,
            "columns": {"item_id": keys},
            "objects": key_objects,
            "unknown": [*keys, 99],
            "override": {"item_id": keys, "quality": [rows[key]["quality"] for key in keys]},
            "one override": [{"item_id": 1, "category": rows[1]["category"]}, *key_objects[1:]],
            "one whole": [rows[1], *key_objects[1:]],
        }
        got = {}
        for form, candidates in forms.items():
            got[form] = await scored(client, {"user": user, "candidates": candidates})
            got[form]["was folded"] = bool(calls)
            calls.clear()
        whole = {form for form, answer in got.items() if answer["was folded"]}
        assert whole == {"keys", "columns", "objects", "unknown"}
        for answer in got.values():
            for task, expected in got["override"]["scores"].items():
                found = answer["scores"][task][:6]
                np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


async def test_keys_of_the_v2_protocol_are_folded(folder, manifest, calls):
    publish(folder, manifest)
    user = user_of(manifest)
    tensors = [
        {"name": "item_id", "shape": [6], "datatype": "INT64", "data": KEYS[:6]},
        *(_tensor(feature, user[feature.name]) for feature in manifest.user_inputs),
    ]
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        calls.clear()
        got = await client.post("/v2/models/tiny/infer", json={"inputs": tensors})
        assert got.status_code == 200, got.text
        assert calls == [6]
        short = await scored(client, {"user": user, "candidates": KEYS[:6]})
        (clicks,) = (e["data"] for e in got.json()["outputs"] if e["name"] == "click")
        assert clicks == short["scores"]["click"]


def _tensor(feature, value):
    values = value if isinstance(value, list) else [value]
    kind = "FP32" if feature.kind == "dense" else "INT64"
    if feature.kind == "id_list":
        values = [*values, *[-1] * (feature.max_length - len(values))]
    shape = [1] if feature.kind == "id" else [1, len(values)]
    return {"name": feature.name, "shape": shape, "datatype": kind, "data": values}


async def test_a_batch_with_any_other_request_runs_from_features(folder, manifest):
    publish(folder, manifest)
    async with running(folder) as parts:
        await parts.start()
        registry = parts.service.registry
        model = registry.active("tiny")
        table, golden = state(parts).table, model.golden.batch
        whole = folded_features(model, table, KEYS[:5])
        taken = table.take(table.find(np.array(KEYS[5:9])))
        plain = replace(
            whole,
            candidate={name: taken[name].copy() for name in golden.candidate},
            rows=4,
            tables=None,
        )
        unfolded = replace(whole.tables.candidate, folded_for=None)
        changed = replace(whole, tables=replace(whole.tables, candidate=unfolded))
        for others, is_folded in (([whole], True), ([plain], False), ([changed], False)):
            chunks = [
                chunk_of(request, 0, request.rows, model=model)
                for request in (whole, *others, whole)
            ]
            for batch in (collate(chunks), Staging().collate(chunks)):
                assert (batch.folded is not None) == is_folded
                got = model.program.run(batch)
                expected = model.program.run(collate(chunks, unfolded=True))
                np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
        part = [chunk_of(whole, 1, 4, model=model)]
        rows = table.take_folded(table.find(np.array(KEYS[1:4])))
        for batch in (collate(part), Staging().collate(part)):
            assert batch.folded is not None
            assert np.array_equal(batch.folded, rows)
        weights = mean_weights(model, chunk_of(whole, model=model))  # gates read the features
        np.testing.assert_array_equal(weights, mean_weights(model, chunk_of(changed, model=model)))
        other = load(version(folder), torch.device("cpu"))  # the fold is not its own
        assert collate([chunk_of(whole, model=other)]).folded is None


def folded_features(model, table, keys):
    """Return a request of keys for the first golden user."""
    user = {name: column[:1] for name, column in model.golden.batch.user.items()}
    rows = TableRows(table, table.find(np.array(keys)), frozenset(table.columns), model.program)
    used = TableUse(None, rows, {}, {}, None, len(keys))
    return RequestFeatures(user, {}, len(keys), {}, used)


async def test_deltas_are_folded_too_and_compaction_keeps_the_fold(folder, manifest, calls):
    publish(folder, manifest)
    rows = random_rows(manifest, "items", KEYS)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        for number, changed in enumerate(([3, 50], [3, 51], [52]), 1):
            change(folder, manifest, changed, seed=number, removed=[number + 10])
            rows |= random_rows(manifest, "items", changed, number)
            rows.pop(number + 10)
            await parts.deployment.refresh()
            assert state(parts).table.label == f"1.{number}"
            calls.clear()
            assert await same_as_features(client, manifest, list(rows), rows)
            assert calls == [len(rows)]
        found = state(parts).table
        assert compact(folder / "tiny", "items").version == 2
        await parts.deployment.refresh()
        table = state(parts).table
        assert (table.label, table.fold) == ("2", found.fold)
        calls.clear()
        assert await same_as_features(client, manifest, list(rows), rows)
        assert calls == [len(rows)]


async def test_a_delta_without_rows_keeps_the_fold(folder, manifest, calls):
    publish(folder, manifest)
    rows = random_rows(manifest, "items", KEYS)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        change(folder, manifest, [], fold=0, removed=[3])
        change(folder, manifest, [5], seed=5)
        rows |= random_rows(manifest, "items", [5], 5)
        rows.pop(3)
        await parts.deployment.refresh()
        assert state(parts).table.label == "1.2"
        calls.clear()
        assert await same_as_features(client, manifest, list(rows), rows)
        assert calls == [len(rows)]


async def test_a_delta_that_is_not_folded_ends_the_fold_of_its_table(folder, manifest, calls):
    publish(folder, manifest)
    change(folder, manifest, [41], seed=1)
    rows = random_rows(manifest, "items", KEYS) | random_rows(manifest, "items", [41], 1)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        assert (await shown(client))["serves"]
        change(folder, manifest, [2], seed=2, fold=0)
        rows |= random_rows(manifest, "items", [2], 2)
        await parts.deployment.refresh()
        calls.clear()
        assert await same_as_features(client, manifest, list(rows), rows)
        assert calls == []
        assert (await shown(client))["problem"] == "a delta of the table is not folded"
        change(folder, manifest, [4], seed=4)
        rows |= random_rows(manifest, "items", [4], 4)
        await parts.deployment.refresh()
        assert state(parts).table.label == "1.3"
        assert await same_as_features(client, manifest, list(rows), rows)
        assert calls == []
        compact(folder / "tiny", "items")
        await parts.deployment.refresh()
        assert state(parts).table.description.fold is None
        assert await same_as_features(client, manifest, list(rows), rows)


async def test_another_version_serves_the_same_table_from_its_features(folder, manifest, calls):
    network = build(
        experiment.read(TINY_EXPERIMENT).network,
        experiment.read(TINY_EXPERIMENT).features,
        experiment.read(TINY_EXPERIMENT).tasks,
        seed=5,
    )
    config = experiment.read(TINY_EXPERIMENT)
    export(network, config, data.generate(config.data).test, {}, Store(folder))
    publish(folder, manifest, fold=1)
    rows = random_rows(manifest, "items", KEYS)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        assert parts.service.registry.active_version("tiny") == 2
        calls.clear()
        assert await same_as_features(client, manifest, KEYS, rows)
        assert calls == []
        folded = await shown(client)
        assert folded["version"] == 1
        assert not folded["serves"]
        assert folded["problem"] == "it was folded for version 1, whose program is another one"


async def test_a_copy_of_the_version_runs_from_the_fold(folder, manifest, calls):
    publish(folder, manifest)
    add_version(folder, "tiny", 2)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        assert parts.service.registry.active_version("tiny") == 2
        calls.clear()
        await scored(client, {"user": user_of(manifest), "candidates": KEYS})
        assert calls == [40]


async def test_damaged_folded_rows_refuse_the_table(folder, manifest, caplog):
    publish(folder, manifest)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        corrupt(publish(folder, manifest, seed=1).folder / "folded")
        caplog.set_level(logging.ERROR)
        await parts.deployment.refresh()
        await parts.deployment.refresh()
        assert state(parts).table.version == 1
        (refused,) = (await client.get("/v1/models")).json()["refused_tables"]
        assert refused["table"] == "items/2"
        assert refused["reason"] == "folded: its SHA-256 differs from that in table.json"


def shifted(program, records):
    """Fold as `fold_records` does, but wrongly."""
    for part in FOLD_RECORDS(program, records):
        yield part + np.float32(0.01)


FOLD_RECORDS = folding.fold_records


async def test_wrong_folded_rows_are_refused_and_the_features_serve(
    folder, manifest, calls, caplog, monkeypatch
):
    monkeypatch.setattr("app.cli.table_fold.fold_records", shifted)
    monkeypatch.setattr("app.cli.table_fold.check_rows", lambda *_: 0.0)
    publish(folder, manifest)
    caplog.set_level(logging.ERROR)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        assert calls == []  # not even to warm up
        rows = random_rows(manifest, "items", KEYS)
        assert await same_as_features(client, manifest, KEYS, rows)
        assert calls == []
        folded = await shown(client)
        assert not folded["serves"]
        assert "differs by" in folded["problem"]
        assert "on rows of the table, tolerance 1e-05" in folded["problem"]
        await parts.deployment.refresh()
        messages = [record.getMessage() for record in caplog.records]
        (message,) = (text for text in messages if "what is folded is refused" in text)
        assert message.startswith("table items/1 of model tiny/1: ")
        events = (await client.get("/v1/events")).text
        assert "what is folded in items/1 is refused" in events
    monkeypatch.undo()


async def test_a_wrong_delta_is_refused_by_the_gate(folder, manifest, monkeypatch, calls):
    publish(folder, manifest)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        with monkeypatch.context() as patched:
            patched.setattr("app.cli.table_fold.fold_records", shifted)
            patched.setattr("app.cli.table_fold.check_rows", lambda *_: 0.0)
            change(folder, manifest, [3], seed=1)
        await parts.deployment.refresh()
        calls.clear()
        rows = random_rows(manifest, "items", KEYS) | random_rows(manifest, "items", [3], 1)
        assert await same_as_features(client, manifest, KEYS, rows)
        assert calls == []
        assert "differs by" in (await shown(client))["problem"]
        change(folder, manifest, [3], seed=2)  # the row is right again
        await parts.deployment.refresh()
        assert (await shown(client))["serves"]


async def test_folded_rows_are_not_used_on_a_gpu(folder, manifest):
    publish(folder, manifest)
    async with running(folder) as parts:
        await parts.start()
        model, table = parts.service.registry.active("tiny"), state(parts).table
        program = model.program
        assert folds._why_not(model, table) == ""
        program.device = torch.device("cuda")
        reason = folds._why_not(model, table)
        assert reason == "folded rows are used on CPUs only, the model runs on cuda"


async def test_a_module_that_fails_on_folded_rows_serves_the_features(
    folder, manifest, monkeypatch
):
    publish(folder, manifest)

    def fails(_model, _table):
        raise KeyError("anything")

    monkeypatch.setattr(folds, "check_table", fails)
    async with running(folder) as parts, client_of(parts) as client:
        await parts.start()
        await scored(client, {"user": user_of(manifest), "candidates": KEYS})
        assert (await shown(client))["problem"] == "fold: KeyError: 'anything'"
