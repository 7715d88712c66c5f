"""Every server that is compared: how it starts, its settings, its requests and its responses."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import orjson

from app.benchmarking.requests import Post
from tests import REPOSITORY
from tests.bench import own_artifact
from tests.bench.dialects import v2_binary, v2_json
from tests.bench.http import COLUMNS, TASKS, candidates, native
from tests.bench.peers.environments import FOLDER, python_of
from tests.bench.peers.tables import OURS, TWO
from tests.support.server import clean_environment, free_port

Scores = npt.NDArray[np.float32]  # [rows, TASKS]
Settings = Mapping[str, str]
SERVERS = Path(__file__).with_name("servers")
_MARK = "GATEHOUSE_BENCH_PEER"
_START_S = 240.0  # imports from a cold disk take long


@dataclass(frozen=True, slots=True)
class Form:
    """How requests and responses of a server are written, and which model they are for."""

    post: Callable[[int], Post]
    read: Callable[[bytes, Mapping[str, str]], Scores]
    model: str = "reference"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server.

    Attributes:
        name: as in the tables.
        forms: `binary`, `json`, `ids` (keys of a table only) and `own` (our own artifact, see
            `tests.bench.own_artifact`), as far as it has them.
        sweep: the settings that are tried, as environment variables of its script.
        command: returns the command that starts it, from its port, its settings and a folder.
        package: the environment of its packages; empty for Gatehouse.
    """

    name: str
    forms: Mapping[str, Form]
    sweep: Sequence[Settings]
    command: Callable[[int, Settings, Path], Sequence[str | Path]]
    package: str = ""


def settings(**values: Sequence[object]) -> list[Settings]:
    """Return every combination of values."""
    names = list(values)
    return [
        dict(zip(names, map(str, combination), strict=True))
        for combination in itertools.product(*values.values())
    ]


def _x(rows: int) -> npt.NDArray[np.float32]:
    return candidates([rows]).candidate["x"]


def _bare(path: str) -> Form:
    """Return bare float32, both ways."""

    def post(rows: int) -> Post:
        return Post(path, _x(rows).tobytes(), {"content-type": "application/octet-stream"})

    return Form(post, lambda body, _: np.frombuffer(body, np.float32).reshape(-1, len(TASKS)))


