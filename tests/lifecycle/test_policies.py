"""The file of policies under a running service: in force, changed, refused, and never mixed."""

import asyncio
import os
import re
from typing import Any

import httpx
import pytest

from app.errors import ConfigurationInvalid
from app.lifecycle.policies import Policies
from app.main import Gatehouse, gatehouse
from app.ranking.policies import PolicySet
from app.server.file_watcher import FileWatcher
from app.settings import Settings
from tests.scoring.test_score import SCORE
from tests.support.artifacts import add_version
from tests.support.builders import description, model
from tests.support.in_process import client_of


def policies(weight: float, *, more: str = "") -> str:
    """Two policies that agree on one weight: an answer that mixes two files would not."""
    return f"""
        [default]
        tiny = "home"
        [policy.home]
        weights = {{ click = {weight}, like = {weight} }}
        bounds = {{ like = [0.0, 9.0] }}
        [policy.search]
        formula = "power_product"
        weights = {{ click = {weight}, like = {weight} }}
        {more}
    """


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "policies.toml"
    path.write_text(policies(1))
    return path


@pytest.fixture
async def parts(store, path):
    settings = Settings(store=store.folder, lanes=2, policies=path, request_timeout_ms=30_000)
    async with gatehouse(settings) as parts:
        await parts.start()
        yield parts


@pytest.fixture
async def client(parts):
    async with client_of(parts) as client:
        yield client


@pytest.fixture
async def example(client):
    return (await client.get("/v1/models/tiny")).json()["example_request"]


def watcher(parts: Gatehouse) -> FileWatcher:
    return FileWatcher(parts.policy_file, parts.metrics)


async def applied(client: httpx.AsyncClient, example: dict[str, Any], **ranking: Any) -> Any:
    response = await client.post(SCORE, json=example | {"ranking": ranking})
    assert response.status_code == 200, response.text
    return response.json()["policy"]


async def test_the_default_policy_of_the_file_ranks_requests_that_name_none(client, example):
    policy = await applied(client, example)
    assert (policy["name"], policy["weights"]) == ("home", {"click": 1, "like": 1})
    assert policy["version"]


async def test_a_request_may_name_a_policy_of_the_file_or_of_the_model(client, example):
    assert (await applied(client, example, policy="search"))["formula"] == "power_product"
    own = await applied(client, example, policy="default")
    assert own["weights"] == {"click": 1.0, "like": 0.5, "dwell": 0.5}


async def test_weights_outside_the_bounds_of_the_policy_are_refused(client, example):
    assert (await applied(client, example, weights={"like": 2}))["weights"]["like"] == 2
    unbounded = await applied(client, example, policy="search", weights={"like": 10})
    assert unbounded["weights"] == {"click": 1, "like": 10}
    for weights, pointer, detail in (
        ({"like": 9.1}, "/ranking/weights/like", "must be a number between 0 and 9"),
        (
            {"click": 1},
            "/ranking/weights/click",
            "policy home fixes this weight (adjustable: like)",
        ),
    ):
        refused = await client.post(SCORE, json=example | {"ranking": {"weights": weights}})
        assert refused.status_code == 422
        assert refused.json()["errors"] == [{"pointer": pointer, "detail": detail}]


async def test_an_answer_is_explained(client, example):
    ranking = {"policy": "search", "explain": True, "top_k": 2}
    answer = (await client.post(SCORE, json=example | {"ranking": ranking})).json()
    told = answer["explanation"]["candidates"]
    assert [candidate["candidate"] for candidate in told] == answer["ranking"]
    for candidate in told:
        row = example["candidate_keys"].index(candidate["candidate"])
        shares = {task: share["share"] for task, share in candidate["tasks"].items()}
        assert sum(shares.values()) == pytest.approx(candidate["total"], rel=1e-5)
        assert candidate["tasks"]["click"]["raw"] == answer["scores"]["click"][row]
    assert "explanation" not in (await client.post(SCORE, json=example)).json()


async def test_a_changed_file_is_followed_and_counted(parts, client, example, path):
    follow = watcher(parts)
    await follow.look()
    before = (await applied(client, example))["version"]
    path.write_text(policies(2))
    await follow.look()
    policy = await applied(client, example)
    assert policy["weights"] == {"click": 2, "like": 2}
    assert policy["version"] != before
    metrics = (await client.get("/metrics")).text
    assert f'gatehouse_policy_set_info{{version="{policy["version"]}"}} 1.0' in metrics
    assert f'version="{before}"' not in metrics
    assert 'gatehouse_reloads_total{file="policies",result="succeeded"} 2.0' in metrics
    assert 'gatehouse_policy_applied_total{policy="home"} 2.0' in metrics


@pytest.mark.parametrize(
    "wrong",
    [
        "[policy",
        policies(2, more="[policy.broken]"),
        policies(2, more="[policy.broken]\nweights = { buy = 1.0 }\nmodels = ['tiny']"),
        None,
    ],
    ids=["syntax", "rule", "model", "removed"],
)
async def test_a_wrong_file_is_refused_whole_and_the_old_set_stays(
    parts, client, example, path, wrong
):
    before = await applied(client, example)
    if wrong is None:
        path.unlink()
    else:
        path.write_text(wrong)
    await watcher(parts).look()
    assert await applied(client, example) == before
    state = (await client.get("/v1/models")).json()["policies"]
    assert state["version"] == before["version"]
    assert len(state["refused"]) == 1
    metrics = (await client.get("/metrics")).text
    assert 'gatehouse_reloads_total{file="policies",result="failed"} 1.0' in metrics
    path.write_text(policies(3))
    await watcher(parts).look()
    assert (await client.get("/v1/models")).json()["policies"]["refused"] == []
    assert (await applied(client, example))["weights"]["click"] == 3


