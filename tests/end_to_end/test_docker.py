"""Check the container files without building an image, which would need a Docker daemon."""

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
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
PROMETHEUS = ROOT / "docker/prometheus/prometheus.yml"
HAPROXY = ROOT / "docker/haproxy/haproxy.cfg"


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
    """A Dockerfile, parsed."""

    file: Path

    @cached_property
    def stages(self) -> list[list[Instruction]]:
        """Return the instructions of each stage, starting with its FROM."""
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
        """Return the last instruction of that name in the final stage: the one in effect."""
        return [step for step in self.stages[-1] if step.name == name][-1]

    def labels(self) -> dict[str, str]:
        labels = [step for step in self.stages[-1] if step.name == "LABEL"]
        return dict(word.split("=", 1) for step in labels for word in step.words)

    def environment(self) -> dict[str, str]:
        pairs = [pair for step in self.stages[-1] if step.name == "ENV" for pair in step.words]
        return dict(pair.split("=", 1) for pair in pairs)


CPU, CUDA = Image(ROOT / "Dockerfile"), Image(ROOT / "docker/cuda.Dockerfile")


@pytest.fixture(params=[CPU, CUDA], ids=["cpu", "cuda"])
def image(request) -> Image:
    parsed: Image = request.param
    return parsed


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


def test_sigterm_reaches_the_service_without_a_shell_in_between(image):
    assert json.loads(image.last("CMD").text) == ["gatehouse", "serve"]
    assert image.last("STOPSIGNAL").text == "SIGTERM"
    assert not [step for step in image.stages[-1] if step.name in ("ENTRYPOINT", "SHELL")]


def test_service_does_not_run_as_root(image):
    # A number, so that Kubernetes can check that it is not root (runAsNonRoot).
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.last("USER").text)
    names = [step.name for step in image.stages[-1]]
    assert "RUN" not in names[names.index("USER") :]


def test_demo_model_belongs_to_the_user_of_the_service(image):
    [copied] = [
        step for step in image.stages[-1] if step.words[-1:] == ["/store"] and step.name == "COPY"
    ]
    assert f"--chown={image.last('USER').text}" in copied.text


def test_settings_of_the_image_are_valid_and_match_its_port_and_volume(image, monkeypatch):
    effective = settings(monkeypatch, **image.environment())
    assert effective.host == "0.0.0.0"
    assert str(effective.port) == image.last("EXPOSE").text
    assert str(effective.store) == image.last("VOLUME").text


@pytest.mark.parametrize("file", [CPU.file, CUDA.file, COMPOSE], ids=lambda file: file.name)
def test_every_gatehouse_variable_is_a_setting(file):
    names = set(re.findall(r"GATEHOUSE_(\w+)", file.read_text()))
    assert names
    assert {name.lower() for name in names} <= set(Settings.model_fields)


def test_base_image_has_a_supported_python_version(image):
    names: list[str] = []
    for stage in image.stages:
        parent, *named = stage[0].words
        if parent not in names:
            version = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", parent)
            assert version, parent
            assert project()["requires-python"] == ">=3.11,<3.14"
            assert version[1] in ("3.11", "3.12", "3.13")
        names += named[1:]


def test_change_of_the_sources_does_not_install_the_dependencies_again(image):
    build = image.stages[1]
    locks, *later = [i for i, step in enumerate(build) if step.is_from_context]
    extras = [f"requirements-{extra}.lock" for extra in default_extras(image)]
    assert build[locks].words[:-1] == ["requirements.lock", "requirements-torch.lock", *extras]
    runs = "\n".join(step.text for step in build[locks : later[0]] if step.name == "RUN")
    assert "pip install --no-deps --require-hashes --requirement requirements.lock" in runs
    assert "--requirement requirements-torch.lock" in runs


def test_copied_files_exist_and_are_in_the_build_context(image):
    sources = [
        word
        for stage in image.stages
        for step in stage
        if step.is_from_context
        for word in step.words[:-1]
    ]
    assert {"requirements.lock", "pyproject.toml", "app", "models"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if not is_in_context(source)] == []


def is_in_context(path: str) -> bool:
    """Whether .dockerignore includes a path. The last pattern that matches decides."""
    included = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            parts = path.split("/")
            prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
            anywhere = pattern.startswith("**/")
            candidates = parts if anywhere else prefixes
            if any(fnmatch(candidate, pattern.removeprefix("**/")) for candidate in candidates):
                included = line.startswith("!")
    return included


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
def test_history_stores_tests_caches_and_secrets_are_not_in_the_build_context(path):
    assert not is_in_context(path)


