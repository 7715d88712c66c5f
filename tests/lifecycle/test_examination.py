"""A new version is examined before it serves: compatible, and near enough on recorded traffic."""

import shutil

import numpy as np
import pytest

from app.artifacts.columns import ModelInputs
from app.artifacts.encoding import Listed, write_vocabulary
from app.artifacts.inputs import DenseInput, IdInput
from app.artifacts.loader import load
from app.artifacts.publish import publish
from app.artifacts.store import PROGRAM, Store
from app.lifecycle import version_loader
from app.main import gatehouse
from app.scoring.version_examiner import VersionExaminer
from app.settings import Settings
from tests.support.builders import INPUTS, Request, batch, description, published, scripted
from tests.support.in_process import client_of
from tests.support.traffic import Reversed, record_of, write_log

NEW = (*INPUTS, DenseInput(name="mood", side="user"))
WITH_DEFAULT = (*INPUTS, DenseInput(name="mood", side="user", default=(0.5,)))
OTHER = (*INPUTS, DenseInput(name="tempo", side="user"))
GATE = 'active = "latest"\n[replay]\nrequests = 40\nkendall_tau = 0.9\n'


@pytest.fixture
def folder(tmp_path):
    """A store with version 1 of `feed`."""
    published(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def log(tmp_path):
    write_log(tmp_path / "log", [record_of(2 + number % 20) for number in range(50)])
    return tmp_path / "log"


def serving(folder, **changes):
    return gatehouse(Settings(store=folder, lanes=1, request_timeout_ms=30_000, **changes))


def traffic(folder, text):
    (folder / "feed" / "traffic.toml").write_text(text)


def roles(parts):
    registry = parts.service.registry
    return {
        version.manifest.version: str(registry.role(version))
        for version in registry.versions("feed")
    }


def refused(parts):
    return {str(artifact): why for artifact, why in parts.service.registry.refused.items()}


async def test_version_that_needs_a_new_feature_is_refused_unless_it_may_serve(folder, caplog):
    async with serving(folder) as parts:
        await parts.deployment.refresh()
        published(folder, inputs=NEW)
        for _ in range(3):
            await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        assert refused(parts) == {
            "feed/2": "it does not accept the example request of feed/1: /user/mood: required "
            "feature is missing (traffic.toml: accept_incompatible = 2 lets it serve)"
        }
        assert caplog.text.count("artifact feed/2 is refused") == 1
        traffic(folder, "accept_incompatible = true")
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 1: "previous"}
        assert refused(parts) == {}


async def test_version_with_a_new_feature_that_has_a_default_serves(folder):
    async with serving(folder) as parts:
        await parts.deployment.refresh()
        published(folder, inputs=WITH_DEFAULT)
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 1: "previous"}


async def test_version_that_the_policies_do_not_fit_is_refused_until_they_do(folder, tmp_path):
    policies = tmp_path / "policies.toml"
    text = '[policy.home]\nmodels = ["feed"]\nweights = {{ {} = 1.0 }}\n'
    policies.write_text(text.format("dwell"))
    async with serving(folder, policies=policies) as parts:
        await parts.start()
        tasks = parts.service.registry.active("feed").manifest.tasks
        ranking = {"weights": {"click": 1.0}}
        published(
            folder, tasks=(tasks[0], tasks[1].model_copy(update={"name": "watch"})), ranking=ranking
        )
        await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        assert "the policies file does not fit it: " in refused(parts)["feed/2"]
        policies.write_text(text.format("click"))
        parts.policy_file.prepare()()
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 1: "previous"}


async def test_return_to_an_older_version_is_never_refused(folder, log):
    published(folder, inputs=WITH_DEFAULT)
    published(folder, Reversed())
    async with serving(folder, record=log, record_share=0) as parts:
        traffic(folder, GATE.replace('"latest"', "3"))
        await parts.deployment.refresh()
        assert roles(parts) == {3: "active"}
        traffic(folder, GATE.replace('"latest"', "2"))  # not loaded, and it differs
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 3: "previous"}
        traffic(folder, GATE.replace('"latest"', "3"))
        await parts.deployment.refresh()  # it was active before
        assert roles(parts) == {3: "active", 2: "previous"}


