"""The registry: the active version of each model, and the refused versions."""

import weakref
from pathlib import Path

import pytest

from app.artifacts.golden import Golden
from app.artifacts.loader import Model
from app.artifacts.store import Artifact
from app.errors import ModelNotFound, NotReady, VersionNotFound
from app.lifecycle.registry import Registry
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestRecord
from tests.support.builders import Request, batch, manifest, program

FOLDER = Path("store")  # the registry does not look into it


def activate(registry: Registry, served: Model) -> None:
    manifest = served.manifest
    registry.activate(Artifact(manifest.name, manifest.version, FOLDER), served)


def model(name: str = "feed", version: int = 1) -> Model:
    one = program(Request())
    return Model(manifest(name=name, version=version), one, Golden.record(one, batch()))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def registry(metrics) -> Registry:
    return Registry(metrics)


def shown(metrics: Metrics) -> list[str]:
    samples = [s for family in metrics.registry.collect() for s in family.samples]
    info = [s.labels for s in samples if s.name == "gatehouse_model_info"]
    return [f"{labels['model']}/{labels['version']}" for labels in info]


def roles(metrics: Metrics) -> dict[str, str]:
    samples = [
        s.labels
        for family in metrics.registry.collect()
        for s in family.samples
        if s.name == "gatehouse_version_info"
    ]
    return {f"{sample['model']}/{sample['version']}": sample["role"] for sample in samples}


def test_without_an_active_model_the_registry_is_not_ready(registry):
    with pytest.raises(NotReady):
        registry.active("feed")
    assert registry.active_models() == []


def test_an_active_model_is_found_by_name_and_by_version(registry):
    feed = model(version=3)
    activate(registry, feed)
    assert registry.active("feed") is registry.requested("feed", 3) is feed
    with pytest.raises(VersionNotFound) as wrong_version:
        registry.requested("feed", 2)
    assert str(wrong_version.value) == (
        'version 2 of model "feed" is not loaded; loaded versions: 3 (active)'
    )
    with pytest.raises(ModelNotFound) as wrong_name:
        registry.active("search")
    assert str(wrong_name.value) == 'model "search" not found; active models: feed'


def test_a_misspelt_model_name_gets_a_suggestion(registry):
    for name in ("feed", "mtl"):
        activate(registry, model(name))
    with pytest.raises(ModelNotFound) as wrong:
        registry.active("fed")
    assert str(wrong.value) == (
        'model "fed" not found; active models: feed, mtl; did you mean "feed"?'
    )


def test_a_message_shows_the_beginning_of_a_long_name_and_of_many_names(registry):
    served = model()
    for number in range(70):
        registry._active[f"m{number:02}"] = served
    with pytest.raises(ModelNotFound) as wrong:
        registry.active("x" * 1000)
    message = str(wrong.value)
    assert f'"{"x" * 64}"' in message
    assert message.endswith("m62, m63, ...")


def test_while_the_store_is_loading_a_missing_model_is_not_ready_yet(registry):
    registry.has_started = False
    activate(registry, model("feed"))
    assert str(registry.active("feed")) == "feed/1"
    for name in ("search", None):  # the first model to be loaded is not the default
        with pytest.raises(NotReady, match="still loading"):
            registry.active(name)
    registry.has_started = True
    assert str(registry.active(None)) == "feed/1"


def test_a_newer_version_replaces_the_older(registry, metrics):
    activate(registry, model(version=1))
    newer = model(version=2)
    activate(registry, newer)
    assert registry.active("feed") is newer
    assert registry.active_models() == [newer]
    assert shown(metrics) == ["feed/2"]
    assert str(registry.requested("feed", 1)) == "feed/1"
    assert roles(metrics) == {"feed/1": "previous", "feed/2": "active"}
    registry.free_all_but("feed", [])
    with pytest.raises(VersionNotFound):
        registry.requested("feed", 1)
    assert roles(metrics) == {"feed/2": "active"}


