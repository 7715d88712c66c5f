"""`gatehouse bench` against a real server."""

import json
import re

import pytest

from app.cli.main import main
from app.errors import ExitCode
from tests.support.builders import published
from tests.support.server import running_server

KEY = "a-key-that-is-long-enough-for-this-test"
SHORT = ("--duration", "300ms", "--warm-up", "50ms", "--rows", "7")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of one model that asks for a key."""
    folder = tmp_path_factory.mktemp("bench")
    published(folder / "store")
    environment = {"GATEHOUSE_KEYS": f"load:{KEY}"}
    with running_server(folder / "store", folder / "log", environment=environment) as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch):
    """The caller's key is in the environment."""
    monkeypatch.setenv("GATEHOUSE_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")


def bench(capsys, *arguments):
    """Run the command; return its exit code, standard output and standard error."""
    code = main(["bench", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "v2-json", "v2-binary"])
def test_every_form_is_answered(server, capsys, form):
    objective = ("--p99", "10s", "--deadline", "20s")
    code, out, err = bench(
        capsys, server.url, "--rate", 100, "--form", form, *objective, *SHORT, "--json"
    )
    assert err == ""
    document = json.loads(out)
    assert document["rows"] == 7
    (step,) = document["steps"]
    assert step["statuses"] == {"200": 30}
    assert step["sent_rate"] == step["answered_rate"] == 100
    assert 0 < step["latency_ms"]["p50"] <= step["latency_ms"]["p99.9"]
    assert step["late"] == 0
    assert (code, step["met"]) == (ExitCode.OK, True)


@pytest.mark.slow
def test_table_report_and_exit_code_of_a_broken_objective(server, capsys, tmp_path):
    report = tmp_path / "bench.html"
    arguments = (server.url, "--rate", 100, "--p99", "0.01ms", "--report", report, *SHORT)
    code, out, err = bench(capsys, *arguments)
    assert code == ExitCode.FAILED
    assert re.search(r"│ +100 │ +100 │ +100 │.*│ 200: 30 ", out)
    assert re.search(r"the objective is not met: p99 .* ms > 0.01 ms|the generator lagged", err)
    page = report.read_text()
    assert page.count("<svg") == 1
    assert "200: 30" in page
    assert "http://www.w3.org" in page  # the only address: nothing is loaded from elsewhere
    assert not re.search(r"(src|href)=\"http", page)


@pytest.mark.slow
def test_sweep_reports_every_rate(server, capsys):
    arguments = (server.url, "--sweep", "--p99", "0.001ms", *SHORT)
    code, out, err = bench(capsys, *arguments)
    assert code == ExitCode.FAILED
    assert out.count("200: ") == 2  # the first rate, twice
    assert "no rate meets the objective: " in err


@pytest.mark.slow
def test_requests_of_a_file_are_sent_as_they_are(server, capsys, tmp_path):
    file = tmp_path / "requests.jsonl"
    file.write_text('{"candidates": {}}\n{"candidates": []}\n')
    code, out, _ = bench(capsys, server.url, "--rate", 100, "--request", file, *SHORT, "--json")
    assert json.loads(out)["steps"][0]["statuses"] == {"422": 30}
    code, _, err = bench(
        capsys, server.url, "--rate", 100, "--request", file, *SHORT, "--errors", "0.5"
    )
    assert code == ExitCode.FAILED
    assert "100.00% failed > 50.00%" in err or "the generator lagged" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "1", "--model", "fed"], 'no model "fed"; did you mean "feed"? (models: feed)'),
        (["--rate", "1", "--only", "x"], "--only: unknown feature x (known: "),
        (["--sweep"], "--sweep needs an objective, such as --p99 20ms"),
        (["--rate", "1", "--p99", "20"], "must be a time above 0, such as 20ms, 10s or 2m"),
        (["--rate", "0"], "must be a number above 0"),
        (["--rate", "1", "--report", "x.pdf"], "must end in .html, .png or .svg"),
        (["--rate", "1", "--errors", "2"], "must be a share from 0 to below 1"),
        ([], "missing one of --rate --sweep"),
    ],
)
def test_wrong_usage_is_one_line(server, capsys, arguments, message):
    code, out, err = bench(capsys, server.url, *arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert message in err
    assert err.count("\n") == 1


def test_server_that_is_not_there_is_named(capsys):
    code, _, err = bench(capsys, "http://127.0.0.1:1", "--rate", 1)
    assert code == ExitCode.FAILED
    assert "cannot connect to http://127.0.0.1:1: " in err
    assert "refused" in err


def test_url_with_a_path_is_refused(capsys):
    code, _, err = bench(capsys, "http://127.0.0.1:1/v1/score", "--rate", 1)
    assert code == ExitCode.USAGE
    assert "without a path: not /v1/score" in err
