"""The `gatehouse` command: wrong usage in one line, and `check` over good and bad stores."""

import pytest

from app.artifacts.store import GOLDEN, MANIFEST, PROGRAM
from app.cli.main import main
from app.cli.usage import EXIT_OK, EXIT_USAGE, EXIT_WRONG
from app.settings import Settings
from tests.support.builders import published

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal wide enough for a table, and no setting from outside."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEHOUSE_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "a command is missing; try --help"),
        (["sevre"], "no command 'sevre'; try --help"),
        (["check"], "check takes one folder"),
        (["check", "a", "b"], "check takes one folder"),
        (["check", "--store"], "check takes one folder"),
        (["serve", SECRET], "only flags are taken"),
        (["serve", "--tokne", SECRET], "no flag --tokne"),
        (["serve", f"--tokne={SECRET}"], "no flag --tokne"),
        (["serve", "--keys", SECRET], "no flag --keys; set GATEHOUSE_KEYS, or --keys-file"),
        (["serve", f"--keys={SECRET}"], "no flag --keys; set GATEHOUSE_KEYS, or --keys-file"),
        (["serve", "--port"], "argument --port: expected one argument"),
        (["serve", "--port", SECRET], "port: Input should be a valid integer"),
        (["serve", "--por", "8000"], "no flag --por"),
        (["serve", "--log-level", SECRET], "log_level: Input should be 'debug', 'info'"),
        (["serve", "--port", "1", "--lanes", "0"], "lanes: Input should be greater than or equal"),
        (["serve", "--port", "-2", "--lanes", "0"], "; lanes: Input should be greater than"),
        (["serve", "--max-candidates", "99999"], "Value error, max_candidates must not be above"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_on_standard_error(capsys, arguments, line):
    assert main(arguments) == EXIT_USAGE == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gatehouse: ")
    assert line in err
    assert err.count("\n") == 1
    assert SECRET not in err
    assert "gatehouse: :" not in err


def test_a_wrong_environment_variable_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setenv("GATEHOUSE_PORT", SECRET)
    assert main(["serve"]) == EXIT_USAGE
    assert capsys.readouterr().err.startswith("gatehouse: port: Input should be a valid integer")


def test_a_flag_wins_over_the_environment(capsys, monkeypatch):
    """Told by which of two wrong values is complained about."""
    monkeypatch.setenv("GATEHOUSE_LANES", "0")
    assert main(["serve", "--lanes", "300"]) == EXIT_USAGE
    assert "less than or equal to 256" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["check", "--help"]], ids=str)
def test_help_says_what_there_is(capsys, arguments):
    assert main(arguments) == EXIT_OK
    out = capsys.readouterr().out
    assert "serve" in out
    assert "check STORE" in out


def test_the_help_of_serve_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert not caught.value.code
    text = " ".join(capsys.readouterr().out.split())
    for name in Settings.model_fields.keys() - {"keys"}:
        assert f"--{name.replace('_', '-')}" in text
    assert "--keys " not in text  # a secret, and flags are seen by everyone on the machine
    assert "default: 8000" in text
    assert "GATEHOUSE_PORT" in text


def test_check_of_a_good_store_names_each_artifact_and_its_tasks(capsys, tmp_path):
    published(tmp_path)
    published(tmp_path, name="search")
    assert main(["check", str(tmp_path)]) == EXIT_OK == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "good" in line]
    assert all(name in row for name, row in zip(("feed/1", "search/1"), rows, strict=True))
    assert all("sums" in row and "click, dwell" in row for row in rows)


def test_check_of_a_store_with_one_bad_artifact_says_why_and_checks_the_rest(capsys, tmp_path):
    for _ in range(4):
        published(tmp_path)
    (tmp_path / "feed" / "1" / PROGRAM).write_bytes(b"")
    (tmp_path / "feed" / "2" / GOLDEN).unlink()
    (tmp_path / "feed" / "3" / MANIFEST).write_text('{"name": "feed"}')
    assert main(["check", str(tmp_path)]) == EXIT_WRONG == 1
    first, second, third, fourth = [
        line for line in capsys.readouterr().out.splitlines() if "feed/" in line
    ]
    assert "model.ts: has 0 bytes" in first
    assert "golden.safetensors: is missing" in second
    assert "model.json: " in third
    assert "good" in fourth


def test_check_shows_brackets_as_they_are(capsys, tmp_path):
    published(tmp_path, architecture="[bold]mine[/bold]")
    published(tmp_path)
    path = tmp_path / "feed" / "2" / MANIFEST
    path.write_text(path.read_text().replace('"format"', '"[/x]": 1, "format"'))
    assert main(["check", str(tmp_path)]) == EXIT_WRONG
    out = capsys.readouterr().out
    assert "[bold]mine[/bold]" in out
    assert 'model.json: unknown key "[/x]"' in out


@pytest.mark.parametrize("name", ["empty", "not there", "[red]store[/x]"])
def test_check_of_a_store_without_artifacts_says_so(capsys, tmp_path, name):
    (tmp_path / "empty").mkdir()
    assert main(["check", str(tmp_path / name)]) == EXIT_WRONG
    out = capsys.readouterr().out
    assert "no artifacts in" in out
    assert name in out
