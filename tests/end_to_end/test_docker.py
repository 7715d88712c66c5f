"""The container files keep their promises. Nothing here builds an image: that needs an engine."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import yaml

from app.main import gatehouse
from app.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker/compose.yaml"
ON_GPU = ROOT / "docker/compose.gpu.yaml"
PROMETHEUS = ROOT / "docker/prometheus.yml"


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        return [word for word in shlex.split(self.text) if not word.startswith("--")]

    @property
    def is_from_context(self) -> bool:
        return self.name == "COPY" and "--from=" not in self.text


@dataclass(frozen=True)
class Image:
    """What a Dockerfile says of the image that it builds."""

    file: Path

    @cached_property
    def stages(self) -> list[list[Instruction]]:
        """The instructions by stage, each stage from its FROM on."""
        lines = [line for line in self.file.read_text().splitlines() if not line.startswith("#")]
        found: list[list[Instruction]] = []
        for line in "\n".join(lines).replace("\\\n", " ").splitlines():
            if line.strip():
                instruction = Instruction(*line.split(maxsplit=1))
                if instruction.name == "FROM":
                    found.append([])
                found[-1].append(instruction)
        return found

    def last(self, name: str) -> Instruction:
        """What the image's configuration says: the last instruction of that name."""
        return [each for each in self.stages[-1] if each.name == name][-1]

    def environment(self) -> dict[str, str]:
        pairs = [pair for each in self.stages[-1] if each.name == "ENV" for pair in each.words]
        return dict(pair.split("=", 1) for pair in pairs)


CPU, CUDA = Image(ROOT / "Dockerfile"), Image(ROOT / "docker/cuda.Dockerfile")


@pytest.fixture(params=[CPU, CUDA], ids=["cpu", "cuda"])
def built(request) -> Image:
    image: Image = request.param
    return image


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def compose():
    return yaml.safe_load(COMPOSE.read_text())


def settings(monkeypatch, **environment: str) -> Settings:
    for name in list(os.environ):
        if name.startswith("GATEHOUSE_"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings()


# The image


def test_sigterm_reaches_the_service_and_no_shell(built):
    assert json.loads(built.last("CMD").text) == ["gatehouse", "serve"]
    assert built.last("STOPSIGNAL").text == "SIGTERM"
    assert not [each for each in built.stages[-1] if each.name in ("ENTRYPOINT", "SHELL")]


def test_the_service_does_not_run_as_root(built):
    # By number, so that Kubernetes can tell that it is not root.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", built.last("USER").text)
    names = [each.name for each in built.stages[-1]]
    assert "RUN" not in names[names.index("USER") :]


def test_the_demo_model_belongs_to_the_user(built):
    [copied] = [
        each for each in built.stages[-1] if each.words[-1:] == ["/store"] and each.name == "COPY"
    ]
    assert f"--chown={built.last('USER').text}" in copied.text


def test_the_settings_of_the_image_are_valid_and_agree_with_it(built, monkeypatch):
    image = settings(monkeypatch, **built.environment())
    assert image.host == "0.0.0.0"
    assert str(image.port) == built.last("EXPOSE").text
    assert str(image.store) == built.last("VOLUME").text


@pytest.mark.parametrize("file", [CPU.file, CUDA.file, COMPOSE], ids=lambda file: file.name)
def test_every_variable_is_a_setting(file):
    names = set(re.findall(r"GATEHOUSE_(\w+)", file.read_text()))
    assert names
    assert {name.lower() for name in names} <= set(Settings.model_fields)


def test_the_base_is_pinned_to_a_python_that_the_project_supports(built):
    names: list[str] = []
    for stage in built.stages:
        image, *named = stage[0].words
        if image not in names:
            version = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", image)
            assert version, image
            assert project()["requires-python"] == ">=3.11,<3.14"
            assert version[1] in ("3.11", "3.12", "3.13")
        names += named[1:]


def test_a_change_of_the_sources_does_not_install_the_dependencies_again(built):
    build = built.stages[1]
    installed = next(i for i, each in enumerate(build) if "requirements.lock" in each.text)
    assert build[installed].is_from_context
    assert build[installed].words[0] == "requirements.lock"
    assert "pip install --requirement requirements.lock" in build[installed + 1].text
    assert not any(each.is_from_context for each in build[:installed])


def test_what_is_copied_exists_and_is_let_into_the_context(built):
    sources = [
        word
        for stage in built.stages
        for each in stage
        if each.is_from_context
        for word in each.words[:-1]
    ]
    assert {"requirements.lock", "pyproject.toml", "app", "models"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if not is_in_context(source)] == []


def is_in_context(path: str) -> bool:
    """Whether .dockerignore lets a path in: its last pattern that matches decides."""
    verdict = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            parts = path.split("/")
            prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
            anywhere = pattern.startswith("**/")
            candidates = parts if anywhere else prefixes
            if any(fnmatch(each, pattern.removeprefix("**/")) for each in candidates):
                verdict = line.startswith("!")
    return verdict


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "app/.env",
        "app/__pycache__/main.pyc",
        "id_rsa",
        "store/feed/1/model.ts",
        "tests/end_to_end/test_docker.py",
    ],
)
def test_history_stores_tests_caches_and_secrets_stay_out_of_the_context(path):
    assert not is_in_context(path)


def test_no_index_is_named_and_none_reaches_the_final_image(built):
    arguments = [each.text for stage in built.stages for each in stage if each.name == "ARG"]
    assert arguments == ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"]
    assert not [each for each in built.stages[-1] if each.name == "ARG"]
    assert "://" not in re.sub(r"http://127\.0\.0\.1", "", built.file.read_text())