def test_no_package_index_is_named_in_the_file_or_kept_in_the_final_image(image):
    arguments = {step.text for stage in image.stages for step in stage if step.name == "ARG"}
    indexes = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"}
    indexes |= {"TORCH_INDEX"} if image is CPU else set()
    assert arguments == indexes | {'EXTRAS="data otel"', "REVISION=unknown", "CREATED=unknown"}
    assert indexes.isdisjoint(step.text for step in image.stages[-1] if step.name == "ARG")
    assert "://" not in image.file.read_text()


def torch_installation(of: Image) -> str:
    [command] = [
        step.text
        for step in of.stages[1]
        if step.name == "RUN" and "requirements-torch.lock" in step.text
    ]
    return command


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (
            "",
            [
                "pip install uv==0.13.9",
                "uv pip install --python /opt/venv/bin/python --no-cache --no-deps "
                "--torch-backend cpu --requirement requirements-torch.lock",
            ],
        ),
        (
            "http://mirror/cpu",
            [
                "pip install --no-deps --index-url http://mirror/cpu "
                "--requirement requirements-torch.lock"
            ],
        ),
    ],
    ids=["default", "TORCH_INDEX"],
)
def test_cpu_image_installs_torch_from_an_index_of_cpu_wheels(tmp_path, index, expected):
    log = tmp_path / "log"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$(basename $0) $@" >> {log}\n')
    program.chmod(0o755)
    for name in ("python", "pip", "uv"):
        (tmp_path / name).symlink_to(program)
    command = torch_installation(CPU).replace("/opt/uv/bin/", f"{tmp_path}/")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TORCH_INDEX": index}
    subprocess.run(["/bin/sh", "-ec", command], env=environment, check=True)
    ran = log.read_text().splitlines()
    assert [line for line in ran if not line.startswith("python")] == expected
    [check] = [line for line in ran if line.startswith("python -c")]
    assert "assert not torch.version.cuda" in check


def default_extras(of: Image) -> list[str]:
    """Return the extras that an image has if the build argument is not given."""
    (argument,) = [step.words[0] for step in of.stages[1] if step.text.startswith("EXTRAS=")]
    return argument.removeprefix("EXTRAS=").split()


@pytest.mark.parametrize("extras", ["data otel", "otel", ""])
def test_image_installs_the_extras_of_the_build_argument_from_their_locks(image, tmp_path, extras):
    (command,) = [step.text for step in image.stages[1] if "$EXTRAS" in step.text]
    log = tmp_path / "log"
    log.touch()
    program = tmp_path / "pip"
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n! grep -q unknown {log}\n')
    program.chmod(0o755)

    def build(extras: str) -> int:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EXTRAS": extras}
        return subprocess.run(["/bin/sh", "-ec", command], env=environment, check=False).returncode

    assert build(extras) == 0
    install = "install --no-deps --require-hashes --requirement"
    assert log.read_text().splitlines() == [
        f"{install} requirements-{extra}.lock" for extra in extras.split()
    ]
    assert build("unknown data") != 0


def test_image_has_the_extras_of_the_project_that_serving_can_use(image):
    assert set(default_extras(image)) <= set(project()["optional-dependencies"])


def test_demo_of_the_image_is_that_of_the_makefile(image):
    """`make demo` and the images serve the same model from the same tables."""
    (recipe,) = re.findall(
        r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE
    )
    for old, new in (
        ("$(BIN)/python", "python"),
        ("$(BIN)/gatehouse", "python -m app"),
        ('"$(GATEHOUSE_STORE)"', image.environment()["GATEHOUSE_STORE"]),
    ):
        recipe = recipe.replace(old, new)
    demo = image.stages[2]
    assert demo[0].text.endswith(" AS demo")
    commands = " && ".join(step.text for step in demo if step.name == "RUN").split("&&")
    made = [command.strip().removesuffix(" --quiet") for command in commands if "python" in command]
    assert made == [line.strip() for line in recipe.strip().splitlines()]
    # Publishing needs pyarrow, also in an image without the extra, and a store.
    assert any("requirements-data.lock" in command for command in commands)
    assert "GATEHOUSE_STORE=/store" in [step.text for step in demo if step.name == "ENV"]


def test_labels_match_the_project_metadata(image):
    labels = image.labels()
    name = "org.opencontainers.image"
    assert labels[f"{name}.version"] == project()["version"]
    assert labels[f"{name}.licenses"] == project()["license"]
    assert labels[f"{name}.base.name"] == f"docker.io/library/{image.stages[0][0].words[0]}"
    assert (labels[f"{name}.revision"], labels[f"{name}.created"]) == ("$REVISION", "$CREATED")


def test_commit_and_time_of_a_build_do_not_invalidate_its_layers(image):
    names = [step.name for step in image.stages[-1]]
    assert names[-3:] == ["ARG", "ARG", "LABEL"]


