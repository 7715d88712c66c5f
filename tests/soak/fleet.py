"""Replicas behind HAProxy come and go under load; every response is checked.

    python -m tests.soak.fleet [--callers 8] [--seconds 4]

Three replicas run in network namespaces behind a real HAProxy with docker/haproxy/haproxy.cfg.
Callers send requests without a pause, with the retries of tests/clients/score.py. Meanwhile
replicas are restarted, get a new version, are killed, cut off, stopped, and slowed down. The
model's scores identify the request and the version. The soak checks that every call succeeds, and
that each response has the scores of its own request by one version, and the id of its request. It
prints a table by scene: "retried" are attempts of clients, "redispatched" those that HAProxy made
by itself.

Needs root, `ip` and haproxy. The exit code is 0 if all checks pass.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import orjson
from prometheus_client.parser import text_string_to_metric_families

from app.artifacts.store import Store
from tests import REPOSITORY
from tests.clients import score as client
from tests.soak.model import NAME, publish_echo
from tests.support.server import clean_environment

REPLICAS = 3
BUDGET_S = 5.0
_CONFIGURATION = REPOSITORY / "docker" / "haproxy" / "haproxy.cfg"
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_DRAIN_DELAY_S = 1.5
_PATIENCE_S = 60.0
_CANDIDATES = 20
_BALLAST = 20_000
"""Bytes that make every fourth request too large for HAProxy to keep for a second attempt."""


def missing() -> str:
    """Return what this machine lacks, or an empty text."""
    for program in ("ip", "haproxy"):
        if shutil.which(program, path=_PATH) is None:
            return f"{program} is not installed"
    name = f"gh{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    ip("netns", "del", name)
    return ""


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Network:
    """A bridge in a namespace of its own, to which the replicas' namespaces are connected.

    Attributes:
        name: of the namespace of the bridge, and the beginning of those of the replicas.
        host: address of the bridge's namespace, as this process reaches it.
    """

    name: str
    host: str

    def replica(self, number: int) -> str:
        """Return the namespace of a replica."""
        return f"{self.name}-{number}"

    @staticmethod
    def address(number: int) -> str:
        """Return the address of a replica behind the bridge."""
        return f"198.19.0.{10 + number}"

    def inside(self, *arguments: str) -> None:
        """Run `ip` in the namespace of the bridge."""
        ip("-netns", self.name, *arguments)

    def cut_off(self, number: int) -> None:
        """Lose every packet from and to a replica, without an error at either side."""
        self.inside("link", "set", f"port{number}", "nomaster")

    def connect(self, number: int) -> None:
        """Carry the packets of a replica again."""
        self.inside("link", "set", f"port{number}", "master", "bridge")

    def slow_down(self, number: int, rate: str) -> None:
        """Carry this many bits per second from a replica."""
        shape = ("root", "tbf", "rate", rate, "burst", "3kb", "latency", "2s")
        command = ["tc", "-netns", self.replica(number), "qdisc", "replace", "dev", "eth0", *shape]
        subprocess.run(command, check=True, capture_output=True)

    def speed_up(self, number: int) -> None:
        """End `slow_down`."""
        command = ["tc", "-netns", self.replica(number), "qdisc", "del", "dev", "eth0", "root"]
        subprocess.run(command, check=True, capture_output=True)


@contextmanager
def network() -> Iterator[Network]:
    """Make the namespaces, and remove them afterwards."""
    # 198.18.0.0/15 is reserved for benchmarks (RFC 2544); other runs take other parts of it.
    prefix, name = f"198.18.{os.getpid() % 256}", f"gh{os.getpid()}"
    net = Network(name, f"{prefix}.2")
    with ExitStack() as stack:
        for namespace in (name, *map(net.replica, range(REPLICAS))):
            ip("netns", "add", namespace)
            stack.callback(ip, "netns", "del", namespace)
            ip("-netns", namespace, "link", "set", "lo", "up")
        ip("link", "add", name, "type", "veth", "peer", "name", "out", "netns", name)
        ip("address", "add", f"{prefix}.1/30", "dev", name)
        ip("link", "set", name, "up")
        net.inside("address", "add", f"{prefix}.2/30", "dev", "out")
        net.inside("link", "set", "out", "up")
        net.inside("link", "add", "bridge", "type", "bridge")
        net.inside("address", "add", "198.19.0.1/24", "dev", "bridge")
        net.inside("link", "set", "bridge", "up")
        for number in range(REPLICAS):
            inner, port = net.replica(number), f"port{number}"
            net.inside("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", inner)
            net.connect(number)
            net.inside("link", "set", port, "up")
            ip("-netns", inner, "address", "add", f"{net.address(number)}/24", "dev", "eth0")
            ip("-netns", inner, "link", "set", "eth0", "up")
        yield net


@dataclass
class Fleet:
    """Replicas behind HAProxy.

    Attributes:
        net: connects them.
        store: they all read it.
        logs: folder of their logs.
        processes: the replicas.
    """

    net: Network
    store: Store
    logs: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The URL of the load balancer."""
        return f"http://{self.net.host}:8000"

    def start(self, number: int) -> None:
        """Start a replica."""
        flags = ("--drain-delay-s", str(_DRAIN_DELAY_S), "--store-poll-s", "60", "--lanes", "1")
        with (self.logs / f"replica-{number}").open("ab") as log:
            process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.net.replica(number)),
                    *(sys.executable, "-m", "app", "serve", "--host", "0.0.0.0", *flags),
                    *("--store", str(self.store.folder)),
                ],
                stderr=log,
                cwd=REPOSITORY,
                env=clean_environment(),
            )
        self.processes[number : number + 1] = [process]

    def send(self, number: int, what: signal.Signals) -> None:
        """Send a signal to a replica (`ip netns exec` has become its process)."""
        self.processes[number].send_signal(what)

    def samples(self, name: str, **labels: str) -> float:
        """Return the sum of a metric of HAProxy."""
        text = httpx.get(f"http://{self.net.host}:8405/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_until_up(self, count: int = REPLICAS) -> None:
        """Wait until HAProxy sends requests to so many replicas."""
        up = {"proxy": "gatehouse", "state": "UP"}
        self.until(lambda: self.samples("haproxy_server_status", **up) == count)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        patience = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > patience:
                raise TimeoutError("\n".join(log.read_text() for log in self.logs.iterdir()))
            time.sleep(0.05)


@contextmanager
def fleet(store: Store, logs: Path) -> Iterator[Fleet]:
    """Start the replicas and HAProxy; kill them afterwards."""
    with network() as net, (logs / "haproxy").open("wb") as log:
        running = Fleet(net, store, logs)
        addresses = {f"REPLICA_{n + 1}": f"{net.address(n)}:8000" for n in range(REPLICAS)}
        try:
            for number in range(REPLICAS):
                running.start(number)
            haproxy = subprocess.Popen(
                ["ip", "netns", "exec", net.name, "haproxy", "-f", _CONFIGURATION],
                stdout=log,
                stderr=log,
                env=clean_environment() | addresses | {"PATH": _PATH},
            )
            running.processes.append(haproxy)
            running.until(lambda: _answers(running.url))
            running.wait_until_up()
            yield running
        finally:
            for process in running.processes:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


class CountedRetries(client.RetryBudget):
    """The documented retry budget, which also counts the retries that it grants."""

    def __init__(self) -> None:
        super().__init__()
        self.granted = 0

    def take_retry(self) -> bool:
        """Grant a retry if there is a token."""
        is_granted = super().take_retry()
        self.granted += is_granted
        return is_granted


@dataclass
class Tally:
    """What callers saw in one scene: latencies (s), failures and mixed responses."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    def row(self, scene: str, *cells: str) -> str:
        """Return a row of the table; `cells` are those between the faults and the latencies."""
        p50_ms, p99_ms = np.quantile(self.latencies, [0.5, 0.99]) * 1e3
        counts = (f"{len(seen):7}" for seen in (self.latencies, self.failures, self.mixed))
        cells = (f"{scene:18}", *counts, *cells, f"{p50_ms:6.1f}", f"{p99_ms:6.1f}")
        return f"| {' | '.join(cells)} |"


class Callers:
    """Threads that call without a pause, each with one request at a time."""

    def __init__(self, url: str, count: int) -> None:
        self.retries = CountedRetries()
        self.tally = Tally()
        self.versions: set[int] = set()
        self._url, self._is_over = url, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n, count)) for n in range(count)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, caller: int, step: int) -> None:
        headers = {"content-type": "application/json"}
        with httpx.Client(base_url=self._url, headers=headers) as http:
            number = caller
            while not self._is_over.is_set():
                number += step  # its own for each request; float32 has 2^24 of them
                self._call(http, number)
                time.sleep(0.005)  # leaves CPU time to the replicas

    def _call(self, http: httpx.Client, number: int) -> None:
        user, values = number % (1 << 24), [float(position) for position in range(_CANDIDATES)]
        body = orjson.dumps({"user": {"u": user}, "candidates": {"c": values}})
        body += b" " * _BALLAST * (number % 4 == 0)
        tally, began = self.tally, time.perf_counter()  # of the scene in which it begins
        try:
            response = client.score(http, NAME, body, BUDGET_S, self.retries)
        except httpx.TransportError as error:
            tally.failures.append(repr(error))
            return
        finally:
            tally.latencies.append(time.perf_counter() - began)
        if response.status_code != 200:
            tally.failures.append(f"{response.status_code} {response.text[:200]}")
        elif found := self._fault(response, user, values):
            tally.mixed.append(found)

    def _fault(self, response: httpx.Response, user: int, values: Sequence[float]) -> str:
        """Return what is wrong with a response, or an empty text."""
        document = response.json()
        version, scores = document["version"], document["scores"]
        self.versions.add(version)
        if scores["version"] != [version] * len(values):
            return f"mixed versions: {scores['version']}, {version}"
        if scores["sum"] != [user + value for value in values]:
            return f"scores of another request: {scores['sum']}"
        # Ray Serve's proxy adds the header a second time.
        ids = set(response.headers.get_list("x-request-id"))
        if ids != {response.request.headers["x-request-id"]}:
            return "id of another request"
        return ""


Scene = Callable[[Fleet, float], None]


def quiet(_running: Fleet, seconds: float) -> None:
    """Nothing happens."""
    time.sleep(seconds)


def rolling_restart(running: Fleet, _seconds: float, replicas: int = REPLICAS) -> None:
    """SIGTERM to each replica in turn; the next one when HAProxy has the new one."""
    for number in range(replicas):
        running.send(number, signal.SIGTERM)
        assert running.processes[number].wait(_PATIENCE_S) == 0
        running.start(number)
        running.wait_until_up()


def restart_of_one(running: Fleet, seconds: float) -> None:
    """SIGTERM to one replica."""
    rolling_restart(running, seconds, 1)


def new_version(running: Fleet, seconds: float) -> None:
    """A new version for all replicas at once."""
    version = publish_echo(running.store).version
    for number in range(REPLICAS):
        running.send(number, signal.SIGHUP)
    active = f"{running.url}/v1/models/{NAME}"
    for _ in range(5 * REPLICAS):  # enough to meet each replica
        running.until(lambda: httpx.get(active).json()["version"] == version)
    time.sleep(seconds / 4)


def kill(running: Fleet, seconds: float) -> None:
    """SIGKILL to a replica, which stays away for a while."""
    loss(running, seconds)
    running.start(0)
    running.wait_until_up()


def loss(running: Fleet, seconds: float) -> None:
    """SIGKILL to a replica, which does not come back."""
    running.send(0, signal.SIGKILL)
    running.processes[0].wait()
    time.sleep(seconds / 2)


def partition(running: Fleet, seconds: float) -> None:
    """A replica is cut off: its packets are lost without an error."""
    running.net.cut_off(1)
    running.wait_until_up(REPLICAS - 1)
    time.sleep(seconds / 2)
    running.net.connect(1)
    running.wait_until_up()


def stop(running: Fleet, seconds: float) -> None:
    """A replica stops for a while, as a virtual machine that is moved does."""
    running.send(2, signal.SIGSTOP)
    running.wait_until_up(REPLICAS - 1)
    time.sleep(seconds / 2)
    running.send(2, signal.SIGCONT)
    running.wait_until_up()


def slow_link(running: Fleet, seconds: float) -> None:
    """A replica whose responses crawl (400 kbit/s)."""
    running.net.slow_down(0, "400kbit")
    time.sleep(seconds)
    running.net.speed_up(0)
    running.wait_until_up()


ALL_SCENES: Sequence[Scene] = (
    *(quiet, rolling_restart, new_version, kill, partition, stop, slow_link),
)


def soak(scenes: Sequence[Scene], *, callers: int, seconds: float) -> list[str]:
    """Play the scenes, print the table and return the failed checks."""
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, logs = Path(temporary), Path(temporary) / "logs"
        logs.mkdir()
        store = Store(folder / "store")
        publish_echo(store)
        columns = ("requests", "failed", "mixed", "retried", "redispatched", "p50 ms", "p99 ms")
        print(f"| {'scene':18} | {' | '.join(columns)} |")
        print(f"| {'---':18} |{' ---: |' * len(columns)}", flush=True)
        with fleet(store, logs) as running, Callers(running.url, callers) as calling:
            for scene in scenes:
                calling.tally, tally = (fresh := Tally()), fresh
                retried, dispatched = calling.retries.granted, _redispatched(running)
                scene(running, seconds)
                retried = calling.retries.granted - retried
                dispatched = _redispatched(running) - dispatched
                name = scene.__name__.replace("_", " ")
                print(tally.row(name, f"{retried:7}", f"{dispatched:12.0f}"), flush=True)
                failed += [f"{name}: {fault}" for fault in tally.failures + tally.mixed]
    return failed


def _redispatched(running: Fleet) -> float:
    return running.samples("haproxy_backend_redispatch_warnings_total", proxy="gatehouse")


def main() -> int:
    """Run the soak with the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--callers", type=int, default=8, help="(default: 8)")
    parser.add_argument(
        "--seconds", type=float, default=4, help="length of a scene's quiet parts (default: 4)"
    )
    options = parser.parse_args()
    if lacks := missing():
        print(lacks, file=sys.stderr)
        return 2
    failed = soak(ALL_SCENES, callers=options.callers, seconds=options.seconds)
    for failure in failed[:50]:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