def test_the_labels_agree_with_the_project(built):
    labels = dict(word.split("=", 1) for word in built.last("LABEL").words)
    assert labels["org.opencontainers.image.version"] == project()["version"]
    assert labels["org.opencontainers.image.licenses"] == project()["license"]


def test_the_gpu_image_differs_in_what_a_gpu_needs_and_in_nothing_else():
    def content(image: Image) -> set[str]:
        skipped = ("LABEL", "HEALTHCHECK")
        return {
            f"{number} {each.name} {each.text}"
            for number, stage in enumerate(image.stages)
            for each in stage
            if each.name not in skipped
        }

    added = content(CUDA) - content(CPU)
    (gone,) = content(CPU) - content(CUDA)
    assert gone == "1 RUN pip install --requirement requirements.lock"
    (installed,) = [each for each in added if each.startswith(gone)]
    assert "torch.version.cuda" in installed
    assert added - {installed} == {
        "3 ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "3 ENV GATEHOUSE_DEVICE=cuda",
    }
    assert (
        CUDA.last("HEALTHCHECK").text.partition("CMD")[2]
        == (CPU.last("HEALTHCHECK").text.partition("CMD")[2])
    )


# The health check


def probe(built: Image, port: int, **more: str) -> int:
    """Run HEALTHCHECK's command as the engine would, and return its exit code."""
    command = json.loads(built.last("HEALTHCHECK").text.partition("CMD")[2])
    command[0] = {"python": sys.executable}[command[0]]
    # A proxy where nobody listens: the check must not ask it.
    environment = {"GATEHOUSE_PORT": str(port), "http_proxy": "http://127.0.0.1:1", **more}
    ran = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
    return ran.returncode


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_a_route_of_the_service(built, status, exit_code, tmp_path):
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert probe(built, server.server_port) == exit_code
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["/livez"]
    assert ask(tmp_path, asked[0]) == 200


def test_the_health_check_fails_where_nobody_listens(built):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    assert probe(built, port) == 1


def ask(store: Path, path: str) -> int:
    """The status of a GET from the service on an empty store."""

    async def asking() -> int:
        async with gatehouse(Settings(store=store, lanes=1)) as parts:
            transport = httpx.ASGITransport(parts.app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://gatehouse"
            ) as client:
                return (await client.get(path)).status_code

    return asyncio.run(asking())


# Compose


@pytest.mark.parametrize("service", ["gatehouse", "prometheus"])
def test_services_are_confined(service):
    confined = compose()["services"][service]
    assert confined["read_only"] is True
    assert confined["tmpfs"] == ["/tmp"]
    assert confined["cap_drop"] == ["ALL"]
    assert confined["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in confined["ports"])


def test_compose_builds_this_dockerfile_and_publishes_its_port(monkeypatch):
    service = compose()["services"]["gatehouse"]
    assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
    assert service["build"]["args"] == ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"]
    image = settings(monkeypatch, **CPU.environment() | service["environment"])
    assert service["ports"] == [f"127.0.0.1:8000:{image.port}"]
    assert service["volumes"] == [f"store:{image.store}"]


def test_the_engine_waits_for_the_drain(monkeypatch):
    service = compose()["services"]["gatehouse"]
    drain = settings(monkeypatch, **CPU.environment() | service["environment"])
    assert drain.drain_delay_s > 0
    grace = re.fullmatch(r"(\d+)s", service["stop_grace_period"])
    assert grace
    assert int(grace[1]) >= drain.drain_delay_s + drain.drain_timeout_s + 5


def test_the_health_check_of_the_image_is_inherited_and_waited_for():
    services = compose()["services"]
    assert "healthcheck" not in services["gatehouse"]
    assert services["prometheus"]["depends_on"] == {"gatehouse": {"condition": "service_healthy"}}


def test_prometheus_is_pinned_and_reads_our_file():
    prometheus = compose()["services"]["prometheus"]
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", prometheus["image"])
    mounts = [mount.split(":") for mount in prometheus["volumes"]]
    assert ["./prometheus.yml", "/etc/prometheus/prometheus.yml", "ro"] in mounts


def test_every_named_volume_is_declared():
    declared = compose()["volumes"]
    mounts = [mount for service in compose()["services"].values() for mount in service["volumes"]]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(".")}
    assert named == set(declared)


@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, ON_GPU]], ids=["cpu", "gpu"])
def test_compose_accepts_the_file(files):
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False).returncode:
        pytest.skip("docker compose is not installed")
    named = [word for file in files for word in ("--file", file)]
    subprocess.run([docker, "compose", *named, "config", "--quiet"], check=True)


def test_on_a_gpu_the_image_is_another_and_one_gpu_is_reserved():
    (service,) = yaml.safe_load(ON_GPU.read_text())["services"].values()
    assert set(service) == {"image", "build", "deploy"}
    assert service["image"] != compose()["services"]["gatehouse"]["image"]
    assert ROOT / service["build"].pop("dockerfile") == CUDA.file  # from the context of the other
    assert not service["build"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


# Prometheus


def test_prometheus_scrapes_the_service(monkeypatch, tmp_path):
    [job] = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    port = settings(monkeypatch, **CPU.environment()).port
    assert job["job_name"] == "gatehouse"
    assert job["static_configs"] == [{"targets": [f"gatehouse:{port}"]}]
    assert "gatehouse" in compose()["services"]
    assert ask(tmp_path, job.get("metrics_path", "/metrics")) == 200


def test_promtool_accepts_the_file():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    subprocess.run([promtool, "check", "config", PROMETHEUS], check=True, stdout=subprocess.DEVNULL)


def test_hadolint_has_nothing_to_say(built):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    said = subprocess.run([hadolint, built.file], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")