def test_packages_keep_the_metadata_that_scanners_list(image):
    """A software bill of materials is made from the dist-info folders in site-packages."""
    assert not [step for stage in image.stages for step in stage if "dist-info" in step.text]
    copied = [step.words for step in image.stages[-1] if "--from=build" in step.text]
    assert copied == [["/opt/venv", "/opt/venv"], ["/install", "/"]]


def test_images_differ_only_in_torch_and_in_what_a_gpu_needs():
    def content(of: Image) -> set[str]:
        skipped = ("LABEL", "HEALTHCHECK")
        return {
            f"{number} {step.name} {step.text}"
            for number, stage in enumerate(of.stages)
            for step in stage
            if step.name not in skipped
        }

    cpu, cuda = torch_installation(CPU), torch_installation(CUDA)
    assert content(CPU) - content(CUDA) == {"1 ARG TORCH_INDEX", f"1 RUN {cpu}"}
    assert content(CUDA) - content(CPU) == {
        f"1 RUN {cuda}",
        "3 ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "3 ENV GATEHOUSE_DEVICE=cuda",
    }
    assert cuda.startswith("pip install --requirement requirements-torch.lock ")
    assert "assert torch.version.cuda" in cuda


# The health check


def run_health_check(folder: Path, port: int, **environment: str) -> int:
    """Run the health check of the images as Docker would, and return its exit code.

    Its programs are links in `folder`: those of the base image, and no Python.
    """
    for name in ("bash", "openssl", "timeout"):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed")
        if not (folder / name).exists():
            (folder / name).symlink_to(found)
    # A proxy that does not exist: the health check must not use it.
    environment |= {"GATEHOUSE_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    completed = subprocess.run(
        [ROOT / "docker/healthcheck"],
        env={"PATH": str(folder), **environment},
        capture_output=True,
        timeout=30,
        check=False,
    )
    return completed.returncode


def test_health_check_of_the_image_is_the_script(image):
    assert json.loads(image.last("HEALTHCHECK").text.partition("CMD")[2]) == ["healthcheck"]
    [copied] = [step for step in image.stages[-1] if "docker/healthcheck" in step.text]
    assert copied.words == ["docker/healthcheck", "/usr/local/bin/healthcheck"]
    script = ROOT / "docker/healthcheck"
    assert script.read_text().startswith("#!/bin/bash\n")
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_health_check_requests_a_route_of_the_service(status, exit_code, tmp_path):
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert run_health_check(tmp_path, server.server_port) == exit_code
        finally:
            server.shutdown()
            thread.join()
    assert requested == ["/livez"]
    assert status_of(tmp_path, requested[0]) == 200


