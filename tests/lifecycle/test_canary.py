"""Canaries: which requests they get, and how they end."""

import gc
import math
import shutil
import weakref

import pytest

from app.errors import ConfigurationInvalid
from app.lifecycle.canary import MIN_REQUESTS, Canary, binomial_p_value
from app.lifecycle.traffic import CanarySettings, Traffic
from app.main import gatehouse
from app.settings import Settings
from tests.lifecycle.test_registry import model
from tests.support.artifacts import add_version, corrupt
from tests.support.in_process import client_of


class Clock:
    """A clock that stands still; tests move it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def canary(share=0.05, clock=None, **gates):
    settings = CanarySettings.model_validate(
        {"version": 2, "share": share, "for": "10m", "gates": gates}
    )
    clock = {} if clock is None else {"clock": clock}
    return Canary(settings, model(version=1), model(version=2), **clock)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_share_of_keys_is_right_by_the_binomial_test(share):
    one, keys = canary(share), 20_000
    taken = sum(one.takes(b"user-%d" % number) for number in range(keys))
    assert binomial_p_value(taken, keys, share) > 1e-4
    assert binomial_p_value(keys - taken, keys, 1 - share) > 1e-4


def test_a_key_stays_with_its_version_and_canaries_differ():
    keys = [b"%d" % number for number in range(2000)]
    first, again = canary(0.5), canary(0.5)
    assert [first.takes(key) for key in keys] == [again.takes(key) for key in keys]
    settings = first.settings.model_copy(update={"version": 3})
    other = Canary(settings, model(version=1), model(version=3))
    both = sum(first.takes(key) and other.takes(key) for key in keys)
    assert 400 < both < 600  # independent: a quarter


def test_binomial_tail_is_exact():
    exact = sum(math.comb(50, k) * 0.1**k * 0.9 ** (50 - k) for k in range(9, 51))
    assert binomial_p_value(9, 50, 0.1) == pytest.approx(exact, rel=1e-9)
    assert (
        binomial_p_value(0, 10, 0.5),
        binomial_p_value(1, 10, 0.0),
        binomial_p_value(10, 10, 1.0),
    ) == (1.0, 0.0, 1.0)


def answered(one, *, requests, failed=0, slow=0, active_s=0.01, factor=1.0):
    for number in range(requests):
        one.observe(one.active, 200, active_s)
        status = 500 if number < failed else 200
        slower = 10.0 if number < slow else factor
        one.observe(one.model, status, active_s * slower)


def test_a_good_canary_is_promoted_when_its_time_is_over():
    clock = Clock()
    one = canary(clock=clock, error_ratio=0.001, p99_ratio=1.2)
    answered(one, requests=1000, factor=1.1)
    one.evaluate()
    assert one.state == "running"
    clock.now += 601
    one.evaluate()
    assert one.state == "promoted"


@pytest.mark.parametrize("status", [500, 504, 422])
def test_a_canary_that_fails_is_ended_with_the_figures(status):
    one = canary(error_ratio=0.001)
    for _ in range(300):
        one.observe(one.active, 200, 0.01)
    for number in range(200):
        one.observe(one.model, status if number % 10 == 0 else 200, 0.01)
    one.evaluate()
    assert one.state == "ended"
    assert one.reason == ("error_ratio: 0.1000, allowed 0.0010 (active 0.0000 + 0.001)")
    assert "200 requests, 20 failed" in str(one.report())


def test_errors_that_the_active_version_has_too_do_not_end_a_canary():
    one = canary(error_ratio=0.001)
    for number in range(500):
        for version in (one.active, one.model):
            one.observe(version, 500 if number % 10 == 0 else 200, 0.01)
    one.evaluate()
    assert one.state == "running"


def test_a_slow_canary_is_ended_and_a_few_slow_requests_are_chance():
    one = canary(p99_ratio=1.2)
    answered(one, requests=500, slow=7)
    one.evaluate()
    assert one.state == "running"
    answered(one, requests=500, slow=60)
    one.evaluate()
    assert one.state == "ended"
    assert one.reason.startswith("p99_ratio: 10.00, allowed 1.2")


def test_a_canary_whose_order_differs_is_ended():
    one = canary(kendall_tau=0.8)
    assert one.comparison is not None
    assert (one.comparison.live, one.comparison.other) == (one.model, one.active)
    for tau in [0.9] * 20 + [0.5] * 9:
        one.comparison.add(tau, 1.0, {})
    one.evaluate()
    assert one.state == "running"
    one.comparison.add(0.5, 1.0, {})
    one.evaluate()
    assert (one.state, one.reason) == (
        "ended",
        "kendall_tau: 0.767, at least 0.8 is required",
    )


def test_a_canary_that_is_over_lets_go_of_its_versions():
    one = canary(kendall_tau=0.8)
    answered(one, requests=150)
    versions = [weakref.ref(one.active), weakref.ref(one.model)]
    before = str(one.report())
    one.close()
    assert [reference() for reference in versions] == [None, None]
    assert str(one.report()) == before


def test_a_canary_without_enough_requests_is_not_promoted():
    clock = Clock()
    one = canary(clock=clock)
    answered(one, requests=MIN_REQUESTS - 1)
    clock.now += 3600
    one.evaluate()
    assert (one.state, one.reason) == (
        "running",
        "waiting for 100 requests to the canary, 99 so far",
    )


def test_a_traffic_file_with_a_canary_is_written_and_read_back():
    text = CANARY.replace("1s", "30m")
    traffic = Traffic.parse(text.encode())
    assert traffic.canary is not None
    assert traffic.canary.seconds == 1800
    assert Traffic.parse(traffic.to_toml().encode()) == traffic


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("shar = 0.1", 'unknown key "shar" in [canary]; did you mean "share"?'),
        ("share = 2.0", "canary.share: must be at most 1"),
        ('for = "soon"', 'canary.for: must be a number and s, m, h or d, such as "30m"'),
        (
            "gates = { p99_rato = 1 }",
            'unknown key "p99_rato" in [canary.gates]; did you mean "p99_ratio"?',
        ),
    ],
)
def test_a_wrong_canary_is_refused_with_its_place(line, problem):
    lines = {"version": "version = 8", "share": "share = 0.1", "for": 'for = "30m"'}
    lines[line.split()[0]] = line
    with pytest.raises(ConfigurationInvalid) as wrong:
        Traffic.parse(("[canary]\n" + "\n".join(lines.values())).encode())
    assert problem in str(wrong.value)


@pytest.fixture
def folder(tmp_path, tiny):
    shutil.copytree(tiny.folder, tmp_path / "tiny" / "1")
    add_version(tmp_path, "tiny", 2)
    return tmp_path


def write(folder, text):
    (folder / "tiny" / "traffic.toml").write_text(text)


CANARY = """\
active = 1

