"""Run the client programs with the commands of their README against a real server."""

import json
import re
import shutil
import subprocess
import sys

import httpx
import pytest

from tests import REPOSITORY
from tests.clients import score as client
from tests.support.front import CLOSE, RESET, SILENCE, busy_front
from tests.support.server import patient_environment, running_server

pytestmark = pytest.mark.slow

KEY = "a-key-of-the-clients"
GUIDE = (REPOSITORY / "tests" / "clients" / "README.md").read_text(encoding="utf-8")
COMMANDS = re.search(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL)[1].splitlines()  # type: ignore[index]
TOOLS = {"sh": "curl", "python": sys.executable}
QUICK_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
LONG_MS = 20_000  # enough for a slow machine


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    keys = {"GATEHOUSE_KEYS": f"clients:{KEY}"}
    with running_server(store.folder, log, "--lanes", "1", environment=keys) as server:
        yield server


@pytest.fixture
def example(server):
    return httpx.get(f"{server.url}/v1/models/tiny").json()["example_request"]


@pytest.fixture(
    params=COMMANDS, ids=lambda command: re.sub(r"(.*/)?(\S+) http:.* 1000", r"\2", command)
)
def run(request, example, tmp_path):
    """Return a function that runs one of the README's commands with a URL and a budget."""
    program, *rest = request.param.split()
    if shutil.which(tool := TOOLS.get(program, program)) is None:
        pytest.skip(f"{tool} is not installed")
    file = tmp_path / "request.json"

    def run(url: str, budget_ms: int = LONG_MS):
        file.write_text(json.dumps(example))
        put = {"http://127.0.0.1:8000": url, "feed": "tiny", "request.json": str(file)}
        put["1000"] = str(budget_ms)
        return subprocess.run(
            [shutil.which(sys.executable if program == "python" else program) or program]
            + [put.get(word, word) for word in rest],
            cwd=REPOSITORY,
            env=patient_environment() | {"GATEHOUSE_KEY": KEY, "JAVA_TOOL_OPTIONS": QUICK_JAVA},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def deadlines_ms(front) -> list[int]:
    return [int(request["x-request-timeout-ms"]) for request in front.requests]


def test_client_retries_what_may_succeed_within_its_budget(run, server, example):
    headers = {"authorization": f"Bearer {KEY}"}
    expected = httpx.post(f"{server.url}/v1/models/tiny/score", json=example, headers=headers)
    with busy_front(server.url, [RESET, CLOSE, 429], retry_after_s=1) as front:
        finished = run(front.url)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)["ranking"] == expected.json()["ranking"]
    assert [request["authorization"] for request in front.requests] == [f"Bearer {KEY}"] * 4
    assert len({request["x-request-id"] for request in front.requests}) == 1
    first, *_, before, last = deadlines_ms(front)
    assert first <= LONG_MS
    assert last <= before - 1000  # Retry-After has reduced the budget


def test_client_makes_three_retries_at_most(run, server):
    with busy_front(server.url, [502, 500, 502, 500, 502]) as front:  # a proxy's
        finished = run(front.url)
    assert finished.returncode == 1
    assert "500" in finished.stderr
    assert len(front.requests) == 4


def test_client_gives_up_if_retry_after_exceeds_its_budget(run, server):
    with busy_front(server.url, [503, 503], retry_after_s=600) as front:
        finished = run(front.url, budget_ms=1000)  # tritonclient always pauses for a second
    assert finished.returncode in (1, 28)  # 28 is curl's code for a timeout
    assert len(front.requests) <= 1  # 0 if the budget ends before the first request


def test_invalid_request_prints_the_error_and_is_not_retried(run, server, example):
    del example["user"]["activity"]
    with busy_front(server.url, []) as front:
        finished = run(front.url)
    assert finished.returncode == 1
    assert "activity" in finished.stderr
    assert len(front.requests) == 1


