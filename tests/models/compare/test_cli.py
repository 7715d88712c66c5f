import signal
import subprocess
import sys

import pytest

from models import __main__ as cli
from models.compare import series, timing
from tests import REPOSITORY
from tests.models.comparisons import TINY, tiny_files
from tests.support.waiting import killed_after

SWEPT = """
name = "tiny"
[network]
architecture = "mmoe"
num_experts = 2
expert_hidden_units = [4]
tower_hidden_units = [4]
[[tasks]]
name = "y1"
kind = "regression"
[data]
source = "synthetic"
rows = 200
dim = 4
[training]
epochs = 1
[ranking]
formula = "weighted_sum"
weights = { y1 = 1.0 }
"""


@pytest.fixture(autouse=True)
def few_turns(monkeypatch):
    monkeypatch.setattr(timing, "TURNS", 2)


def command(name, paths, folder, *flags):
    return cli.main([name, *map(str, paths), "--out", str(folder), "--seeds", "2", *flags])


def test_compare_prints_and_keeps_the_table_the_plot_and_the_runs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    paths = tiny_files(tmp_path, "single_task", "mmoe", "esmm")
    folder = tmp_path / "new" / "out"

    status = command("compare", paths, folder)
    first = capsys.readouterr()
    monkeypatch.delattr(series, "fit")  # so nothing can be trained
    (folder / "gains.png").unlink()
    again = command("compare", paths, folder)

    assert (status, again) == (0, 0)
    for heading in ("click", "like given click", "click and like", "dwell", "cost"):
        assert f"### {heading}\n" in first.out
    assert first.out.count("\n| ESMM | ") == 5
    assert "6/6  ESMM, seed 1: 2 epochs" in first.err
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 6
    assert (folder / "gains.png").is_file()
    assert capsys.readouterr().out.split("### cost")[0] == first.out.split("### cost")[0]


def test_sweep_prints_and_keeps_the_table_and_the_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    paths = tiny_files(tmp_path, "mmoe", text=SWEPT)

    status = command("sweep", paths, tmp_path / "out")

    shown = capsys.readouterr()
    assert status == 0
    assert "| network | p = 0 | p = 0.5 | p = 0.9 | p = 1 |" in shown.out
    assert shown.out.strip() == (tmp_path / "out" / "sweep.md").read_text().strip()
    assert (tmp_path / "out" / "correlation.png").is_file()


def test_compare_without_matplotlib_prints_why_there_is_no_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    status = command("compare", tiny_files(tmp_path, "moe"), tmp_path)

    shown = capsys.readouterr()
    assert status == 0
    assert "| MoE | " in shown.out
    assert "\nno plot: matplotlib is not installed" in shown.err
    assert not (tmp_path / "gains.png").exists()


@pytest.mark.parametrize("name", ["compare", "sweep"])
def test_one_seed_is_one_line_and_status_2(tmp_path, capsys, name):
    status = command(name, tiny_files(tmp_path, "moe"), tmp_path / "out", "--seeds", "1")

    shown = capsys.readouterr()
    assert status == 2
    assert shown.err == "--seeds: must be 2 or more for a standard deviation, not 1\n"
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made_is_one_line_and_status_1(tmp_path, capsys):
    (tmp_path / "file").touch()

    status = command("compare", tiny_files(tmp_path, "moe"), tmp_path / "file")

    assert status == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_the_default_configurations(capsys):
    for name, first in (("compare", "single_task, shared_bottom"), ("sweep", "shared_bottom, moe")):
        with pytest.raises(SystemExit, match="0"):
            cli.main([name, "--help"])
        told = " ".join(capsys.readouterr().out.split())
        assert f"TOML files (default: {first}, " in told
        assert f"(default: build/{name})" in told


def test_interrupt_keeps_the_runs_that_are_over(tmp_path):
    paths = tiny_files(tmp_path, "moe")
    paths += tiny_files(
        tmp_path, "ple", text=TINY.replace("epochs = 2", "epochs = 100000\npatience = 100000")
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-u", "-m", "models", "compare", "--out", str(tmp_path / "out")),
            *map(str, paths),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with killed_after(process, 120):
        while "MoE, seed 0" not in process.stderr.readline():
            assert process.poll() is None
    error = _interrupted(process)

    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("interrupted; finished runs are kept")
    assert len((tmp_path / "out" / "runs.jsonl").read_text().splitlines()) == 1


def _interrupted(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C as a person does, again where Python lost it in a finaliser; return stderr."""
    try:
        for _ in range(6):
            process.send_signal(signal.SIGINT)
            try:
                return process.communicate(timeout=10)[1]
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError("it does not end")
    finally:
        process.kill()
