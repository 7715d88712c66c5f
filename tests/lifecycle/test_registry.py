"""The registry: which version answers, and which was refused."""

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


def test_nothing_is_ready_before_a_model_is_active(registry):
    with pytest.raises(NotReady):
        registry.active("feed")
    assert registry.models() == []


def test_an_active_model_answers_by_name_and_by_version(registry):
    feed = model(version=3)
    activate(registry, feed)
    assert registry.active("feed") is registry.active("feed", 3) is feed
    with pytest.raises(VersionNotFound):
        registry.active("feed", 2)
    with pytest.raises(ModelNotFound):
        registry.active("search")


def test_the_newer_version_takes_the_place_of_the_older(registry, metrics):
    activate(registry, model(version=1))
    newer = model(version=2)
    activate(registry, newer)
    assert registry.active("feed") is newer
    assert registry.models() == [newer]
    assert shown(metrics) == ["feed/2"]
    with pytest.raises(VersionNotFound):
        registry.active("feed", 1)


def test_a_version_that_is_activated_again_stays_shown(registry, metrics):
    activate(registry, model())
    activate(registry, model())
    assert shown(metrics) == ["feed/1"]


def test_the_only_model_is_the_default(registry):
    feed = model()
    activate(registry, feed)
    assert registry.active(None) is feed


def test_among_several_models_one_must_be_named_or_be_the_default(metrics):
    named, unnamed = Registry(metrics, default_model="search"), Registry(Metrics())
    for registry in (named, unnamed):
        for name in ("search", "feed"):
            activate(registry, model(name))
    assert str(named.active(None)) == "search/1"
    with pytest.raises(ModelNotFound, match="name one"):
        unnamed.active(None)
    assert repr(unnamed) == "<Registry active ['feed/1', 'search/1']>"


def test_a_default_that_is_not_active_is_not_found(metrics):
    registry = Registry(metrics, default_model="search")
    activate(registry, model("feed"))
    with pytest.raises(ModelNotFound):
        registry.active(None)


def test_a_refusal_keeps_its_reason_and_leaves_what_is_active(registry, metrics, caplog):
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


def test_a_refused_version_that_is_activated_after_all_is_refused_no_more(registry):
    artifact = Artifact("feed", 1, FOLDER)
    registry.refuse(artifact, "half copied")
    registry.activate(artifact, model())
    assert registry.refused == {}
