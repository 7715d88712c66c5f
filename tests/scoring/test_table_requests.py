"""Requests of keys are observed, explained, compared and replayed as those with all features are.

Each test sends the same candidates in both forms, and expects the same result.
"""

import asyncio
import re
import shutil

import numpy as np
import pytest

from app.artifacts.artifact_files import read_manifest
from app.artifacts.inputs import DenseInput
from app.artifacts.store import Store
from app.cli.main import main
from app.errors import ExitCode
from app.main import gatehouse
from app.settings import Settings
from tests.support.artifacts import add_version
from tests.support.builders import INPUTS, published
from tests.support.in_process import client_of
from tests.support.mixtures import GATES, Mixture
from tests.support.model_tables import change_rows, publish_rows, random_rows
from tests.support.waiting import until

KEYS = list(range(1, 41))
CANDIDATES = [7, 99, 3, 20, 40, 12, 98, 1]  # 98 and 99 are in no table
KNOWN = [key for key in CANDIDATES if key < 90]
ITEMS = (*INPUTS, DenseInput(name="boost", side="candidate"))
POLICIES = """
[default]
feed = "boosted"

[policy.boosted]
formula = "power_product"
weights = { click = 1.0 }
multiplier = "boost"
shadow = "other"

[policy.other]
formula = "power_product"
weights = { dwell = 1.0 }
multiplier = "boost"
"""


@pytest.fixture
def folder(tmp_path):
    """A store with a mixture of experts, `feed/1`."""
    published(tmp_path / "store", Mixture(), gates=(GATES,), inputs=ITEMS)
    return tmp_path / "store"


@pytest.fixture
def trained(tmp_path, tiny):
    """A store with version 1 of `tiny`, which knows how its training data is distributed."""
    shutil.copytree(tiny.folder, tmp_path / "store" / "tiny" / "1")
    return tmp_path / "store"


def tables(store, name, version=1, seed=0):
    """Publish tables of items, with a delta, and of users; return a request with all features."""
    manifest = read_manifest_of(store, name, version)
    items = random_rows(manifest, "items", KEYS, seed)
    publish_rows(store, manifest, "items", "item_id", items, unknown="drop")
    changed = random_rows(manifest, "items", KEYS[:8], seed + 1)
    change_rows(store, manifest, "items", "item_id", changed)
    users = random_rows(manifest, "users", KEYS, seed)
    publish_rows(store, manifest, "users", "user_id", users)
    items |= changed
    names = [feature.name for feature in manifest.candidate_inputs]
    return {
        "user": users[5],
        "candidates": {name: [items[key][name] for key in KNOWN] for name in names},
        "candidate_keys": KNOWN,
    }


def read_manifest_of(store, name, version):
    artifacts = Store(store).artifacts()
    return read_manifest(next(a for a in artifacts if (a.model, a.version) == (name, version)))


BY_KEYS = {"user": 5, "candidates": CANDIDATES, "candidate_keys": CANDIDATES}


def serving(store, **changes):
    return gatehouse(Settings(store=store, lanes=1, request_timeout_ms=30_000, **changes))


async def observed(parts, client, request):
    """Score a request that is sampled, and wait until that is done."""
    scorer = parts.scorer
    scorer._sampler.next_at = 0.0
    scorer._gates._next_at.clear()
    response = await client.post("/v1/score", json=request)
    assert response.status_code == 200, response.text
    await asyncio.sleep(0)
    if scorer._gates._task is not None:
        await scorer._gates._task
    return response.json()


async def test_gates_are_sampled_for_scored_candidates(folder, caplog):
    full = tables(folder, "feed")
    async with serving(folder) as parts, client_of(parts) as client:
        await parts.start()
        found = []
        for request in (BY_KEYS, full):
            await observed(parts, client, request)
            requests, means = parts.metrics.gates.recent("feed/1")
            assert requests == 1
            found.append(means)
            parts.metrics.gates.forget("feed/1")
    np.testing.assert_array_equal(*found)
    quality = 1 / (1 + np.exp(-np.array(full["candidates"]["quality"])))  # [n, 2]
    assert found[0][0] == pytest.approx(quality.prod(axis=1).mean(), rel=1e-5)
    assert "not observed" not in caplog.text


