"""Every benchmark explains itself, and names what it needs in one line."""

import sys
from importlib import import_module

import pytest

from tests import REPOSITORY
from tests.bench import prerequisites, wrk

FOLDER = REPOSITORY / "tests" / "bench"
PROGRAMS = sorted(
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts)
    for file in FOLDER.rglob("*.py")
    if '\nif __name__ == "__main__":' in file.read_text()
    and file.parent.name != "servers"  # those run in the environments of other servers
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_shown_and_nothing_runs(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    main = import_module(program).main
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize(
    ("program", "name"), [("popularity", "movielens-100k"), ("network_sizes", "census-income")]
)
def test_missing_tables_are_one_line(program, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit) as end:
        import_module(f"tests.bench.{program}").main()
    line = str(end.value.code)
    assert line.endswith(f"; get the tables with: python -m models fetch {name}")
    assert "\n" not in line


@pytest.mark.parametrize("program", ["foreign_models", "training_speed"])
def test_missing_packages_are_named(program, monkeypatch, capsys):
    monkeypatch.setattr(prerequisites, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit, match=r"not installed: torch_rechub.*; --help says how to get"):
        import_module(f"tests.bench.{program}").main()
    assert capsys.readouterr().out == ""


def test_missing_wrk_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="wrk is not installed"):
        wrk.require_wrk()


def test_unknown_peer_is_wrong_usage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["environments", "trito"])
    with pytest.raises(SystemExit) as end:
        import_module("tests.bench.peers.environments").main()
    assert end.value.code == 2
    assert "unknown peer trito (known: mosec, " in capsys.readouterr().err
