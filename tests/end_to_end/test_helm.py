"""The Helm chart: linted and rendered by the real helm, validated by strict schemas."""

import functools
import hashlib
import json
import math
import os
import re
import subprocess
from copy import deepcopy
from typing import Any

import pytest
import yaml

from app.cli.scaling import render
from app.scoring.keys import Keys
from app.settings import Settings
from tests import REPOSITORY
from tests.end_to_end.test_docker import CPU
from tests.support import chart, kubernetes

CHART = REPOSITORY / "docker" / "helm" / "gatehouse"
SCHEMA = json.loads(chart.SCHEMA.read_text())
EVERYTHING: dict[str, Any] = {
    "replicaCount": 3,
    "settings": {
        "request_timeout_ms": 200,
        "max_body_bytes": 134217728,
        "max_bodies_bytes": 268435456,
        "log_sample": 0.5,
        "default_model": "feed",
        "cors_origins": "https://a.example",
    },
    "image": {"digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "registry"}],
    "store": {
        "kind": "initContainer",
        "initContainer": {
            "image": "copier:1",
            "command": ["copy", "s3://models", "/store"],
            "envFrom": [{"secretRef": {"name": "s3"}}],
        },
    },
    "policies": {"toml": '[default]\nfeed = "home"\n'},
    "apiKeys": {"sha256": {"web": hashlib.sha256(b"secret").hexdigest()}},
    "tls": {"existingSecret": "certificate"},
    "extraEnv": [{"name": "OMP_NUM_THREADS", "value": "1"}],
    "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "networkPolicy": {
        "from": [{"podSelector": {"matchLabels": {"app": "web"}}}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True, "annotations": {"folder": "ranking"}},
    "autoscaling": {"enabled": True, "kind": "hpa", "minReplicas": 3, "maxReplicas": 40},
    "podLabels": {"team": "ranking"},
    "podAnnotations": {"a": "b"},
    "priorityClassName": "high",
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "ranking", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "extraVolumes": [{"name": "extra", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
    "extraContainers": [{"name": "sidecar", "image": "sidecar:1"}],
}
GPU: dict[str, Any] = {
    "image": {"repository": "gatehouse", "tag": "0.2.0-cuda"},
    "gpu": {"enabled": True, "runtimeClassName": "nvidia"},
    "resources": {"requests": {"cpu": 4, "memory": "8Gi"}, "limits": {"memory": "16Gi"}},
    "store": {"kind": "pvc", "pvc": {"claimName": "models", "subPath": "prod"}},
    "strategy": {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
    "autoscaling": {"enabled": True, "kind": "keda", "busyShare": 0.6},
    "topologySpread": {"zone": "DoNotSchedule", "host": ""},
}
SMALL: dict[str, Any] = {
    "replicaCount": 1,
    "networkPolicy": {"enabled": False},
    "serviceAccount": {"create": False},
    "store": {"kind": "imageVolume", "imageVolume": {"reference": "registry/store:7"}},
    "policies": {"existingConfigMap": "policies"},
    "apiKeys": {"existingSecret": "keys"},
    "settings": {"lanes": 2},
    "topologySpread": {"zone": "", "host": ""},
}
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "gpu": GPU,
    "small": SMALL,
}


def helm(*words, values=None):
    command = [str(kubernetes.helm()), *words, "--values", "-"]
    return subprocess.run(
        command,
        input=yaml.safe_dump(values or {}),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HELM_CACHE_HOME": "/nonexistent"},
    )


@functools.cache
def rendered(name):
    """Return the objects that some values give, by kind."""
    words = ("template", "ranking", str(CHART), "--namespace", "prod")
    finished = helm(*words, values=VALUES[name])
    assert finished.returncode == 0, finished.stderr
    found = kubernetes.manifests(finished.stdout)
    # Two may have a kind: the dashboard and the policies are ConfigMaps.
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in found}


def only(name, kind):
    [found] = [manifest for (its_kind, _), manifest in rendered(name).items() if its_kind == kind]
    return found


def pod(name):
    return only(name, "Deployment")["spec"]["template"]["spec"]


def container(name):
    [found] = [spec for spec in pod(name)["containers"] if spec["name"] == "gatehouse"]
    return found


@pytest.mark.parametrize("name", VALUES)
def test_helm_lints_the_chart(name):
    finished = helm("lint", "--strict", str(CHART), values=VALUES[name])
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("version", kubernetes.VERSIONS)
@pytest.mark.parametrize("name", VALUES)
def test_objects_are_valid(name, version):
    found = {
        key: kubernetes.problems(manifest, version) for key, manifest in rendered(name).items()
    }
    assert {key: problems for key, problems in found.items() if problems} == {}


def test_values_render_every_template():
    kinds = {kind for name in VALUES for kind, _ in rendered(name)}
    assert kinds == {
        *("Deployment", "Service", "ServiceAccount", "ConfigMap", "Secret"),
        *("PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler"),
        *("ScaledObject", "ServiceMonitor", "PrometheusRule"),
    }


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "enableServiceLink"), False),
        ("Deployment", ("spec", "minReadySeconds"), "5"),
        ("Service", ("spec", "port"), 80),
        ("PodDisruptionBudget", ("spec", "minAvailable"), []),
        ("NetworkPolicy", ("spec", "ingres"), []),
        ("HorizontalPodAutoscaler", ("spec", "minReplica"), 1),
        ("ServiceMonitor", ("spec", "endpoint"), []),
        ("PrometheusRule", ("spec", "group"), []),
    ],
)
def test_mistake_in_an_object_is_found(kind, path, value):
    manifest = deepcopy(only("everything", kind))
    place = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    for version in kubernetes.VERSIONS:
        assert kubernetes.problems(manifest, version)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"replicas": 3}, "'replicas' not allowed"),
        ({"settings": {"max_wait": 3}}, "'max_wait' not allowed"),
        ({"settings": {"port": 9000}}, "'port' not allowed"),
        ({"settings": {"lanes": "two"}}, "want integer"),
        ({"store": {"kind": "s3"}}, "must be one of"),
        ({"store": {"kind": "pvc"}}, "/store/pvc/claimName"),
        ({"apiKeys": {"sha256": {"web": "secret"}}}, "/apiKeys/sha256/web"),
        ({"autoscaling": {"busyShare": 70}}, "/autoscaling/busyShare"),
        ({"serviceMonitor": {"interval": "1m"}}, "/serviceMonitor/interval"),
        ({"drain": {"timeoutSeconds": 0}}, "/drain/timeoutSeconds"),
    ],
)
def test_wrong_values_are_refused(values, problem):
    finished = helm("template", "ranking", str(CHART), values=values)
    assert finished.returncode == 1
    assert problem in finished.stderr