def test_a_switch_back_makes_the_newer_version_a_previous_one(registry, metrics):
    older, newer = model(version=1), model(version=2)
    for version in (older, newer):
        activate(registry, version)
    registry.switch(older)
    assert registry.active("feed") is older
    assert (registry.role(older), registry.role(newer)) == ("active", "previous")
    assert registry.previous("feed") == [2]
    assert (shown(metrics), roles(metrics)) == (
        ["feed/1"],
        {"feed/1": "active", "feed/2": "previous"},
    )
    assert [str(version) for version in registry.versions("feed")] == ["feed/2", "feed/1"]


def test_series_and_memory_of_freed_versions_go_away_over_100_swaps(registry, metrics):
    freed = []
    registry.on_freed.append(lambda loaded: freed.append(weakref.ref(loaded)))
    sizes = set()
    for version in range(1, 101):
        activate(registry, model(version=version))
        metrics.record(RequestRecord("/v1/score", "feed", 200, 0.01, f"feed/{version}"))
        metrics.batch_limit(f"feed/{version}", 64)
        metrics.drain()
        registry.free_all_but("feed", registry.previous("feed")[:1])
        if version > 1:
            sizes.add(sum(1 for line in metrics.render().splitlines() if b"feed" in line))
            assert set(roles(metrics)) == {f"feed/{version - 1}", f"feed/{version}"}
    assert len(sizes) == 1
    assert len(freed) == 98
    assert all(reference() is None for reference in freed)
    assert set(metrics.requests._versions) == {"feed/99", "feed/100"}
    assert [len(held) for held in (registry._roles, registry._former["feed"])] == [2, 1]


def test_a_version_that_is_activated_twice_is_exported_once(registry, metrics):
    activate(registry, model())
    activate(registry, model())
    assert shown(metrics) == ["feed/1"]


def test_the_only_model_is_the_default(registry):
    feed = model()
    activate(registry, feed)
    assert registry.active(None) is feed


def test_of_several_models_one_must_be_named_or_be_the_default(metrics):
    named, unnamed = Registry(metrics, default_model="search"), Registry(Metrics())
    for registry in (named, unnamed):
        registry.has_started = False  # as while the store is loading
        for name in ("search", "feed"):
            activate(registry, model(name))
        registry.has_started = True
    assert str(named.active(None)) == "search/1"
    with pytest.raises(ModelNotFound) as wrong:
        unnamed.active(None)
    assert str(wrong.value) == (
        "no model is named, and there is no default model; active models: feed, search; "
        "name one in the path, or set GATEHOUSE_DEFAULT_MODEL (--default-model)"
    )
    assert repr(unnamed) == "<Registry active ['feed/1', 'search/1']>"


def test_the_default_model_stays_when_a_second_one_appears(registry, caplog):
    feed = model("feed")
    activate(registry, feed)
    activate(registry, model("ads"))
    assert registry.active(None) is feed
    assert "set GATEHOUSE_DEFAULT_MODEL to keep it" in caplog.text
    activate(registry, model("search"))
    assert registry.active(None) is feed


def test_a_default_that_is_not_active_is_not_found(metrics):
    registry = Registry(metrics, default_model="search")
    activate(registry, model("feed"))
    with pytest.raises(ModelNotFound):
        registry.active(None)


def test_a_refusal_keeps_its_reason_and_the_active_version(registry, metrics, caplog):
    feed = model()
    activate(registry, feed)
    worse = Artifact("feed", 2, FOLDER)
    registry.refuse(worse, "model.ts: its SHA-256 is not the one in the manifest")
    assert registry.refused == {worse: "model.ts: its SHA-256 is not the one in the manifest"}
    assert registry.active("feed") is feed
    assert "artifact feed/2 is refused: model.ts" in caplog.text
    count = metrics.registry.get_sample_value
    labels = {"model": "feed", "result": "refused"}
    assert count("gatehouse_model_swaps_total", labels) == 1


def test_activation_removes_an_earlier_refusal(registry):
    artifact = Artifact("feed", 1, FOLDER)
    registry.refuse(artifact, "half copied")
    registry.activate(artifact, model())
    assert registry.refused == {}