async def test_drift_and_scores_are_those_of_scored_candidates(trained, caplog):
    full = tables(trained, "tiny")
    async with serving(trained) as parts, client_of(parts) as client:
        await parts.start()
        found = []
        for request in (BY_KEYS, full):
            await observed(parts, client, request)
            drift = parts.service.drift
            version = drift._versions.pop("tiny")
            counts = {name: window.counts for name, _, _, window in version.features}
            counts |= {task: window.counts for task, window in version.scores.items()}
            found.append({name: bins.tolist() for name, bins in counts.items()})
        text = (await client.get("/metrics")).text
    assert found[0] == found[1]
    assert any(sum(counts) for counts in found[0].values())
    count = 'gatehouse_task_score_count{model="tiny",task="click"}'
    assert f"{count} {2 * len(KNOWN)}.0" in text
    # No callback failed:
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_shadow_policy_multiplies_by_a_feature_of_the_table(folder, tmp_path, caplog):
    full = tables(folder, "feed")
    (tmp_path / "policies.toml").write_text(POLICIES)
    policies = tmp_path / "policies.toml"
    async with serving(folder, policies=policies) as parts, client_of(parts) as client:
        await parts.start()
        found = []
        for request in (BY_KEYS, full):
            await observed(parts, client, request)
            text = (await client.get("/metrics")).text
            found.append(
                np.array(re.findall(r"^gatehouse_shadow_kendall_tau\S+ (\S+)", text, re.M), float)
            )
    by_keys, both = found
    assert by_keys[0] == 0 < by_keys[-1]  # they agree, but not fully
    np.testing.assert_array_equal(both, 2 * by_keys)
    # No callback failed:
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_explanation_is_that_of_the_candidates_with_their_features(folder, tmp_path):
    full = tables(folder, "feed")
    (tmp_path / "policies.toml").write_text(POLICIES)
    ranking = {"ranking": {"explain": True}}
    policies = tmp_path / "policies.toml"
    async with serving(folder, policies=policies) as parts, client_of(parts) as client:
        await parts.start()
        got = (await client.post("/v1/score", json=BY_KEYS | ranking)).json()
        want = (await client.post("/v1/score", json=full | ranking)).json()
    assert got["ranking"] == want["ranking"]
    assert got["explanation"] == want["explanation"]
    assert len(got["explanation"]["candidates"]) == len(KNOWN)


def results(comparison):
    return comparison.compared, comparison.dropped, comparison.failed


async def compared(parts, client, comparison, request):
    """Score a request that another version scores too; return how it was compared."""
    parts.scorer._comparer._next_at = 0.0
    before = results(comparison)
    assert (await client.post("/v1/score", json=request)).status_code == 200
    await until(lambda: results(comparison) != before, "the request is compared")
    after = results(comparison)
    return tuple(now - then for now, then in zip(after, before, strict=True))


CANARY = 'active = 1\n[canary]\nversion = 2\nshare = 1.0\nfor = "1h"\n'
CANARY += "[canary.gates]\nkendall_tau = 0.5\n"
SHADOW = "active = 1\n[shadow]\nversion = 2\nshare = 1.0\n"


@pytest.mark.parametrize("text", [CANARY, SHADOW], ids=["canary", "shadow"])
async def test_versions_are_compared_on_scored_candidates(trained, text):
    full = tables(trained, "tiny")
    add_version(trained, "tiny", 2)
    (trained / "tiny" / "traffic.toml").write_text(text)
    async with serving(trained) as parts, client_of(parts) as client:
        await parts.start()
        registry = parts.service.registry
        shadow = registry.shadows.get("tiny")
        comparison = shadow or registry.canaries["tiny"].comparison
        assert comparison is not None
        for request in (BY_KEYS, full):
            assert await compared(parts, client, comparison, request) == (1, 0, 0)
        assert comparison.difference_sums == {"click": 0.0, "like": 0.0, "dwell": 0.0}
        assert comparison.kendall_tau == 1.0


async def test_versions_whose_tables_drop_other_candidates_are_not_compared(trained):
    """Their scores are of different candidates."""
    tables(trained, "tiny")
    add_version(trained, "tiny", 2)
    (trained / "tiny" / "traffic.toml").write_text(SHADOW)
    async with serving(trained) as parts, client_of(parts) as client:
        await parts.start()
        registry = parts.service.registry
        comparison = registry.shadows["tiny"]
        manifest = read_manifest_of(trained, "tiny", 1)
        rows = random_rows(manifest, "items", KEYS[:5])
        publish_rows(trained, manifest, "items", "item_id", rows, unknown="drop")
        former = registry.tables[comparison.other]
        await parts.deployment.refresh()
        registry.tables[comparison.other] = former  # it has not applied it yet
        assert await compared(parts, client, comparison, BY_KEYS) == (0, 1, 0)


async def test_version_is_tried_and_replayed_with_recorded_keys(trained, tmp_path, capsys):
    tables(trained, "tiny")
    log = tmp_path / "log"
    (trained / "tiny" / "traffic.toml").write_text(
        'active = "latest"\n[replay]\nrequests = 40\nkendall_tau = 0.99\n'
    )
    random = np.random.default_rng(0)
    async with serving(trained, record=log, record_share=1) as parts, client_of(parts) as client:
        await parts.start()
        for _ in range(40):
            request = {"user": 5, "candidates": random.choice(KEYS, 8, replace=False).tolist()}
            assert (await client.post("/v1/score", json=request)).status_code == 200
        assert parts.scorer._recorder is not None
        parts.scorer._recorder.close()
        add_version(trained, "tiny", 2)
        await parts.deployment.refresh()
        assert parts.service.registry.active_version("tiny") == 2
        figures = parts.service.registry.replays["tiny/2"]
        assert "40 recorded requests, 0 refused; Kendall tau 1.000" in figures
        answer = await client.post("/v1/score", json=BY_KEYS)
        assert answer.json()["tables"] == {"items": "1.1", "users": "1"}
    command = ["replay", "tiny", "2", "--against", "1", "--store", str(trained), "--log", str(log)]
    assert main(command) == ExitCode.OK
    assert " 40 requests" in capsys.readouterr().out.replace("\n", " ")