def _json(path: str, read: Callable[[object], object] = lambda document: document) -> Form:
    """Return rows of numbers as JSON, both ways."""

    def post(rows: int) -> Post:
        body = orjson.dumps({"x": _x(rows)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Post(path, body, {"content-type": "application/json"})

    return Form(post, lambda body, _: np.array(read(json.loads(body)), np.float32))


def _ids(rows: int) -> Post:
    """Return a request that has the keys of its candidates only; a table has their features."""
    body = orjson.dumps({"candidates": list(range(rows))})
    return Post("/v1/score", body, {"content-type": "application/json"})


def items_file(folder: Path, rows: int) -> Path:
    """Write the candidates of a request as a file for `gatehouse items publish`."""
    file = folder / "items.jsonl"
    lines = [orjson.dumps({"item_id": n, "x": row.tolist()}) for n, row in enumerate(_x(rows))]
    file.write_bytes(b"\n".join(lines))
    return file


def _read_native(body: bytes, _: Mapping[str, str]) -> Scores:
    scores = json.loads(body)["scores"]
    return np.array([scores[task] for task in TASKS], np.float32).T


def _read_v2(body: bytes, headers: Mapping[str, str]) -> Scores:
    """Return the scores of a V2 response: an output per task, or one with a column per task."""
    length = int(headers.get("inference-header-content-length", len(body)))
    outputs = json.loads(body[:length])["outputs"]
    found, start = {}, length
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.array(output["data"], np.float32)
        else:
            values = np.frombuffer(body[start : start + size], np.float32)
            start += size
        found[output["name"]] = values.reshape(output["shape"])
    if "scores" in found:
        return found["scores"].reshape(-1, len(TASKS))
    return np.stack([found[task].reshape(-1) for task in TASKS], axis=1)


def _triton_command(port: int, chosen: Settings, folder: Path) -> Sequence[str | Path]:
    """Write a model repository and return the command that serves it."""
    (server,) = FOLDER.glob("triton/lib/python3.*/site-packages/pytriton/tritonserver")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    model = folder / "repository" / "reference"
    (model / "1").mkdir(parents=True, exist_ok=True)
    # The Python inside Triton knows neither the environment nor PYTHONPATH.
    paths = f"import sys\nsys.path[:0] = {[*map(str, _paths('triton'))]}\n"
    (model / "1" / "model.py").write_text(paths + (SERVERS / "triton_model.py").read_text())
    beside = server / "backends" / "python" / stub.name  # where the backend looks for it
    if not beside.exists():
        shutil.copy2(stub, beside)
        beside.chmod(0o755)
    wait_us = int(float(chosen["WAIT_MS"]) * 1e3)
    (model / "config.pbtxt").write_text(f"""\
name: "reference"
backend: "python"
max_batch_size: 1024
input [{{ name: "x" data_type: TYPE_FP32 dims: [{COLUMNS}] }}]
output [{{ name: "scores" data_type: TYPE_FP32 dims: [{len(TASKS)}] }}]
instance_group [{{ count: {chosen["WORKERS"]} kind: KIND_CPU }}]
dynamic_batching {{ max_queue_delay_microseconds: {wait_us} }}
""")
    return [
        server / "bin" / "tritonserver",
        f"--model-repository={model.parent}",
        f"--backend-directory={server / 'backends'}",
        f"--http-port={port}",
        "--http-address=127.0.0.1",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--log-info=false",
    ]


def _mlserver_command(port: int, chosen: Settings, folder: Path) -> Sequence[str | Path]:
    """Write the settings of server and model and return the command that serves them."""
    (folder / "settings.json").write_text(
        json.dumps(
            {
                "http_port": port,
                "grpc_port": free_port(),
                "metrics_port": free_port(),
                "host": "127.0.0.1",
                "parallel_workers": int(chosen["WORKERS"]),
                "debug": False,
                "environments_dir": str(folder),
            }
        )
    )
    batching = {
        "max_batch_size": int(chosen["BATCH"]),
        "max_batch_time": float(chosen["WAIT_MS"]) / 1e3,
    }
    if batching["max_batch_size"] <= 1:
        batching = {}
    (folder / "model-settings.json").write_text(
        json.dumps({"name": "reference", "implementation": "mlserver_model.Ranking", **batching})
    )
    return [FOLDER / "mlserver" / "bin" / "mlserver", "start", folder]


def _script(peer: str) -> Callable[[int, Settings, Path], Sequence[str | Path]]:
    script = SERVERS / f"{peer}_server.py"
    return lambda _port, _chosen, _folder: [FOLDER / peer / "bin" / "python", "-P", script]


def _mosec_command(port: int, _: Settings, __: Path) -> Sequence[str | Path]:
    script = SERVERS / "mosec_server.py"
    options = ["--port", str(port), "--timeout", "60000", "--log-level", "error"]
    return [FOLDER / "mosec" / "bin" / "python", "-P", script, *options]


def _bentoml_command(port: int, _: Settings, __: Path) -> Sequence[str | Path]:
    bentoml = FOLDER / "bentoml" / "bin" / "bentoml"
    return [bentoml, "serve", "bentoml_server:Ranking", "--port", str(port), "--host", "127.0.0.1"]


def _gatehouse_command(port: int, _: Settings, folder: Path) -> Sequence[str | Path]:
    """Return the command; its settings are those of Gatehouse, which it reads itself."""
    store = folder / "store"
    options = ("--store", str(store), "--default-model", "reference", "--port", str(port))
    return [sys.executable, "-m", "app", "serve", *options]


_MLSERVER = Form(v2_json, _read_v2)
_FIT = (1, 2)  # processes that compute, on two cores
PEERS = [
    Peer(
        OURS,
        {
            "binary": Form(v2_binary, _read_v2),
            "json": Form(native, _read_native),
            "ids": Form(_ids, _read_native),
            "own": Form(own_artifact.request, _read_v2, own_artifact.MODEL),
        },
        [{}],
        _gatehouse_command,
    ),
    Peer(
        TWO,
        {"binary": Form(v2_binary, _read_v2), "json": Form(native, _read_native)},
        [{"GATEHOUSE_PROCESSES": "2"}],
        _gatehouse_command,
    ),
    Peer(
        "Triton",
        {"binary": Form(v2_binary, _read_v2), "json": Form(v2_json, _read_v2)},
        settings(WORKERS=_FIT, WAIT_MS=(0, 2)),
        _triton_command,
        "triton",
    ),
    Peer(
        "mosec",
        {"binary": _bare("/inference"), "json": _json("/inference")},
        settings(WORKERS=_FIT, BATCH=(8, 32), WAIT_MS=(2,)),
        _mosec_command,
        "mosec",
    ),
    Peer(
        "LitServe",
        {"json": _json("/predict", lambda document: document["scores"])},  # type: ignore[index]
        settings(WORKERS=_FIT, BATCH=(1, 32), WAIT_MS=(2,)),
        _script("litserve"),
        "litserve",
    ),
    Peer(
        "Ray Serve",
        {"binary": _bare("/"), "json": _json("/")},
        settings(WORKERS=_FIT, BATCH=(32,), WAIT_MS=(0, 2)),
        _script("ray"),
        "ray",
    ),
    Peer(
        "BentoML",
        {"json": _json("/score")},
        settings(WORKERS=_FIT, BATCH=(32,), WAIT_MS=(0,)),
        _bentoml_command,
        "bentoml",
    ),
    Peer(
        "MLServer",
        {"json": _MLSERVER},
        settings(WORKERS=(0, *_FIT), BATCH=(1,), WAIT_MS=(0,))
        + settings(WORKERS=_FIT, BATCH=(32,), WAIT_MS=(2,)),
        _mlserver_command,
        "mlserver",
    ),
    Peer(
        "FastAPI + torch",
        {"binary": _bare("/binary"), "json": _json("/json")},
        settings(WORKERS=_FIT),
        _script("fastapi"),
        "fastapi",
    ),
]


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs: its address, and the mark in the environment of all its processes."""

    peer: Peer
    form: str
    url: str
    mark: str

    def processes(self) -> list[int]:
        """Return the ids of all its processes, whoever their parents are."""
        return marked(self.mark)

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes (s)."""
        total = 0.0
        for pid in self.processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            total += sum(map(int, fields[11:15]))  # user, system, and those of children that ended
        return total / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Return the memory of all its processes; what they share counts once (PSS)."""
        total = 0
        for pid in self.processes():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except (OSError, ProcessLookupError):
                continue
            total += int(text.partition("Pss:")[2].split()[0]) * 1024
        return total


def marked(mark: str) -> list[int]:
    """Return the processes that have a mark in their environment."""
    found = []
    entry = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except (OSError, ProcessLookupError):
            continue
    return found


@contextmanager
def running(
    peer: Peer, form: str, chosen: Settings, program: Path, folder: Path
) -> Iterator[Running]:
    """Start a server, wait until it answers, check its scores' shape, and end it afterwards.

    Args:
        peer: the server.
        form: how its requests are written.
        chosen: its settings.
        program: the TorchScript file.
        folder: for its files; Gatehouse's has the store.

    Raises:
        RuntimeError: it does not answer in time; with the end of its log.
    """
    if peer.package:
        python_of(peer.package)
    port, mark = free_port(), uuid.uuid4().hex
    environment = {
        **clean_environment(),
        **chosen,
        _MARK: mark,
        "MODEL": str(program),
        "FORM": form,
        "PORT": str(port),
        "PYTHONPATH": os.pathsep.join(map(str, _paths(peer.package))),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "1",
    }
    log = folder / f"{peer.package or peer.name}-{form}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            peer.command(port, chosen, folder),
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Running(peer, form, f"http://127.0.0.1:{port}", mark)
    try:
        _wait(server, process, log)
        yield server
    finally:
        _end(process, mark)


def _paths(package: str) -> list[Path]:
    """Return where a server's Python finds modules, besides the standard library."""
    if not package:
        return [REPOSITORY]
    return [SERVERS, *(FOLDER / package / "lib").glob("python3.*/site-packages")]


def _wait(server: Running, process: subprocess.Popen[bytes], log: Path) -> None:
    post = server.peer.forms[server.form].post(1)
    patience = time.monotonic() + _START_S
    while time.monotonic() < patience and process.poll() is None:
        try:
            answer = httpx.post(
                server.url + post.path, content=post.body, headers=dict(post.headers), timeout=30
            )
        except httpx.TransportError:
            pass
        else:
            if answer.status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{server.peer.name} does not answer:\n{log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Ask the server to end; kill what is left of its processes."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    patience = time.monotonic() + 10
    while marked(mark) and time.monotonic() < patience:
        process.poll()  # a process that has ended is listed until then
        time.sleep(0.2)
    for pid in marked(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def check(
    server: Running, expected: Mapping[str, Callable[[int], Scores]], sizes: Sequence[int]
) -> None:
    """Compare a server's scores with those of the model in process, by the model's name.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    form = server.peer.forms[server.form]
    for rows in sizes:
        post = form.post(rows)
        answer = httpx.post(
            server.url + post.path, content=post.body, headers=dict(post.headers), timeout=60
        )
        assert answer.status_code == 200, f"{server.peer.name}: {answer.status_code} {answer.text}"
        scores = form.read(answer.content, answer.headers)
        np.testing.assert_allclose(
            scores, expected[form.model](rows), rtol=2e-5, atol=2e-6, err_msg=server.peer.name
        )