async def test_version_whose_order_differs_on_recorded_traffic_is_refused(folder, log, caplog):
    caplog.set_level("INFO")
    traffic(folder, GATE)
    async with serving(folder, record=log, record_share=0) as parts:
        await parts.deployment.refresh()
        published(folder, Reversed())
        for _ in range(2):
            await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        reason = refused(parts)["feed/2"]
        assert reason.startswith("replay of recorded traffic: kendall_tau: ")
        assert "at least 0.9 is required: 40 recorded requests, 0 refused; Kendall tau" in reason
        assert caplog.text.count("artifact feed/2 is refused") == 1
        assert "model feed/2 is warmed up with 16 recorded requests" in caplog.text
        published(folder, inputs=WITH_DEFAULT)
        await parts.deployment.refresh()
        assert roles(parts) == {3: "active", 1: "previous"}
        assert "model feed/3 passes the replay of recorded traffic: 40 recorded" in caplog.text
        async with client_of(parts) as client:
            card = (await client.get("/v1/models/feed")).json()
            assert "Kendall tau 1.000" in card["versions"][0]["replay"]
            assert card["versions"][1]["replay"] is None
            listed = (await client.get("/v1/models")).json()["refused"]
            assert [entry["version"] for entry in listed] == [2]
        assert (
            parts.metrics.registry.get_sample_value(
                "gatehouse_model_swaps_total", {"model": "feed", "result": "refused"}
            )
            == 1
        )


async def test_refused_version_is_examined_again_when_the_gate_changes(folder, log, monkeypatch):
    replayed = []
    original = VersionExaminer.replay

    def counting(self, active, model, gates):
        replayed.append(model.label)
        return original(self, active, model, gates)

    monkeypatch.setattr(VersionExaminer, "replay", counting)
    traffic(folder, GATE)
    async with serving(folder, record=log, record_share=0) as parts:
        await parts.deployment.refresh()
        published(folder, Reversed())
        for _ in range(3):
            await parts.deployment.refresh()
        assert replayed == ["feed/2"]
        traffic(folder, GATE.replace("0.9", "-1.0"))
        await parts.deployment.refresh()
        assert replayed == ["feed/2", "feed/2"]
        assert roles(parts) == {2: "active", 1: "previous"}


async def test_refused_version_is_examined_again_when_its_files_change(folder):
    async with serving(folder) as parts:
        await parts.deployment.refresh()
        version = published(folder, inputs=NEW).folder
        await parts.deployment.refresh()
        assert "does not accept the example request" in refused(parts)["feed/2"]
        shutil.rmtree(version)
        assert published(folder, inputs=WITH_DEFAULT).folder == version
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 1: "previous"}
        assert refused(parts) == {}


async def test_version_that_was_refused_may_be_a_shadow(folder):
    async with serving(folder) as parts:
        await parts.deployment.refresh()
        published(folder, inputs=NEW)
        await parts.deployment.refresh()
        assert list(refused(parts)) == ["feed/2"]
        traffic(folder, "[shadow]\nversion = 2\nshare = 0.5\n")
        await parts.deployment.refresh()
        assert roles(parts) == {1: "active", 2: "shadow"}
        assert refused(parts) == {}
        traffic(folder, "")
        await parts.deployment.refresh()  # it is loaded, but must not serve
        assert roles(parts) == {1: "active"}
        assert list(refused(parts)) == ["feed/2"]


@pytest.mark.parametrize("has_folder", [True, False])
async def test_without_recorded_traffic_a_version_serves_with_a_warning(
    folder, tmp_path, caplog, has_folder
):
    traffic(folder, GATE)
    changes = {"record": tmp_path / "empty", "record_share": 0} if has_folder else {}
    async with serving(folder, **changes) as parts:
        await parts.deployment.refresh()
        published(folder, Reversed())
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 1: "previous"}
    (warning,) = [record for record in caplog.records if "not replayed: " in record.getMessage()]
    assert warning.levelname == "WARNING"