[canary]
version = 2
share = 0.5
for = "1s"

[canary.gates]
error_ratio = 0.01
"""


async def test_a_canary_gets_its_share_by_key_is_sticky_and_is_promoted(folder, caplog):
    caplog.set_level("INFO")
    write(folder, CANARY)
    async with gatehouse(Settings(store=folder, lanes=1, request_timeout_ms=30_000)) as parts:
        await parts.deployment.refresh()
        registry = parts.service.registry
        async with client_of(parts) as client:
            card = (await client.get("/v1/models/tiny")).json()
            assert card["traffic"]["canary"]["state"] == "running"
            example = card["example_request"]

            async def versions(**headers):
                answer = await client.post("/v1/score", json=example, headers=headers)
                assert answer.status_code == 200
                document = answer.json()
                assert document["role"] == {1: "active", 2: "canary"}[document["version"]]
                return document["version"]

            by_key = [await versions(**{"x-routing-key": f"u{user}"}) for user in range(300)]
            again = [await versions(**{"x-routing-key": f"u{user}"}) for user in range(20)]
            assert again == by_key[:20]
            assert binomial_p_value(by_key.count(2), 300, 0.5) > 1e-4
            assert binomial_p_value(by_key.count(1), 300, 0.5) > 1e-4
            named = await client.post("/v1/models/tiny/versions/1/score", json=example)
            assert named.json()["version"] == 1
            registry.canaries["tiny"]._began -= 1  # its second is over
            await parts.deployment.refresh()
            assert [str(version) for version in registry.active_models()] == ["tiny/2"]
            assert str(registry.role(registry.requested("tiny", 1))) == "previous"
            assert "canary tiny/2 is promoted: " in caplog.text
            await parts.deployment.refresh()  # and it stays so
            assert [str(version) for version in registry.active_models()] == ["tiny/2"]
            assert registry.canaries == {}
            write(folder, "active = 1")  # as `gatehouse rollback` does
            await parts.deployment.refresh()
            assert [str(version) for version in registry.active_models()] == ["tiny/1"]
            text = (await client.get("/metrics")).text
        assert 'gatehouse_canaries_total{model="tiny",result="promoted"} 1.0' in text
        assert 'gatehouse_requests_by_role_total{model="tiny",role="canary",status="200"}' in text


async def test_both_versions_get_their_share_of_invalid_requests(folder):
    write(folder, CANARY)
    async with gatehouse(Settings(store=folder, lanes=1, request_timeout_ms=30_000)) as parts:
        await parts.deployment.refresh()
        canary = parts.service.registry.canaries["tiny"]
        async with client_of(parts) as client:
            for number in range(100):
                answer = await client.post(
                    "/v1/score",
                    json={"candidates": {"nonsense": [1]}},
                    headers={"x-request-id": f"request-{number}"},  # it decides
                )
                assert answer.status_code == 422
            refused = await client.post("/v1/score", json={}, headers={"content-type": "text/html"})
            assert refused.status_code == 415
        report = canary.report()
        assert report.failed + report.active_failed == 100
        assert report.requests + report.active_requests == 100
        assert binomial_p_value(report.failed, 100, 0.5) > 1e-4
        assert binomial_p_value(report.active_failed, 100, 0.5) > 1e-4


async def test_empty_routing_key_counts_as_absent_and_a_request_needs_no_user(folder):
    write(folder, CANARY)
    async with gatehouse(Settings(store=folder, lanes=1, request_timeout_ms=30_000)) as parts:
        await parts.deployment.refresh()
        canary = parts.service.registry.canaries["tiny"]
        user = next(iter(canary.model.manifest.user_names))
        canary.key_feature = user
        async with client_of(parts) as client:
            example = (await client.get("/v1/models/tiny")).json()["example_request"]
            versions = set()
            for _ in range(20):
                answer = await client.post("/v1/score", json=example, headers={"x-routing-key": ""})
                versions.add(answer.json()["version"])
            assert len(versions) == 1
            del example["user"]
            answer = await client.post("/v1/score", json=example)
            assert answer.status_code != 500


async def test_p99_gate_waits_for_answers_of_both_versions(folder):
    text = CANARY.replace("error_ratio = 0.01", "p99_ratio = 1.5")
    write(folder, text)
    async with gatehouse(Settings(store=folder, lanes=1)) as parts:
        await parts.deployment.refresh()
        one = parts.service.registry.canaries["tiny"]
        one._began -= 10
        for _ in range(200):
            one.observe(one.model, 200, 0.01)
        one.evaluate()
        assert (one.state, one.reason) == (
            "running",
            "waiting for 100 answers of both versions, 0 so far",
        )
        for _ in range(100):
            one.observe(one.active, 200, 0.01)
        one.evaluate()
        assert one.state == "promoted"


async def test_a_canary_that_fails_its_gate_is_ended_and_freed(folder, caplog):
    write(folder, CANARY)
    async with gatehouse(Settings(store=folder, lanes=1)) as parts:
        await parts.deployment.refresh()
        registry = parts.service.registry
        one = registry.canaries["tiny"]
        for number in range(200):
            one.observe(one.active, 200, 0.01)
            one.observe(one.model, 500 if number < 50 else 200, 0.01)
        for _ in range(2):
            await parts.deployment.refresh()
        assert caplog.text.count("canary tiny/2 is ended: error_ratio: 0.2500") == 1
        assert [str(version) for version in registry.loaded()] == ["tiny/1"]
        assert registry.canaries == {}


async def test_a_canary_that_is_stopped_is_not_compared_any_more(folder):
    write(folder, CANARY.replace("error_ratio = 0.01", "kendall_tau = 0.5"))
    async with gatehouse(Settings(store=folder, lanes=1)) as parts:
        await parts.deployment.refresh()
        registry = parts.service.registry
        canary = weakref.ref(registry.canaries["tiny"].model)
        assert list(registry.comparisons) == [canary()]
        write(folder, "active = 99")  # which the store does not have
        await parts.deployment.refresh()
        assert "version 99 is not in the store" in registry.unassigned["tiny"]
        assert registry.comparisons == {}
        assert [str(version) for version in registry.loaded()] == ["tiny/1"]
        gc.collect()
        assert canary() is None  # its memory is free


async def test_a_canary_that_its_file_makes_active_is_not_compared_while_others_load(folder):
    write(folder, CANARY.replace("error_ratio = 0.01", "kendall_tau = 0.5"))
    async with gatehouse(Settings(store=folder, lanes=1)) as parts:
        await parts.deployment.refresh()
        registry = parts.service.registry
        write(folder, "active = 2")
        await parts.deployment._apply_changes("tiny")  # all that happens during a long load
        assert [str(version) for version in registry.active_models()] == ["tiny/2"]
        assert registry.comparisons == {}


async def test_a_shadow_that_is_stopped_is_not_compared_while_another_loads(folder, monkeypatch):
    add_version(folder, "tiny", 3)
    write(folder, "active = 1\n[shadow]\nversion = 2\nshare = 1.0\n")
    async with gatehouse(Settings(store=folder, lanes=1)) as parts:
        await parts.deployment.refresh()
        registry = parts.service.registry
        assert [str(comparison.other) for comparison in registry.comparisons.values()] == ["tiny/2"]
        write(folder, "active = 1\n[shadow]\nversion = 3\nshare = 1.0\n")
        during = []
        load = parts.deployment._loader.load

        async def watched(artifact, circumstances):
            during.append(dict(registry.comparisons))
            return await load(artifact, circumstances)

        monkeypatch.setattr(parts.deployment._loader, "load", watched)
        await parts.deployment.refresh()
        assert during == [{}]
        assert [str(comparison.other) for comparison in registry.comparisons.values()] == ["tiny/3"]


def as_tensors(card):
    """The example request of a model as a V2 document."""
    example, inputs = card["example_request"], []
    for feature in card["inputs"]:
        if feature["side"] == "user":
            rows = [example["user"][feature["name"]]]
        elif isinstance(example["candidates"], dict):
            rows = example["candidates"][feature["name"]]
        else:
            rows = [candidate[feature["name"]] for candidate in example["candidates"]]
        rows = [row if isinstance(row, list) else [row] for row in rows]
        width = max(map(len, rows))
        data = [value for row in rows for value in row + [-1] * (width - len(row))]
        datatype = "FP32" if feature["kind"] == "dense" else "INT64"
        shape = [len(rows), width]
        inputs.append({"name": feature["name"], "datatype": datatype, "shape": shape, "data": data})
    return {"inputs": inputs}


async def test_a_user_stays_with_one_version_in_both_protocols(folder):
    write(folder, CANARY.replace("share = 0.5", 'share = 0.5\nkey = "user_id"'))
    async with gatehouse(Settings(store=folder, lanes=1, request_timeout_ms=30_000)) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            card = (await client.get("/v1/models/tiny")).json()
            example = card["example_request"]
            seen = set()
            for user in range(40):
                example["user"]["user_id"] = user
                found = {
                    (await client.post("/v1/score", json=example)).json()["version"]
                    for _ in range(3)
                }
                v2 = await client.post("/v2/models/tiny/infer", json=as_tensors(card))
                assert v2.status_code == 200, v2.text
                assert v2.json()["parameters"]["role"] in ("active", "canary")
                found.add(int(v2.json()["model_version"]))
                assert len(found) == 1
                seen |= found
            assert seen == {1, 2}


async def test_a_canary_that_cannot_be_loaded_leaves_the_traffic_alone(folder):
    corrupt(folder / "tiny" / "2" / "model.ts")
    write(folder, CANARY)
    async with gatehouse(Settings(store=folder, lanes=1)) as parts:
        await parts.deployment.refresh()
        registry = parts.service.registry
        assert [str(version) for version in registry.loaded()] == ["tiny/1"]
        assert (
            "version 2 does not get its role: model.ts: its SHA-256" in registry.unassigned["tiny"]
        )
        assert registry.canaries == {}