async def test_a_touched_file_without_changes_changes_nothing(parts, client, path):
    follow = watcher(parts)
    await follow.look()
    path.touch()
    await follow.look()
    metrics = (await client.get("/metrics")).text
    assert 'gatehouse_reloads_total{file="policies",result="succeeded"} 1.0' in metrics


async def test_a_model_card_lists_its_policies(client):
    card = (await client.get("/v1/models/tiny")).json()
    assert card["default_policy"] == "home"
    assert [policy["name"] for policy in card["policies"]] == ["default", "home", "search"]
    assert card["policies"][1]["bounds"] == {"like": [0, 9]}
    assert card["ranking"]["name"] == "default"


async def test_an_answer_never_mixes_two_policy_sets(parts, client, example, path):
    """The weights of both policies are the set's number: so must be what an answer reports."""
    follow = watcher(parts)
    done = False
    found: dict[str, set[float]] = {}

    async def ask() -> None:
        while not done:
            ranking = {"policy": "search", "explain": True}
            answer = (await client.post(SCORE, json=example | {"ranking": ranking})).json()
            weights, version = answer["policy"]["weights"], answer["policy"]["version"]
            (weight,) = set(weights.values())
            found.setdefault(version, set()).add(weight)
            scores = answer["scores"]
            product = [
                (click * like) ** weight
                for click, like in zip(scores["click"], scores["like"], strict=True)
            ]
            assert answer["rank_score"] == pytest.approx(product, rel=1e-4)

    callers = [asyncio.create_task(ask()) for _ in range(8)]
    for number in range(2, 30):
        path.write_text(policies(number / 8))
        await follow.look()
        for _ in range(20):
            await asyncio.sleep(0)
    done = True
    await asyncio.gather(*callers)
    assert len(found) > 5
    assert all(len(weights) == 1 for weights in found.values())


BUY = 'policy.x: model "other": unknown task "buy" (known: click, like, dwell)'


async def test_a_later_model_that_does_not_fit_the_set_has_its_own_policy(
    store, tmp_path, path, parts
):
    path.write_text(policies(1, more="[policy.x]\nweights = {buy = 1}\nmodels = ['other']"))
    await watcher(parts).look()
    other = tmp_path / "store"
    (other / "tiny").mkdir(parents=True)
    (other / "tiny" / "1").symlink_to(store.folder / "tiny" / "1")
    add_version(other, "other", 1, name="other")
    settings = Settings(store=other, lanes=1, policies=path)
    async with gatehouse(settings) as later:
        later.policy_file.load()
        await later.deployment.refresh()
        async with client_of(later) as asking:
            card = (await asking.get("/v1/models/other")).json()
            assert [policy["name"] for policy in card["policies"]] == ["default"]
            assert card["policy_problem"] == BUY
            assert (await asking.get("/v1/models/tiny")).json()["policy_problem"] is None
        with pytest.raises(ConfigurationInvalid, match=re.escape(BUY)):
            later.policy_file.check()


async def test_a_wrong_file_at_the_start_is_named(tmp_path, store):
    missing = Settings(store=store.folder, lanes=1, policies=tmp_path / "none.toml")
    async with gatehouse(missing) as parts:
        with pytest.raises(ConfigurationInvalid, match=r"none\.toml: cannot be read: No such file"):
            await parts.start()
        assert (
            parts.service.registry.active_models() == []
        )  # none has answered without the policies


async def test_a_start_with_a_file_that_does_not_fit_a_model_is_an_error(tmp_path, store):
    path = tmp_path / "policies.toml"
    path.write_text("[policy.x]\nweights = {buy = 1}\nmodels = ['tiny']")
    async with gatehouse(Settings(store=store.folder, lanes=1, policies=path)) as parts:
        with pytest.raises(
            ConfigurationInvalid, match=r"policies\.toml: policy\.x: model \"tiny\": unknown"
        ):
            await parts.start()


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
async def test_a_byte_order_mark_makes_no_difference(tmp_path, store, mark):
    path = tmp_path / "policies.toml"
    path.write_text(policies(2), encoding=mark)
    async with gatehouse(Settings(store=store.folder, lanes=1, policies=path)) as parts:
        await parts.start()
        assert "home" in parts.service.policies.active.policies


async def test_a_pipe_in_place_of_the_file_is_refused_without_waiting(tmp_path, store):
    path = tmp_path / "policies.toml"
    os.mkfifo(path)
    async with gatehouse(Settings(store=store.folder, lanes=1, policies=path)) as parts:
        with pytest.raises(ConfigurationInvalid, match="cannot be read: not a regular file"):
            await parts.start()


def test_problem_of_a_version_stays_while_another_version_fits(tmp_path):
    policies = Policies()
    home = b'[policy.home]\nmodels = ["feed"]\nweights = { dwell = 1.0 }\n'
    policies.activate(PolicySet.parse(home), [])
    tasks = description().tasks
    renamed = (tasks[0], tasks[1].model_copy(update={"name": "watch"}))
    other = model(tmp_path, tasks=renamed, ranking={"weights": {"click": 1.0}})
    fitting = model(tmp_path)
    policies.of(other)
    policies.of(fitting)
    assert list(policies.incompatible) == ["feed/1"]
    policies.forget(other)
    assert policies.incompatible == {}