async def test_canary_must_pass_and_a_shadow_need_not(folder, log):
    published(folder, Reversed())
    published(folder, inputs=NEW)
    gates = "[replay]\nkendall_tau = 0.9\n"
    traffic(folder, f"active = 1\n[canary]\nversion = 2\nshare = 0.5\nfor = '1h'\n{gates}")
    async with serving(folder, record=log, record_share=0) as parts:
        await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        assert "replay of recorded traffic" in parts.service.registry.unassigned["feed"]
        traffic(folder, f"active = 1\n[shadow]\nversion = 3\nshare = 0.5\n{gates}")
        await parts.deployment.refresh()
        assert roles(parts) == {1: "active", 3: "shadow"}
        traffic(folder, f"active = 3\n{gates}")  # it is loaded, but was not examined
        await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        assert "does not accept the example request" in refused(parts)["feed/3"]


async def test_recorded_traffic_that_cannot_be_read_does_not_stop_a_version(
    folder, tmp_path, caplog
):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "feed").symlink_to("feed")  # a loop: OSError when it is listed
    traffic(folder, GATE)
    async with serving(folder, record=tmp_path / "log", record_share=0) as parts:
        await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        published(folder, Reversed())
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 1: "previous"}
    assert "recorded traffic cannot be read to warm up feed/1" in caplog.text
    assert "not replayed: recorded traffic cannot be read: " in caplog.text


async def test_version_that_was_refused_is_refused_after_a_restart(folder, log):
    published(folder)
    published(folder, Reversed())
    traffic(folder, GATE)
    async with serving(folder, record=log, record_share=0) as parts:
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active"}
        assert "replay of recorded traffic: kendall_tau" in refused(parts)["feed/3"]
    traffic(folder, GATE + "[canary]\nversion = 3\nshare = 0.1\nfor = '1h'\n")
    async with serving(folder, record=log, record_share=0) as parts:
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 1: "previous"}  # the canary must pass, too


@pytest.mark.parametrize(
    ("arriving", "expected"),
    [
        ([NEW], 1),
        ([NEW, NEW], 1),  # the second is like the first, which nobody serves
        ([NEW, WITH_DEFAULT], 3),
        ([WITH_DEFAULT, OTHER], 2),
        ([NEW, OTHER, INPUTS], 4),
    ],
)
async def test_server_that_starts_serves_what_a_running_one_serves(
    folder, monkeypatch, arriving, expected
):
    loaded = []

    def counting(artifact, device):
        loaded.append(artifact.version)
        return load(artifact, device)

    async with serving(folder) as running:
        await running.deployment.refresh()
        for inputs in arriving:
            published(folder, inputs=inputs)
            await running.deployment.refresh()
        monkeypatch.setattr(version_loader, "load", counting)
        async with serving(folder) as started:
            for _ in range(2):
                await started.deployment.refresh()
            assert roles(running)[expected] == "active"
            assert roles(started) == {expected: "active"}
            assert loaded == [expected]
            newer = {label for label in refused(running) if int(label.split("/")[1]) > expected}
            assert refused(started) == {label: refused(running)[label] for label in newer}
            assert len(newer) == len(arriving) + 1 - expected


async def test_version_that_started_servers_refuse_serves_once_it_may(folder):
    published(folder, inputs=NEW)
    async with serving(folder) as parts:
        await parts.deployment.refresh()
        assert roles(parts) == {1: "active"}
        assert "accept_incompatible = 2 lets it serve" in refused(parts)["feed/2"]
        traffic(folder, "accept_incompatible = 2")
        await parts.deployment.refresh()
        assert roles(parts) == {2: "active", 1: "previous"}
    published(folder, inputs=OTHER)
    for text, expected in (("accept_incompatible = 2", 2), ("accept_incompatible = true", 3)):
        traffic(folder, text)
        async with serving(folder) as started:
            await started.deployment.refresh()
            assert roles(started) == {expected: "active"}


