"""`gatehouse bench` against a real server."""

import json
import re
import sys

import pytest

from app.benchmarking.load import Plan, Progress, Refusal, Report
from app.benchmarking.requests import Post
from app.cli import bench as command
from app.cli.bench import Live
from app.cli.load_target import Target
from app.cli.main import main
from app.errors import ExitCode
from tests.support.builders import published
from tests.support.fixed_responses import responding
from tests.support.server import running_server

KEY = "a-key-that-is-long-enough-for-this-test"
PLAN_OF = ("plan", "--url", "{}", "--rate", "1", "--p99", "9ms")
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
    assert "the objective is not met: no response has status 200; first refused resp" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "arguments", "refusal"),
    [
        (KEY, ("--rows", 4097), "413: too many candidates: 4097, limit 4096"),
        ("", (), "401: "),
    ],
)
def test_first_refusal_is_shown(server, capsys, monkeypatch, key, arguments, refusal):
    monkeypatch.setenv("GATEHOUSE_KEY", key)
    arguments = (server.url, "--rate", 20, *SHORT, *arguments)
    code, out, err = bench(capsys, *arguments, "--json")
    assert code == ExitCode.FAILED
    shown = f"no response has status 200; first refused response: {refusal}"
    assert err.startswith(f"gatehouse: {shown}")
    (step,) = json.loads(out)["steps"]
    assert f"{step['refusal']['status']}: {step['refusal']['reason']}".startswith(refusal)
    assert bench(capsys, *arguments, "--errors", "0.5")[2].endswith(f"is not met: {err[11:]}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "1", "--model", "fed"], 'no model "fed"; did you mean "feed"? (models: feed)'),
        (["--rate", "1", "--version", "9"], 'version 9 of model "feed" is not loaded; loaded vers'),
        (["--rate", "1", "--request", "nofile"], "nofile: No such file or directory"),
        (["--rate", "1", "--report", "nowhere/x.html"], "must be in a folder that exists"),
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


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [(b"{}", 503, "status 503"), (b"<html>", 200, "not JSON: ")],
)
@pytest.mark.parametrize("arguments", [("bench", "{}", "--rate", "1"), PLAN_OF])
def test_response_that_is_of_no_use_is_told_from_none(capsys, body, status, reason, arguments):
    with responding(lambda _: (status, body)) as url:
        code = main([argument.format(url) for argument in arguments])
    assert code == ExitCode.FAILED
    err = capsys.readouterr().err
    assert err.startswith(f"gatehouse: no usable response from {url}: {reason}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("bench", "{}", "--rate", "1"), PLAN_OF])
@pytest.mark.parametrize("model", [(), ("--model", "feed")])
def test_server_without_a_model_is_no_wrong_usage(capsys, arguments, model):
    with responding(lambda _: (200, b'{"models": []}')) as url:
        code = main([*(argument.format(url) for argument in arguments), *model])
    assert code == ExitCode.FAILED
    assert capsys.readouterr().err == f"gatehouse: {url}: no model is active yet\n"


def test_url_with_a_path_is_refused(capsys):
    code, _, err = bench(capsys, "http://127.0.0.1:1/v1/score", "--rate", 1)
    assert code == ExitCode.USAGE
    assert "without a path: not /v1/score" in err


POST = Post("/v1/score", b"{}", {})
TARGET = Target("feed/1", Plan(1, [b""], rate=None), POST, "cpu")


def reports(p99_ms, **changes):
    """Return a stand-in for a measurement: its p99 (ms) is `p99_ms(rate)`."""

    def measured(_target, rate, duration_s, _warm_up_s, live):
        latency_s = p99_ms(rate) / 1e3
        live.showing(rate, duration_s)(Progress(0.5, 10, 9, 0, [latency_s]))
        rows = [(0, 200, latency_s, False, 0.0, n / rate, 0.0) for n in range(100)]
        plan = Plan(1, [b""], rate=rate, seconds=100 / rate)
        return Report.of_rows(plan, rows, **changes)

    return measured


@pytest.fixture
def fake(monkeypatch):
    """Return a function that makes the command measure a stand-in instead of a server."""

    def install(measured):
        monkeypatch.setattr(command, "target_of", lambda _: TARGET)
        monkeypatch.setattr(command, "measured", measured)

    return install


@pytest.mark.parametrize("name", ["bench.png", "bench.svg", "bench.html"])
def test_sweep_names_the_highest_rate_and_plots_every_rate(fake, capsys, tmp_path, name):
    fake(reports(lambda rate: 5 if rate <= 100 else 50))
    file = tmp_path / name
    arguments = ("http://here", "--sweep", "--p99", "20ms", "--duration", "10s", "--report", file)
    code, out, err = bench(capsys, *arguments)
    assert code == ExitCode.OK
    rate = re.search(r"highest rate: (\d+) requests/s with p99 5.00 ms \(objective: 20 ms\)", out)
    assert rate is not None
    assert 95 <= int(rate[1]) <= 100
    assert "20 requests/s: p50 5.00 ms, p99 5.00 ms, met" in err
    assert "p99 50.00 ms > 20 ms" in err
    assert file.stat().st_size > 5_000


def test_sweep_that_the_generator_ends_is_no_result(fake, capsys):
    honest = reports(lambda _: 5)
    busy = reports(lambda _: 5, busiest=0.99)
    fake(lambda target, rate, *rest: (honest if rate < 50 else busy)(target, rate, *rest))
    code, out, err = bench(capsys, "http://here", "--sweep", "--p99", "20ms")
    assert code == ExitCode.FAILED
    assert "highest rate: " in out
    assert "the server may serve more: the generator used 99% of a core" in err


def test_single_rate_that_the_generator_could_not_send_is_no_result(fake, capsys):
    fake(reports(lambda _: 5, busiest=0.99))
    code, _, err = bench(capsys, "http://here", "--rate", 10, "--p99", "20ms")
    assert code == ExitCode.FAILED
    assert "the result says nothing about the server: the generator used 99% of a core" in err


def test_refusals_that_the_objective_allows_are_shown(fake, capsys):
    fake(reports(lambda _: 5, refusal=Refusal(429, "queue full")))
    arguments = ("--rate", 10, "--p99", "20ms", "--errors", "0.5")
    code, out, _ = bench(capsys, "http://here", *arguments)
    assert code == ExitCode.OK
    assert out.endswith("\nfirst refused response: 429: queue full\n")


def test_progress_is_a_line_that_changes_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes that for a terminal
    with Live(quiet=False) as live:
        show = live.showing(100, 10)
        show(Progress(-0.5, 0, 0, 0))
        show(Progress(2.0, 200, 190, 3, [0.001, 0.002]))
        live.print_line("done")
    shown = capsys.readouterr().err
    assert "10 open, 3 failed, p50 2.00 ms, p99 2.00 ms" in shown
    assert "done" in shown


def test_progress_in_a_pipe_is_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(Live, "_EVERY_S", 0.0)
    with Live(quiet=False) as live:
        show = live.showing(100, 10)
        show(Progress(-0.5, 0, 0, 0))
        show(Progress(2.0, 200, 190, 3, [0.001]))
    assert capsys.readouterr().err.splitlines() == [
        "warming up, 100 requests/s, 0 open, 0 failed",
        "2 of 10 s, 100 requests/s, 10 open, 3 failed, p50 1.00 ms, p99 1.00 ms",
    ]


def test_report_without_matplotlib_says_what_to_install(fake, capsys, monkeypatch):
    fake(reports(lambda _: 5))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = bench(capsys, "http://here", "--rate", 10, "--report", "x.png")
    assert code == ExitCode.USAGE
    assert "a report needs matplotlib: pip install -e '.[plots]'" in err
