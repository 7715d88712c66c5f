"""KServe: its manifests are valid, and a server starts with their arguments on what it mounts."""

import shutil

import httpx
import pytest
import yaml

from app.cli.scaling import render
from tests import REPOSITORY
from tests.end_to_end.test_docker import CPU
from tests.support import kubernetes
from tests.support.server import running_server

FOLDER = REPOSITORY / "docker" / "kserve"
FILES = ("servingruntime.yaml", "inferenceservice.yaml")


def document(name):
    return yaml.safe_load((FOLDER / name).read_text())


def container():
    [found] = document("servingruntime.yaml")["spec"]["containers"]
    return found


@pytest.mark.parametrize("version", kubernetes.VERSIONS)
@pytest.mark.parametrize("name", FILES)
def test_manifest_is_valid(name, version):
    assert kubernetes.problems(document(name), version) == []


@pytest.mark.parametrize(
    ("name", "path", "key"),
    [
        ("servingruntime.yaml", ("spec",), "protocolVersion"),
        ("servingruntime.yaml", ("spec", "containers", 0), "arg"),
        ("servingruntime.yaml", ("spec", "supportedModelFormats", 0), "autoselect"),
        ("inferenceservice.yaml", ("spec", "predictor"), "minReplica"),
        ("inferenceservice.yaml", ("spec", "predictor", "model"), "storageURI"),
        ("inferenceservice.yaml", ("spec", "predictor", "autoScaling"), "metric"),
    ],
)
def test_misspelt_property_is_found(name, path, key):
    manifest = document(name)
    place = manifest
    for step in path:
        place = place[step]
    place[key] = "x"
    [problem] = kubernetes.problems(manifest, kubernetes.VERSIONS[0])
    assert f"('{key}' was unexpected)" in problem


def test_container_is_the_image_and_writes_nowhere_but_to_tmp():
    runtime = container()
    assert runtime["image"] == f"gatehouse:{CPU.labels()['org.opencontainers.image.version']}"
    assert runtime["name"] == "kserve-container"  # KServe requires it
    assert runtime["securityContext"]["readOnlyRootFilesystem"]
    assert [mount["mountPath"] for mount in runtime["volumeMounts"]] == ["/tmp"]


def test_scaling_target_is_where_kserve_reads_it_and_the_query_is_that_of_the_scaled_object():
    predictor = document("inferenceservice.yaml")["spec"]["predictor"]
    [metric] = predictor["autoScaling"]["metrics"]
    assert metric["external"]["target"] == {"type": "Value", "value": "0.7"}
    scaled = yaml.safe_load(
        render(
            "keda",
            name="feed-predictor",
            namespace="default",
            min_replicas=predictor["minReplicas"],
            max_replicas=predictor["maxReplicas"],
            busy_share=0.7,
        )
    )
    [trigger] = scaled["spec"]["triggers"]
    assert metric["external"]["metric"]["query"] == trigger["metadata"]["query"]
    assert metric["external"]["metric"]["serverAddress"] == trigger["metadata"]["serverAddress"]


def test_drain_ends_before_the_grace_period():
    drain = [
        float(argument.rpartition("=")[2])
        for argument in container()["args"]
        if "drain" in argument
    ]
    grace = document("inferenceservice.yaml")["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert len(drain) == 2
    assert sum(drain) < grace == 30  # what Kubernetes waits if nothing else is said


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["version", "model", "store"])
def test_server_serves_what_kserve_mounts(layout, tiny, tmp_path):
    mount = tmp_path / "models"
    shutil.copytree(
        tiny.folder, {"version": mount, "model": mount / "1", "store": mount / "tiny/1"}[layout]
    )
    name = "tiny" if layout == "store" else "feed"
    arguments = [
        argument.replace("{{.Name}}", name)
        for argument in container()["args"]
        if not argument.startswith(("--host=", "--port=", "--store=", "--drain-delay-s="))
    ]
    assert len(arguments) == 2
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary), "GATEHOUSE_LANES": "1"}
    with running_server(mount, tmp_path / "log", *arguments, environment=environment) as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert httpx.get(server.url + container()[probe]["httpGet"]["path"]).status_code == 200
        model = httpx.get(f"{server.url}/v1/models/{name}").json()
        answer = httpx.post(f"{server.url}/v1/models/{name}/score", json=model["example_request"])
        assert answer.json()["model"] == name
        assert httpx.get(f"{server.url}/v2/models/{name}/ready").status_code == 200
        assert httpx.get(f"{server.url}/v2/models/{name}").json()["versions"] == ["1"]
        assert server.terminate() == 0
    assert list(temporary.glob("gatehouse-*")) == []