@pytest.mark.parametrize(
    ("text", "warns"),
    [("active = 2", True), ("active = 2\naccept_incompatible = 2", False), ("active = 3", False)],
)
async def test_start_serves_a_version_that_running_servers_refuse_with_a_warning(
    folder, caplog, text, warns
):
    published(folder, inputs=NEW)
    published(folder, inputs=WITH_DEFAULT)
    traffic(folder, text)
    async with serving(folder) as parts:
        for _ in range(2):
            await parts.deployment.refresh()
        assert roles(parts) == {int(text[9]): "active"}
        warnings = [
            record for record in caplog.records if "running servers refuse it" in record.message
        ]
        assert len(warnings) == warns
        problems = [event.text for event in parts.metrics.events.latest() if event.is_problem]
        assert len(problems) == warns
        if warns:
            assert problems[0].startswith("feed/2 serves because traffic.toml names it, but")
            assert "does not accept the example request of feed/1" in problems[0]


async def test_start_serves_a_named_version_without_a_replay_and_says_so(folder, log, caplog):
    caplog.set_level("INFO")
    reason = "not replayed: traffic.toml named it when the server started"
    published(folder, Reversed())
    for version, expected in ((1, None), (2, reason)):  # nothing is below version 1
        traffic(folder, GATE.replace('"latest"', str(version)))
        async with serving(folder, record=log, record_share=0) as parts, client_of(parts) as client:
            await parts.deployment.refresh()
            assert roles(parts) == {version: "active"}
            (card,) = (await client.get("/v1/models/feed")).json()["versions"]
            assert card["replay"] == expected
    assert caplog.text.count(f"model feed/2 is {reason}") == 1


async def test_number_of_an_accepted_version_holds_for_one_that_comes_in_its_place(folder):
    traffic(folder, "accept_incompatible = 2")
    async with serving(folder) as parts:
        await parts.deployment.refresh()
        (published(folder, inputs=NEW).folder / PROGRAM).write_bytes(b"damaged")
        published(folder, inputs=NEW)
        await parts.deployment.refresh()
        assert roles(parts) == {3: "active", 1: "previous"}


async def test_policies_refuse_a_version_at_start_as_they_do_later(folder, tmp_path):
    policies = tmp_path / "policies.toml"
    policies.write_text('[policy.home]\nmodels = ["feed"]\nweights = { dwell = 1.0 }\n')
    tasks = description().tasks
    renamed = (tasks[0], tasks[1].model_copy(update={"name": "watch"}))
    published(folder, tasks=renamed, ranking={"weights": {"click": 1.0}})
    async with serving(folder, policies=policies) as parts:
        await parts.start()
        assert roles(parts) == {1: "active"}
        assert "the policies file does not fit it: " in refused(parts)["feed/2"]


BRANDS = [f"brand-{row}" for row in range(1, 10)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(BRANDS, 2), (BRANDS[::-1], 2), ([f"no-{brand}" for brand in BRANDS], 1)],
)
async def test_ids_that_a_new_vocabulary_lacks_are_found_at_start(tmp_path, names, expected):
    file = "vocabulary.item.jsonl"
    item = IdInput(
        name="item",
        side="candidate",
        vocabulary_size=10,
        encoding=Listed(file=file),
        unknown="reject",
    )
    described = description(inputs=(*INPUTS[:2], item, INPUTS[3]))
    golden = batch(described.inputs)
    items = np.maximum(golden.candidate["item"], 1)  # row 0 has no id
    golden = ModelInputs(golden.user, {**golden.candidate, "item": items}, golden.row_to_request)

    def publish_with(ids):
        files = {file: write_vocabulary(ids)}
        publish(Store(tmp_path), described, scripted(Request()), golden, files)

    publish_with(BRANDS)
    async with serving(tmp_path) as running:
        await running.deployment.refresh()
        publish_with(names)
        await running.deployment.refresh()
        async with serving(tmp_path) as started:
            await started.deployment.refresh()
            assert roles(started) == {expected: "active"}
            assert roles(running)[expected] == "active"
            assert refused(started) == refused(running)


async def test_damaged_version_is_not_what_others_are_compared_with(folder):
    (published(folder, inputs=NEW).folder / PROGRAM).unlink()
    published(folder, inputs=WITH_DEFAULT)  # accepts requests to version 1
    published(folder)
    async with serving(folder) as parts:
        await parts.deployment.refresh()
        assert roles(parts) == {3: "active"}  # 4 does not know the feature of 3
        assert 'unknown user feature "mood"' in refused(parts)["feed/4"]