def test_client_stops_waiting_for_a_silent_server_when_its_budget_is_spent(run, server):
    # On a slow machine, 300 ms may be over before the request is sent.
    for budget_ms in (300, 5000):
        with busy_front(server.url, [SILENCE]) as front:
            finished = run(front.url, budget_ms=budget_ms)
        assert finished.returncode in (1, 28)  # 28 is curl's code for a timeout
        if front.requests:
            break
    assert len(front.requests) == 1


def test_the_service_s_own_500_is_not_retried():
    calls: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(500, headers={"content-type": "application/problem+json"})

    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer)) as http:
        assert client.score(http, "tiny", b"{}", 20, client.RetryBudget()).status_code == 500
    assert len(calls) == 1


CALLS = 30
MOST_ATTEMPTS = CALLS + 10 + CALLS // 10
"""One for each call, the reserve, and a tenth."""


def refused(attempts: int) -> bool:
    """Whether a process that makes `CALLS` calls, all refused, kept to its retry budget."""
    return MOST_ATTEMPTS - 1 <= attempts <= MOST_ATTEMPTS


def test_retries_of_a_python_process_are_limited_to_a_tenth_of_its_calls(server):
    budget = client.RetryBudget()
    with busy_front(server.url, [502] * 999) as front, httpx.Client(base_url=front.url) as http:
        for _ in range(CALLS):
            assert client.score(http, "tiny", b"{}", 20, budget).status_code == 502
        assert refused(len(front.requests))
        # Later calls that succeed earn retries again.
        for _ in range(20):
            budget.add_call()
        assert budget.take_retry()
        assert budget.take_retry()


JAVA = """
public class Calls {
    public static void main(String[] told) throws Exception {
        for (int i = 0; i < Integer.parseInt(told[1]); i++) {
            var url = java.net.URI.create(told[0]);
            Score.score(url, new byte[0], java.time.Duration.ofSeconds(20));
        }
    }
}
"""
GO = """package main
import ("context"; "os"; "strconv"; "testing"; "time")
func TestCalls(t *testing.T) {
    ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
    defer cancel()
    calls, _ := strconv.Atoi(os.Getenv("CALLS"))
    for i := 0; i < calls; i++ {
        score(ctx, os.Getenv("URL"), []byte{})
    }
}
"""


def test_retries_of_a_java_process_are_limited_to_a_tenth_of_its_calls(server, tmp_path):
    if shutil.which("javac") is None:
        pytest.skip("javac is not installed")
    (tmp_path / "Calls.java").write_text(JAVA)
    sources = [tmp_path / "Calls.java", REPOSITORY / "tests" / "clients" / "Score.java"]
    environment = patient_environment() | {"JAVA_TOOL_OPTIONS": QUICK_JAVA}
    subprocess.run(["javac", "-d", tmp_path, *sources], check=True, env=environment)
    with busy_front(server.url, [502] * 999) as front:
        java = ["java", "-cp", tmp_path, "Calls", front.url, str(CALLS)]
        subprocess.run(java, check=True, env=environment)
        assert refused(len(front.requests))


def test_retries_of_a_go_process_are_limited_to_a_tenth_of_its_calls(server, tmp_path):
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    shutil.copy(REPOSITORY / "tests" / "clients" / "score.go", tmp_path)
    (tmp_path / "calls_test.go").write_text(GO)
    (tmp_path / "go.mod").write_text("module score\n\ngo 1.19\n")
    with busy_front(server.url, [502] * 999) as front:
        environment = patient_environment() | {"URL": front.url, "CALLS": str(CALLS)}
        subprocess.run(["go", "test", "."], check=True, cwd=tmp_path, env=environment)
        assert refused(len(front.requests))


def test_python_client_names_the_package_that_it_needs(tmp_path):
    (tmp_path / "httpx.py").write_text("raise ImportError")  # as if httpx were not installed
    finished = subprocess.run(
        [sys.executable, REPOSITORY / "tests" / "clients" / "score.py", "url", "feed", "file"],
        env=patient_environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert finished.stderr == "score.py needs httpx: pip install httpx\n"


def test_go_program_is_formatted():
    if shutil.which("gofmt") is None:
        pytest.skip("gofmt is not installed")
    command = ["gofmt", "-l", str(REPOSITORY / "tests" / "clients")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""