def test_schema_lists_the_settings_with_their_types_and_meaning():
    found = SCHEMA["properties"]["settings"]
    assert found == chart.settings_schema(), "run: python -m tests.support.chart"


def test_schema_lists_every_value_and_allows_no_other():
    def missing(values, schema, place=""):
        assert schema.get("additionalProperties") is not None, place
        for key, value in values.items():
            if key not in schema["properties"]:
                yield f"{place}.{key}"
            elif isinstance(value, dict) and "properties" in schema["properties"][key]:
                yield from missing(value, schema["properties"][key], f"{place}.{key}")

    assert not list(missing(yaml.safe_load((CHART / "values.yaml").read_text()), SCHEMA))


@pytest.mark.parametrize("name", VALUES)
def test_container_starts_with_valid_settings(name, monkeypatch):
    for inherited in list(os.environ):
        if inherited.startswith("GATEHOUSE_"):
            monkeypatch.delenv(inherited)
    for variable in container(name)["env"]:
        cores = math.ceil(float(container(name)["resources"]["requests"]["cpu"]))
        value = variable["value"] if "value" in variable else str(cores)
        monkeypatch.setenv(variable["name"], value)
    settings = Settings()
    given = VALUES[name].get("settings", {})
    assert {key: getattr(settings, key) for key in given} == given
    assert (settings.host, str(settings.port)) == ("0.0.0.0", CPU.last("EXPOSE").text)
    assert str(settings.store) == CPU.last("VOLUME").text
    assert settings.lanes == (None if name == "gpu" else 2)
    assert settings.device == ("cuda" if name == "gpu" else "auto")
    mounts = [mount["mountPath"] for mount in container(name)["volumeMounts"]]
    for path in (settings.policies, settings.keys_file, settings.tls_cert, settings.tls_key):
        assert path is None or str(path.parent) in mounts
    is_complete = name in ("everything", "small")
    assert (settings.policies is not None, settings.keys_file is not None) == (is_complete,) * 2


