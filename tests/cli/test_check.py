"""`gatehouse check` over valid, broken, unreadable and missing stores."""

import os
import shutil
import subprocess
import sys

import pytest

from app.artifacts.store import GOLDEN, MANIFEST, PROGRAM
from app.cli.main import main
from app.errors import ExitCode
from tests import REPOSITORY
from tests.support.builders import published
from tests.support.server import patient_environment


def test_a_valid_store_lists_each_artifact_and_its_tasks(capsys, tmp_path):
    published(tmp_path)
    published(tmp_path, name="search")
    assert main(["check", str(tmp_path)]) == ExitCode.OK
    rows = [line for line in capsys.readouterr().out.splitlines() if " ok " in line]
    assert all(name in row for name, row in zip(("feed/1", "search/1"), rows, strict=True))
    assert all("sums" in row and "click, dwell" in row for row in rows)


def test_the_store_defaults_to_the_servers(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "store")
    published(tmp_path / "other", name="search")
    assert main(["check"]) == ExitCode.OK
    assert "feed/1" in capsys.readouterr().out
    monkeypatch.setenv("GATEHOUSE_STORE", "other")
    assert main(["check"]) == ExitCode.OK
    assert "search/1" in capsys.readouterr().out
    assert main(["check", "--store", "store"]) == ExitCode.OK
    assert "feed/1" in capsys.readouterr().out


def test_broken_artifacts_have_their_reason_and_the_rest_is_checked(capsys, tmp_path):
    for _ in range(4):
        published(tmp_path)
    (tmp_path / "feed" / "1" / PROGRAM).write_bytes(b"")
    (tmp_path / "feed" / "2" / GOLDEN).unlink()
    (tmp_path / "feed" / "3" / MANIFEST).write_text('{"name": "feed"}')
    assert main(["check", str(tmp_path)]) == ExitCode.FAILED
    first, second, third, fourth = [
        line for line in capsys.readouterr().out.splitlines() if "feed/" in line
    ]
    assert "model.ts: has 0 bytes" in first
    assert "golden.safetensors: is missing" in second
    assert "model.json: " in third
    assert " ok " in fourth


def test_folders_of_other_hosts_and_of_models_without_versions_are_listed(capsys, tmp_path):
    left = tmp_path / "feed" / "users" / ".publishing-x"
    left.mkdir(parents=True)
    (left / "rows").write_bytes(bytes(3_000_000))
    os.utime(left / "rows", (1e9, 1e9))
    assert main(["check", str(tmp_path)]) == ExitCode.FAILED
    shown = capsys.readouterr()
    assert "has no artifacts" in shown.err
    assert shown.out.startswith("feed/users/.publishing-x: 3.0 MB, last written 20")
    assert "of a command that was killed, or runs on another host" in shown.out


def test_an_unexpected_error_is_a_row_and_the_rest_is_checked(capsys, tmp_path, monkeypatch):
    published(tmp_path)
    published(tmp_path, name="search")
    from app.artifacts import loader

    load = loader.load

    def fail_once(artifact, device):
        if artifact.model == "feed":
            raise MemoryError("too large")
        return load(artifact, device)

    monkeypatch.setattr(loader, "load", fail_once)
    assert main(["check", str(tmp_path)]) == ExitCode.FAILED
    out, err = capsys.readouterr()
    assert "MemoryError: too large" in out
    assert "search/1" in out
    assert " ok " in out
    assert err == ""


@pytest.mark.parametrize("closed", ["other", "feed/2"])
def test_an_unreadable_folder_is_a_row_and_the_rest_is_checked(tmp_path, closed):
    # Root without capabilities is bound by mode bits, as everybody else is.
    prefix = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    if prefix and shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    published(tmp_path)
    (tmp_path / closed).mkdir()
    (tmp_path / closed).chmod(0)
    try:
        finished = subprocess.run(
            [*prefix, sys.executable, "-m", "app", "check", tmp_path],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            env=patient_environment(),
            check=False,
        )
    finally:
        (tmp_path / closed).chmod(0o700)
    assert finished.returncode == ExitCode.FAILED
    assert finished.stderr == ""
    (row,) = [line for line in finished.stdout.splitlines() if closed in line]
    assert "Permission denied" in row
    assert " ok " in finished.stdout


def test_brackets_are_shown_as_they_are(capsys, tmp_path):
    published(tmp_path, architecture="[bold]mine[/bold]")
    published(tmp_path)
    path = tmp_path / "feed" / "2" / MANIFEST
    path.write_text(path.read_text().replace('"format"', '"[/x]": 1, "format"'))
    assert main(["check", str(tmp_path)]) == ExitCode.FAILED
    out = capsys.readouterr().out
    assert "[bold]mine[/bold]" in out
    assert 'model.json: unknown key "[/x]"' in out


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("empty", ExitCode.FAILED, "has no artifacts"),
        ("not there", ExitCode.USAGE, "does not exist"),
        ("file", ExitCode.USAGE, "is not a folder"),
        ("[red]store[/x]", ExitCode.USAGE, "does not exist"),
    ],
)
def test_a_store_without_artifacts_is_one_line(capsys, tmp_path, name, code, line):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert main(["check", str(tmp_path / name)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f'gatehouse: store "{tmp_path / name}" {line}\n'


def test_a_table_in_a_pipe_is_not_truncated(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    published(tmp_path, name="a-name-that-is-longer-than-the-terminal")
    assert main(["check", str(tmp_path)]) == ExitCode.OK
    assert "a-name-that-is-longer-than-the-terminal/1" in capsys.readouterr().out


POLICIES = """
[default]
feed = "clicks"

[policy.clicks]
formula = "weighted_sum"
weights = { click = 1.0 }
"""


def row_of_policies(capsys):
    """Return the only row of a policies file."""
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "policies.toml" in line]
    return row


def test_policies_beside_the_store_are_checked_as_serve_takes_them(capsys, tmp_path):
    published(tmp_path / "store")
    file = tmp_path / "policies.toml"
    for content, code, shown in (
        (POLICIES, ExitCode.OK, ("policies", "clicks", " ok ")),
        (POLICIES.replace("click =", "clik ="), ExitCode.FAILED, ("clik",)),  # no task of feed
        ("[policy", ExitCode.FAILED, ("policies.toml",)),
        ("[polices]", ExitCode.FAILED, ("polices",)),
    ):
        file.write_text(content)
        assert main(["check", str(tmp_path / "store")]) == code
        row = row_of_policies(capsys)
        assert all(text in row for text in shown)
        assert (" ok " in row) == (code == ExitCode.OK)


def test_policies_that_the_environment_names_are_checked(capsys, tmp_path, monkeypatch):
    published(tmp_path / "store")
    (tmp_path / "policies.toml").write_text(POLICIES)
    elsewhere = tmp_path / "other" / "policies.toml"
    monkeypatch.setenv("GATEHOUSE_POLICIES", str(elsewhere))
    assert main(["check", str(tmp_path / "store")]) == ExitCode.FAILED
    assert "cannot be read now: policies.toml: No such file" in row_of_policies(capsys)


def test_policies_alone_are_no_store(capsys, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "policies.toml").write_text(POLICIES)
    assert main(["check", str(tmp_path / "store")]) == ExitCode.FAILED
    assert capsys.readouterr().err.endswith("has no artifacts\n")