def test_health_check_fails_if_nothing_listens_on_the_port(tmp_path):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port
    assert run_health_check(tmp_path, port) != 0


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", None], ids=["end", "other", "silence"])
def test_health_check_fails_if_something_else_listens_on_the_port(answer, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                if answer is None:
                    connection.settimeout(10)
                    while connection.recv(1000):  # until the health check gives up
                        pass
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert run_health_check(tmp_path, listener.getsockname()[1]) != 0
        thread.join()


def status_of(store: Path, path: str) -> int:
    """Return the status of a GET request to the service with an empty store."""

    async def get() -> int:
        async with gatehouse(Settings(store=store, lanes=1)) as parts:
            transport = httpx.ASGITransport(parts.app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://gatehouse"
            ) as client:
                return (await client.get(path)).status_code

    return asyncio.run(get())


# Compose


@pytest.mark.parametrize("service", ["gatehouse", "haproxy", "prometheus", "grafana"])
def test_services_run_with_few_rights_and_listen_on_loopback(service):
    confined = compose()["services"][service]
    assert confined["read_only"] is True
    assert confined["tmpfs"] == ["/tmp"]
    assert confined["cap_drop"] == ["ALL"]
    assert confined["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in confined.get("ports", ()))


def test_compose_builds_the_dockerfile_and_haproxy_uses_its_port(monkeypatch):
    service = compose()["services"]["gatehouse"]
    assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
    assert service["build"]["args"] == ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "TORCH_INDEX"]
    effective = settings(monkeypatch, **CPU.environment() | service["environment"])
    assert service["volumes"] == [f"store:{effective.store}"]
    assert f" gatehouse:{effective.port} " in HAPROXY.read_text()


def test_docker_waits_longer_than_the_drain_takes(monkeypatch):
    service = compose()["services"]["gatehouse"]
    drain = settings(monkeypatch, **CPU.environment() | service["environment"])
    assert drain.drain_delay_s > 0
    grace = re.fullmatch(r"(\d+)s", service["stop_grace_period"])
    assert grace
    assert int(grace[1]) >= drain.drain_delay_s + drain.drain_timeout_s + 5


def test_haproxy_is_pinned_and_the_only_way_to_two_replicas():
    services = compose()["services"]
    assert services["gatehouse"]["deploy"] == {"replicas": 2}
    assert "ports" not in services["gatehouse"]
    assert re.fullmatch(r"haproxy:\d+\.\d+\.\d+", services["haproxy"]["image"])
    assert services["haproxy"]["volumes"] == ["./haproxy:/usr/local/etc/haproxy:ro"]
    frontend = re.search(r"frontend gatehouse\n    bind :(\d+)\n", HAPROXY.read_text())
    assert frontend
    assert services["haproxy"]["ports"] == [f"127.0.0.1:8000:{frontend[1]}"]


def test_haproxy_accepts_its_configuration():
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if haproxy is None:
        pytest.skip("haproxy is not installed")
    checked = subprocess.run(
        [haproxy, "-c", "-f", HAPROXY], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


def test_replica_serves_until_haproxy_has_noticed_that_it_is_not_ready(monkeypatch):
    service = compose()["services"]["gatehouse"]
    drain = settings(monkeypatch, **CPU.environment() | service["environment"])
    text = HAPROXY.read_text()
    check = re.search(r"check inter (\d+)ms fastinter (\d+)ms downinter \d+ms fall 2 ", text)
    timeout = re.search(r"timeout check (\d+)ms", text)
    assert check
    assert timeout
    noticed_ms = int(check[1]) + int(check[2]) + 2 * int(timeout[1])
    assert drain.drain_delay_s * 1000 > 2 * noticed_ms


def test_prometheus_starts_after_the_health_check_of_the_image_passes():
    services = compose()["services"]
    assert "healthcheck" not in services["gatehouse"]
    assert services["prometheus"]["depends_on"] == {"gatehouse": {"condition": "service_healthy"}}


def test_prometheus_version_is_pinned_and_reads_the_configuration_file():
    prometheus = compose()["services"]["prometheus"]
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", prometheus["image"])
    mounts = [mount.split(":") for mount in prometheus["volumes"]]
    assert ["./prometheus", "/etc/prometheus", "ro"] in mounts


def test_grafana_is_pinned_and_provisioned_with_the_dashboard():
    grafana = compose()["services"]["grafana"]
    assert re.fullmatch(r"grafana/grafana:\d+\.\d+\.\d+", grafana["image"])
    mounts = {
        mount.split(":")[1]: COMPOSE.parent / mount.split(":")[0] for mount in grafana["volumes"]
    }
    provisioning = mounts["/etc/grafana/provisioning"]
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards/gatehouse.yaml").read_text())[
        "providers"
    ]
    folder = mounts[provider["options"]["path"]]
    board = json.loads((folder / "gatehouse.json").read_text())
    used = {panel["datasource"]["uid"] for panel in board["panels"] if "datasource" in panel}
    assert used == {source["uid"]}
    assert (folder / "gatehouse.json").is_file()


def test_every_named_volume_is_declared():
    declared = compose()["volumes"]
    mounts = [mount for service in compose()["services"].values() for mount in service["volumes"]]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(".")}
    assert named == set(declared)


@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, ON_GPU]], ids=["cpu", "gpu"])
def test_compose_accepts_the_files(files):
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False).returncode:
        pytest.skip("docker compose is not installed")
    named = [word for file in files for word in ("--file", file)]
    subprocess.run([docker, "compose", *named, "config", "--quiet"], check=True)


def test_gpu_compose_file_uses_the_gpu_image_and_reserves_one_gpu():
    (service,) = yaml.safe_load(ON_GPU.read_text())["services"].values()
    assert set(service) == {"image", "build", "deploy"}
    assert service["image"] != compose()["services"]["gatehouse"]["image"]
    assert (
        ROOT / service["build"].pop("dockerfile") == CUDA.file
    )  # relative to the build context of compose.yaml
    assert not service["build"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


# Prometheus


def test_prometheus_scrapes_the_service(monkeypatch, tmp_path):
    job, balancer = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    port = settings(monkeypatch, **CPU.environment()).port
    assert job["job_name"] == "gatehouse"
    [replicas] = job["dns_sd_configs"]
    assert (replicas["names"], replicas["type"], replicas["port"]) == (["gatehouse"], "A", port)
    assert balancer["static_configs"] == [{"targets": ["haproxy:8405"]}]
    assert "bind :8405" in HAPROXY.read_text()
    assert "gatehouse" in compose()["services"]
    assert status_of(tmp_path, job.get("metrics_path", "/metrics")) == 200


def test_promtool_accepts_the_configuration_file():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    subprocess.run([promtool, "check", "config", PROMETHEUS], check=True, stdout=subprocess.DEVNULL)


def test_hadolint_finds_nothing(image):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, image.file], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