@pytest.mark.parametrize("name", VALUES)
def test_replica_drains_before_it_is_killed_and_after_it_is_known_not_to_be_ready(name):
    variables = {variable["name"]: variable.get("value") for variable in container(name)["env"]}
    delay = float(variables["GATEHOUSE_DRAIN_DELAY_S"])
    timeout = float(variables["GATEHOUSE_DRAIN_TIMEOUT_S"])
    assert pod(name)["terminationGracePeriodSeconds"] >= delay + timeout + 10
    probe = container(name)["readinessProbe"]
    noticed = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert delay > noticed


@pytest.mark.parametrize("name", VALUES)
def test_pod_has_few_rights(name):
    assert pod(name)["enableServiceLinks"] is False
    assert pod(name)["automountServiceAccountToken"] is False
    user, group = CPU.last("USER").text.split(":")
    security = pod(name)["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(user), int(group))
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for spec in (container(name), *pod(name).get("initContainers", ())):
        assert spec["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", VALUES)
def test_probes_ask_for_routes_of_the_service_with_its_scheme(name):
    paths = {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    for probe, path in paths.items():
        call = container(name)[probe]["httpGet"]
        scheme = "HTTPS" if name == "everything" else "HTTP"
        assert call == {"path": path, "port": "scoring", "scheme": scheme}


@pytest.mark.parametrize("name", VALUES)
def test_selectors_match_the_pods(name):
    labels = only(name, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        only(name, "Deployment")["spec"]["selector"]["matchLabels"],
        only(name, "Service")["spec"]["selector"],
    ]
    for kind, key in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        found = [manifest for (its_kind, _), manifest in rendered(name).items() if its_kind == kind]
        selectors += [manifest["spec"][key]["matchLabels"] for manifest in found]
    for constraint in pod(name).get("topologySpreadConstraints", ()):
        selectors.append(constraint["labelSelector"]["matchLabels"])
    assert len(selectors) >= 2
    for selector in selectors:
        assert selector.items() <= labels.items()


def test_rules_and_dashboard_are_those_of_the_folders_beside_the_chart():
    groups = only("everything", "PrometheusRule")["spec"]["groups"]
    folder = REPOSITORY / "docker" / "prometheus"
    expected = [
        group
        for file in ("rules.yml", "scaling.yml")
        for group in yaml.safe_load((folder / file).read_text())["groups"]
    ]
    assert groups == expected
    [board] = [
        manifest["data"]
        for (kind, key), manifest in rendered("everything").items()
        if kind == "ConfigMap" and key.endswith("-dashboard")
    ]
    source = REPOSITORY / "docker/grafana/dashboards/gatehouse.json"
    assert board == {"gatehouse.json": source.read_text()}


@pytest.mark.parametrize(
    ("name", "kind", "object_kind"),
    [("everything", "hpa", "HorizontalPodAutoscaler"), ("gpu", "keda", "ScaledObject")],
)
def test_autoscaler_is_the_one_that_the_command_line_renders(name, kind, object_kind):
    values = yaml.safe_load((CHART / "values.yaml").read_text())["autoscaling"]
    values |= VALUES[name]["autoscaling"]
    expected = yaml.safe_load(
        render(
            kind,
            name="ranking-gatehouse",
            namespace="prod",
            min_replicas=values["minReplicas"],
            max_replicas=values["maxReplicas"],
            busy_share=values["busyShare"],
            prometheus=values["prometheus"],
        )
    )
    found = deepcopy(only(name, object_kind))
    assert found["metadata"].pop("labels")["app.kubernetes.io/instance"] == "ranking"
    assert found == expected
    assert "replicas" not in only(name, "Deployment")["spec"]
    assert (
        expected["spec"]["scaleTargetRef"]["name"] == only(name, "Deployment")["metadata"]["name"]
    )
    assert only(name, "Service")["metadata"]["name"] == "ranking-gatehouse"  # label `service`


def test_scrapes_are_frequent_enough_for_the_windows_of_the_scaling_rules():
    monitor = only("everything", "ServiceMonitor")["spec"]["endpoints"][0]
    assert int(monitor["interval"].rstrip("s")) <= 20
    assert {"targetLabel": "job", "replacement": "gatehouse"} in monitor["relabelings"]
    assert monitor["scheme"] == "https"


def test_gpu_is_requested_and_its_taint_tolerated():
    assert container("gpu")["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": 1}
    assert pod("gpu")["runtimeClassName"] == "nvidia"
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert pod("gpu")["tolerations"] == [taint]


@pytest.mark.parametrize(
    ("name", "volume"),
    [
        ("gpu", {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}),
        ("small", {"image": {"reference": "registry/store:7", "pullPolicy": "IfNotPresent"}}),
        ("everything", {"emptyDir": {"sizeLimit": "2Gi"}}),
    ],
)
def test_store_is_mounted_read_only(name, volume):
    [found] = [listed for listed in pod(name)["volumes"] if listed["name"] == "store"]
    assert found == {"name": "store", **volume}
    [mount] = [mount for mount in container(name)["volumeMounts"] if mount["name"] == "store"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/store", True)
    assert mount.get("subPath") == ("prod" if name == "gpu" else None)


def test_keys_and_policies_have_the_format_that_the_service_reads(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(only("everything", "Secret")["stringData"]["keys"])
    assert Keys(file=keys).name_of(b"Bearer secret") == "web"
    [policies] = [
        manifest["data"]["policies.toml"]
        for (kind, key), manifest in rendered("everything").items()
        if kind == "ConfigMap" and key.endswith("-policies")
    ]
    assert policies == EVERYTHING["policies"]["toml"]


@pytest.mark.parametrize(
    ("name", "types"),
    [("defaults", ["Ingress", "Egress"]), ("everything", ["Ingress", "Egress"])],
)
def test_network_policy_denies_what_it_does_not_list(name, types):
    policy = only(name, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == types
    given = VALUES[name].get("networkPolicy", {})
    assert policy["egress"] == given.get("egress", [])
    [rule] = policy["ingress"]
    assert rule["ports"] == [{"port": "scoring", "protocol": "TCP"}]
    assert rule.get("from") == given.get("from")


def test_init_container_may_download():
    values = {"store": EVERYTHING["store"]}
    finished = helm("template", "ranking", str(CHART), values=values)
    [policy] = [
        manifest
        for manifest in kubernetes.manifests(finished.stdout)
        if manifest["kind"] == "NetworkPolicy"
    ]
    assert policy["spec"]["policyTypes"] == ["Ingress"]


def test_chart_has_the_version_of_the_project():
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert metadata["appVersion"] == CPU.labels()["org.opencontainers.image.version"]


def test_notes_say_what_is_open_and_what_is_missing():
    words = ("install", "ranking", str(CHART), "--namespace", "prod", "--dry-run=client")
    notes = helm(*words, values={"autoscaling": {"enabled": True}}).stdout
    assert "port-forward service/ranking-gatehouse 8000:8000" in notes
    assert "curl http://127.0.0.1:8000/v1/models" in notes
    assert "every caller that reaches the service may score" in notes
    assert "autoscaling has no metric without serviceMonitor.enabled" in notes
    notes = helm(*words, values={**EVERYTHING}).stdout
    assert "curl --insecure https://127.0.0.1:8000/v1/models" in notes
    assert "NOTE:" not in notes
    assert "WARNING" not in notes


def test_values_of_the_guide_are_accepted():
    guide = (REPOSITORY / "docker/helm/README.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", guide, re.S)]
    assert len(blocks) >= 4
    for values in blocks:
        finished = helm("template", "ranking", str(CHART), values=values)
        assert finished.returncode == 0, finished.stderr
    for row in re.findall(r"^\| `(\w+)` \| (?:in|a|an|copied)", guide, re.M):
        assert row in SCHEMA["properties"]["store"]["properties"]["kind"]["enum"]
    for path in re.findall(r"`((?:drain|settings|autoscaling|tls|\w+Monitor)\.\w+)`", guide):
        first, second = path.split(".")
        assert second in SCHEMA["properties"][first]["properties"], path


def test_packaged_chart_contains_the_files_that_it_links_to(tmp_path):
    command = [str(kubernetes.helm()), "package", str(CHART), "--destination", str(tmp_path)]
    subprocess.run(command, capture_output=True, check=True)
    [archive] = tmp_path.glob("gatehouse-*.tgz")
    finished = helm(
        "template", "ranking", str(archive), "--namespace", "prod", values=VALUES["everything"]
    )
    found = kubernetes.manifests(finished.stdout)
    assert found == list(rendered("everything").values())
