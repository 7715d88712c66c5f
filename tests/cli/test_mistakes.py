"""Common mistakes on the command line, and the exact line that each is answered with."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.cli.main import main
from app.errors import ExitCode
from app.settings import Settings
from models import __main__ as models
from tests import REPOSITORY, TINY_EXPERIMENT
from tests.support.builders import published
from tests.support.server import START_S, Server, failed_start, patient_environment, running_server
from tests.tuning import worlds


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No setting of the machine that runs the tests counts."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEHOUSE_{name.upper()}", raising=False)


def answered(capsys, *arguments: object) -> tuple[int, str]:
    """Run a command; return its exit code and what it wrote to standard error."""
    code = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def started(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
    """Run `gatehouse serve`; return its exit code and the lines of standard error."""
    finished = failed_start(*arguments, environment=environment or {})
    return finished.returncode, finished.stderr.splitlines()


def messages(log: Path) -> list[str]:
    return [json.loads(line)["message"] for line in log.read_text().splitlines()]


def wait_for_message(server: Server, start: str) -> str:
    patience = time.monotonic() + START_S
    while time.monotonic() < patience:
        if found := [message for message in messages(server.log) if message.startswith(start)]:
            return found[0]
        time.sleep(0.02)
    raise AssertionError(server.log.read_text())


# Options and variables


def test_a_misspelt_option(capsys):
    line = "gatehouse: unknown option --prot; did you mean --port?\n"
    assert answered(capsys, "serve", "--prot", "8000") == (ExitCode.USAGE, line)


def test_a_variable_that_is_not_a_number(capsys, monkeypatch):
    monkeypatch.setenv("GATEHOUSE_PORT", "abc")
    line = "gatehouse: GATEHOUSE_PORT=abc: must be an integer between 0 and 65535\n"
    assert answered(capsys, "serve") == (ExitCode.USAGE, line)


TAKE_A_URL = {
    ("bench", "--rate", "10"): "URL",
    ("plan", "--rate", "10", "--p99", "9ms", "--url"): "--url",
    ("versions", "--url"): "--url",
    ("activate", "feed", "1", "--wait"): "--wait",
    ("rollback", "feed", "--wait"): "--wait",
    ("publish", "build", "--wait"): "--wait",
    ("items", "publish", "items.csv", "--wait"): "--wait",
    ("users", "compact", "--wait"): "--wait",
}


@pytest.mark.parametrize("command", TAKE_A_URL, ids=" ".join)
def test_a_url_is_checked_before_anything_is_done(capsys, command):
    rule = "the port must be a number from 1 to 65535; did you mean http://127.0.0.1:8000?"
    line = f"gatehouse: {TAKE_A_URL[command]} http://127.0.0.1:abc: {rule}\n"
    assert answered(capsys, *command, "http://127.0.0.1:abc") == (ExitCode.USAGE, line)


@pytest.mark.parametrize("pid", ["0", "-1"])
def test_a_process_id_that_stands_for_many_processes(capsys, pid):
    rule = "must be the id of a process, a whole number of 1 or more"
    line = f"gatehouse: --hup {pid}: {rule}\n"
    command = ("activate", "feed", "1", "--store", "/nonexistent", "--hup", pid)
    assert answered(capsys, *command) == (ExitCode.USAGE, line)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("127.0.0.1:8000", "must begin with http:// or https://; did you mean {right}?"),
        ("ftp://127.0.0.1:8000", "must begin with http:// or https://; did you mean {right}?"),
        ("'http://127.0.0.1 :8000'", "must have no spaces; did you mean {right}?"),
        ("'http://127.0.0.1:80\\t00'", "must have no spaces; did you mean {right}?"),
        (
            "'http://127.0.0.1:8000?x=1'",
            "must have no query and no fragment; did you mean {right}?",
        ),
        ("http://:8000", "must have a host name or an address, as in {right}"),
        (
            "'http://[::1'",
            "must have a host name or an address; an IPv6 address is in brackets, as in {right}",
        ),
        (
            "'http://[::1]:x'",
            "the port must be a number from 1 to 65535; did you mean http://[::1]:8000?",
        ),
        ("'http://ü:8000'", "must be ASCII; did you mean http://xn--tda:8000?"),
    ],
)
def test_a_wrong_url_and_the_nearest_right_one(capsys, url, rule):
    given = url.strip("'").replace("\\t", "\t")
    code, err = answered(capsys, "versions", "--url", given)
    right = "http://127.0.0.1:8000"
    assert (code, err) == (ExitCode.USAGE, f"gatehouse: --url {url}: {rule.format(right=right)}\n")


@pytest.mark.parametrize(
    "url",
    ["http://me:hidden@host", "me:hidden@host:80", "http://hidden@[::1", "http://me:hid/den@host"],
)
def test_a_password_in_a_url_is_never_repeated(capsys, url):
    rule = "must have no user name or password; an API key is given as GATEHOUSE_KEY"
    assert answered(capsys, "bench", url, "--rate", 1) == (
        ExitCode.USAGE,
        f"gatehouse: URL: {rule}\n",
    )


def test_an_option_that_is_not_a_number(capsys):
    line = "gatehouse: --port abc: must be an integer between 0 and 65535\n"
    assert answered(capsys, "serve", "--port", "abc") == (ExitCode.USAGE, line)


@pytest.mark.parametrize("name", ["host", "keys", "keys_file", "tls_cert", "tls_key"])
def test_empty_variable_of_a_setting_that_protects(capsys, monkeypatch, name):
    monkeypatch.setenv(f"GATEHOUSE_{name.upper()}", "")
    line = f"gatehouse: GATEHOUSE_{name.upper()}: must not be empty\n"
    assert answered(capsys, "serve") == (ExitCode.USAGE, line)


def test_keys_are_never_repeated(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GATEHOUSE_KEYS", "reader:s3cr3t")
    monkeypatch.setenv("GATEHOUSE_KEYS_FILE", str(tmp_path / "s3cr3t"))
    line = "gatehouse: keys and keys_file must not both be set\n"
    assert answered(capsys, "serve") == (ExitCode.USAGE, line)


# The store


@pytest.mark.slow
def test_a_misspelt_variable_and_a_missing_store_are_warnings_of_serve(tmp_path):
    environment = {"GATEHOUSE_PROT": "s3cr3t", "GATEHOUSE_PORT_80_TCP": "tcp://10.0.0.1:80"}
    store, log = tmp_path / "none", tmp_path / "log"
    with running_server(store, log, ready=False, environment=environment) as server:
        wait_for_message(server, f'store "{store}" does not exist; waiting for it')
        assert messages(log)[:3] == [
            "unknown environment variable GATEHOUSE_PROT is ignored; did you mean GATEHOUSE_PORT?",
            "ignoring variables of a Kubernetes service: GATEHOUSE_PORT_80_TCP "
            "(enableServiceLinks: false in the pod's spec prevents them)",
            f"no policies file: {tmp_path / 'policies.toml'} does not exist",
        ]
        assert server.terminate() == ExitCode.OK
    assert "s3cr3t" not in log.read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "none"),
        ("rank", "request.json", "--store", "none"),
        ("tune", "log.parquet", "--ndcg", "click=1", "--store", "none"),
        ("fit-calibration", "log.parquet", "--store", "none"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_store(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("request.json").write_text("{}")
    line = 'gatehouse: store "none" does not exist\n'
    assert answered(capsys, *arguments) == (ExitCode.USAGE, line)


# The port


WRONG_SETTINGS = {
    "keys": ({"GATEHOUSE_KEYS": "anna:short"}, "GATEHOUSE_KEYS: key 1: a secret has 20 to 256 "),
    "origins": ({"GATEHOUSE_CORS_ORIGINS": "example.org"}, "cors_origins: must be scheme://host"),
    "traces": ({"OTEL_TRACES_EXPORTER": "otpl"}, "OTEL_TRACES_EXPORTER=otpl: must be otlp or none"),
    "policies": ({"GATEHOUSE_POLICIES": "none.toml"}, "none.toml: "),
    "record": ({"GATEHOUSE_RECORD": "/dev/null/x"}, "/dev/null"),
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("setting", WRONG_SETTINGS)
def test_a_server_with_a_wrong_setting_never_says_that_it_listens(tmp_path, setting, processes):
    variables, reason = WRONG_SETTINGS[setting]
    arguments = ("--store", str(tmp_path), "--port", "0", "--processes", processes)
    code, lines = started(*arguments, "--metrics-port", "0", environment=variables)
    assert code == ExitCode.USAGE
    assert lines[-1].startswith("gatehouse: ")
    assert reason in lines[-1]
    assert not [line for line in lines if "listening on" in line]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), ("--processes", "2", "--metrics-port", "0")], ids=len)
def test_a_port_in_use(tmp_path, processes):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = started("--store", str(tmp_path), "--port", str(port), *processes)
    assert code == ExitCode.USAGE
    line = f"gatehouse: cannot listen on 127.0.0.1 port {port}: Address already in use"
    assert lines[-1].startswith(line)


# Policies


POLICY = '[policy.home]\nformula = "power_product"\nweights = { click = 1.0 }\n'
POLICY_MISTAKES = {
    "not TOML": (
        "[policy.home",
        "not valid TOML: Expected ']' at the end of a table declaration (at end of document)",
    ),
    "misspelt key": (
        POLICY.replace("weights", "wieghts"),
        'unknown key "wieghts" in [policy.home]; did you mean "weights"?',
    ),
    "misspelt table": (
        POLICY.replace("[policy.", "[polcy."),
        'unknown key "polcy"; did you mean "policy"?',
    ),
    "unknown policy in [default]": (
        f'[default]\nfeed = "hom"\n{POLICY}',
        'default.feed: unknown policy "hom"; did you mean "home"?',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", POLICY_MISTAKES)
def test_a_policies_file_with_a_mistake_beside_the_store_ends_serve(tmp_path, mistake):
    content, message = POLICY_MISTAKES[mistake]
    (tmp_path / "store").mkdir()
    file = tmp_path / "policies.toml"
    file.write_text(content)
    code, lines = started("--store", str(tmp_path / "store"), "--port", "0")
    assert code == ExitCode.USAGE
    assert json.loads(lines[0])["message"] == f"following the policies file {file}"
    assert lines[-1] == f"gatehouse: {file}: {message}"
    assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize("command", [("tune", "--ndcg", "click=1"), ("fit-calibration",)], ids=str)
def test_a_broken_policies_file_ends_an_analysis(capsys, tmp_path, command):
    published(tmp_path / "store")
    (tmp_path / "policies.toml").write_text("[policy.home")
    log = worlds.write(tmp_path / "log.parquet", worlds.columns(worlds.log(100)))
    name, *options = command
    code, err = answered(capsys, name, log, *options, "--store", tmp_path / "store")
    assert code == ExitCode.USAGE
    assert err.startswith(f"gatehouse: {tmp_path / 'policies.toml'}: ")
    assert err.count("\n") == 1


# Import and training


def test_importing_a_file_that_is_not_torchscript(capsys, tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(b"hello")
    options = ("--name", "a", "--columns", "x", "--tasks", "click:logit", "--store", tmp_path)
    code, err = answered(capsys, "import", file, *options)
    assert code == ExitCode.FAILED
    assert err.startswith(f"gatehouse: {file} cannot be imported: ")
    assert "TorchScript" in err
    assert "torch.jit.save" in err
    assert err.count("\n") == 1


def test_importing_with_a_misspelt_output(capsys, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"hello")
    options = ("--name", "a", "--columns", "x", "--tasks", "click:logits", "--store", tmp_path)
    code, err = answered(capsys, "import", tmp_path / "model.pt", *options)
    assert code == ExitCode.USAGE
    assert "logit" in err
    assert err.count("\n") == 1


def test_a_misspelt_key_in_a_training_config(capsys, tmp_path):
    config = tmp_path / "typo.toml"
    config.write_text(TINY_EXPERIMENT.read_text().replace("learning_rate", "learning_rat"))
    code = models.main(["train", "--config", str(config), "--store", str(tmp_path / "store")])
    out, err = capsys.readouterr()
    assert (code, out) == (ExitCode.USAGE, "")
    assert err.startswith(f"{config}: ")
    assert "learning_rat" in err
    assert err.count("\n") == 1


# Signals


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), ("--processes", "2", "--metrics-port", "0")], ids=len)
def test_signal_while_serve_imports_exits_with_0_and_no_traceback(tmp_path, processes):
    command = [sys.executable, "-m", "app", "serve", "--port", "0", "--store", str(tmp_path)]
    process = subprocess.Popen(
        [*command, *processes],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        env=patient_environment(),
    )
    assert process.stderr
    first = process.stderr.readline()  # the imports begin after this line
    assert "no policies file" in first
    process.send_signal(signal.SIGTERM)
    assert process.wait(START_S) == ExitCode.OK
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_reload_while_serve_imports_is_ignored():
    code = (
        "import os, signal, sys\n"
        "from app.cli import main as command\n"
        "command.importing = lambda: os.kill(os.getpid(), signal.SIGHUP) or sys.exit(7)\n"
        "command.main(['serve', '--port', '0'])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=patient_environment(), check=False
    )
    assert finished.returncode == 7  # and not -SIGHUP


@pytest.mark.slow
def test_ctrl_c_while_a_command_imports_torch_exits_with_130(tmp_path):
    published(tmp_path)
    # The import of torch is where the signal arrives: this module stands in its place.
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(1000): pass\n"
        "except BaseException:\n"
        "    pass  # as a C extension may lose it\n"
    )
    finished = subprocess.run(
        [sys.executable, "-m", "app", "check", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**patient_environment(), "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (ExitCode.INTERRUPTED, "")
    assert finished.stderr == "gatehouse: interrupted\n"


# Pipes


@pytest.mark.slow
def test_output_into_a_closed_pipe_ends_quietly(tmp_path):
    published(tmp_path / "store")
    user = {"age": [0.5], "recent": [1, 2]}
    candidates = {"item": [7, 3], "quality": [[0.1, 0.2], [0.3, 0.1]]}
    request = json.dumps({"user": user, "candidates": candidates})
    (tmp_path / "requests.jsonl").write_text(f"{request}\n" * 500)
    for command in ("check store", "rank requests.jsonl", "rank requests.jsonl --table"):
        line = f"{sys.executable} -m app {command} | head -c 100; exit ${{PIPESTATUS[0]}}"
        finished = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            capture_output=True,
            env={**patient_environment(), "PYTHONPATH": str(REPOSITORY)},
            check=False,
        )
        assert finished.stderr == b"", command
        assert len(finished.stdout) == 100
        if command != "check store":  # whose table may be in the pipe before its reader is gone
            assert finished.returncode == ExitCode.PIPE_CLOSED


@pytest.mark.slow
def test_a_table_on_an_ascii_terminal_has_escapes_and_no_traceback(tmp_path):
    published(tmp_path / "store")
    user = {"age": [0.5], "recent": [1, 2]}
    candidates = {"item": [7, 3], "quality": [[0.1, 0.2], [0.3, 0.1]]}
    request = {"user": user, "candidates": candidates, "candidate_keys": ["é", "日本"]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    finished = subprocess.run(
        [sys.executable, "-m", "app", "rank", "request.json", "--table"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **patient_environment(),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONIOENCODING": "ascii",
        },
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (ExitCode.OK, "")
    assert r"\xe9" in finished.stdout
