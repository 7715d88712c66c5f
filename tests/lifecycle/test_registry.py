"""The registry: the active version of each model, and the refused versions."""

from pathlib import Path

import pytest

from app.artifacts.golden import Golden
from app.artifacts.loader import Model
from app.artifacts.store import Artifact
from app.errors import ModelNotFound, NotReady, VersionNotFound
from app.lifecycle.registry import Registry
from app.telemetry.metrics import Metrics
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


def test_without_an_active_model_the_registry_is_not_ready(registry):
    with pytest.raises(NotReady):
        registry.active("feed")
    assert registry.models() == []


def test_an_active_model_is_found_by_name_and_by_version(registry):
    feed = model(version=3)
    activate(registry, feed)
    assert registry.active("feed") is registry.active("feed", 3) is feed
    with pytest.raises(VersionNotFound) as wrong_version:
        registry.active("feed", 2)
    assert str(wrong_version.value) == 'version 2 of model "feed" is not active; active version: 3'
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
    assert registry.models() == [newer]
    assert shown(metrics) == ["feed/2"]
    with pytest.raises(VersionNotFound):
        registry.active("feed", 1)


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
        for name in ("search", "feed"):
            activate(registry, model(name))
    assert str(named.active(None)) == "search/1"
    with pytest.raises(
        ModelNotFound, match="there is no default model; active models: feed, search"
    ):
        unnamed.active(None)
    assert repr(unnamed) == "<Registry active ['feed/1', 'search/1']>"


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
