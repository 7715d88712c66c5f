"""`fit-calibration` and `tune` as an analyst runs them: the file that they write is served."""

import json
import sys

import httpx
import numpy as np
import pyarrow.parquet as parquet
import pytest

from app.artifacts.inputs import DenseInput
from app.artifacts.manifest import Output
from app.cli.main import main
from app.errors import ExitCode
from app.ranking.policies import PolicySet
from app.ranking.policy import Policy
from tests.support.builders import INPUTS, published, task
from tests.support.server import running_server
from tests.tuning import worlds

GOAL = ("--ndcg", "click=1", "--at", "5", "--tries", "80")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A model with the tasks of the logs, whose policy weighs them alike."""
    folder = tmp_path_factory.mktemp("store")
    outputs = dict.fromkeys(worlds.TASKS, Output(column=0)) | {"dwell": Output(column=1)}
    links = {"click": ("binary", "sigmoid"), "like": ("binary", "sigmoid")}
    published(
        folder,
        inputs=(*INPUTS, DenseInput(name="boost", side="candidate", default=(1.0,))),
        tasks=tuple(
            task(name, kind=kind, link=link, output=outputs[name])
            for name in worlds.TASKS
            for kind, link in [links.get(name, ("duration", "exp"))]
        ),
        ranking=Policy(formula="power_product", weights=dict.fromkeys(worlds.TASKS, 1.0)),
    )
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Clicks follow click¹ · like³ · dwell⁰·³."""
    table = worlds.columns(worlds.log(800, positions=True))
    return worlds.write(tmp_path_factory.mktemp("log") / "log.parquet", table)


@pytest.fixture
def run(capsys, store, tmp_path):
    """Run a command beside the store, with a policies file of the test's own."""

    def run(*arguments):
        flags = ["--store", str(store), "--policies", str(tmp_path / "policies.toml")]
        code = main([*map(str, arguments), *flags])
        return code, *capsys.readouterr()

    return run


def policies(tmp_path) -> PolicySet:
    return PolicySet.parse((tmp_path / "policies.toml").read_bytes())


def test_tune_shows_before_and_after_and_writes_the_weights(run, log, tmp_path):
    code, out, err = run("tune", log, *GOAL)
    assert (code, err) == (ExitCode.OK, "")
    assert "NDCG@5" in out
    assert "click@5" in out
    assert f"wrote {tmp_path / 'policies.toml'}" in out
    written = policies(tmp_path).policies["default"]
    assert written.formula == "power_product"
    assert written.weights["like"] / written.weights["click"] > 1.5


def test_tuning_again_changes_nothing(run, log, tmp_path):
    run("tune", log, *GOAL)
    before = (tmp_path / "policies.toml").read_bytes()
    code, out, _ = run("tune", log, *GOAL)
    assert code == ExitCode.OK
    assert "Nothing is written" in out
    assert (tmp_path / "policies.toml").read_bytes() == before


def test_a_gain_that_is_not_sure_is_written_only_with_anyway(run, tmp_path):
    table = worlds.columns(worlds.log(400, exponents=(0, 0, 0)))
    path = worlds.write(tmp_path / "noise.parquet", table)
    code, out, _ = run("tune", path, *GOAL)
    assert code == ExitCode.OK
    assert "Nothing is written" in out
    assert not (tmp_path / "policies.toml").exists()
    run("tune", path, *GOAL, "--anyway")
    assert (tmp_path / "policies.toml").exists()


def test_tune_under_another_name_leaves_the_old_policy(run, log, tmp_path):
    (tmp_path / "policies.toml").write_text(
        '[policy.home]\nformula = "weighted_sum"  # plain\nweights = { click = 1, dwell = 0.1 }\n'
    )
    code, *_ = run("tune", log, *GOAL, "--policy", "home", "--as", "home-2", "--anyway")
    assert code == ExitCode.OK
    assert policies(tmp_path).policies["home"].weights == {"click": 1.0, "dwell": 0.1}
    assert policies(tmp_path).policies["home-2"].formula == "weighted_sum"
    assert "# plain" in (tmp_path / "policies.toml").read_text()


def test_a_dry_run_writes_nothing(run, log, tmp_path):
    for command in (("tune", log, *GOAL), ("fit-calibration", log)):
        code, out, _ = run(*command, "--dry-run", "--anyway")
        assert code == ExitCode.OK
        assert "nothing was written" in out
    assert not (tmp_path / "policies.toml").exists()


def test_tune_plots_the_trade_off(run, log, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _ = run("tune", log, *GOAL, "--dry-run", "--plot", tmp_path / "plot.png")
    assert code == ExitCode.OK
    assert "plotted" in out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "rule"),
    [("no/plot.png", "its folder does not exist"), ("plot.txt", "must end in .png or .svg")],
)
def test_an_impossible_plot_path_is_refused_before_the_search(run, log, tmp_path, name, rule):
    code, out, err = run("tune", log, *GOAL, "--dry-run", "--plot", tmp_path / name)
    assert code == ExitCode.USAGE
    assert rule in err
    assert not out


def test_targets_that_cannot_be_reached_are_reported(run, log):
    code, out, _ = run("tune", log, "--mix", "click=3,dwell=1", "--tries", "40", "--anyway")
    assert code == ExitCode.OK
    assert "Not every target is reached" in out


def test_a_policy_with_a_multiplier_cannot_be_tuned(run, log, tmp_path):
    (tmp_path / "policies.toml").write_text(
        '[policy.home]\nformula = "power_product"\nweights = { click = 1, like = 1 }\n'
        'multiplier = "boost"\n'
    )
    code, out, err = run("tune", log, *GOAL, "--policy", "home")
    assert (code, out) == (ExitCode.USAGE, "")
    assert "multiplier cannot be tuned" in err


def test_an_outcome_below_zero_is_refused(run, tmp_path):
    table = worlds.columns(worlds.log()) | {"outcome_hide": [-1.0] * worlds.log().rows}
    path = worlds.write(tmp_path / "log.parquet", table)
    code, _, err = run("tune", path, "--ndcg", "hide=1")
    assert (code, err) == (
        ExitCode.USAGE,
        "gatehouse: --ndcg: outcome hide is below 0 in some rows\n",
    )


def test_position_bias_needs_positions(run, log, tmp_path):
    assert run("tune", log, *GOAL, "--position-bias", "0.5")[0] == ExitCode.OK
    without = parquet.read_table(log).drop_columns(["position"])
    parquet.write_table(without, tmp_path / "log.parquet")
    code, _, err = run("tune", tmp_path / "log.parquet", *GOAL, "--position-bias", "0.5")
    assert (code, err) == (
        ExitCode.USAGE,
        "gatehouse: --position-bias: the log has no column position\n",
    )


def test_fit_calibration_writes_only_the_better_calibrations(run, log, tmp_path):
    code, out, err = run("fit-calibration", log, "--methods", "dwell=scale,like=platt")
    assert (code, err) == (ExitCode.OK, "")
    rows = {row.split("│")[1].strip(): row for row in out.splitlines() if "│" in row}
    assert set(rows) == set(worlds.TASKS)
    written = policies(tmp_path).calibrations["feed"]
    assert "better" in rows["click"]
    assert written.keys() == {
        name for name, row in rows.items() if row.split("│")[-2].strip() == "better"
    }
    assert written["dwell"].method == "scale"


def test_fitting_again_changes_nothing(run, log, tmp_path):
    run("fit-calibration", log)
    before = (tmp_path / "policies.toml").read_bytes()
    code, out, _ = run("fit-calibration", log)
    assert code == ExitCode.OK
    assert "no sure gain" in out
    assert "Nothing is written" in out
    assert (tmp_path / "policies.toml").read_bytes() == before


def test_method_none_leaves_a_task_unchanged(run, log, tmp_path):
    run("fit-calibration", log, "--methods", "click=none,like=none,dwell=isotonic", "--anyway")
    assert policies(tmp_path).calibrations["feed"].keys() == {"dwell"}


def test_each_bad_column_is_reported_on_its_own_line(run, tmp_path):
    table = worlds.columns(worlds.log(10))
    del table["score_like"]
    table["outcome_click"][3] = 7.0
    path = worlds.write(tmp_path / "log.parquet", table)
    for command in (("tune", path, *GOAL), ("fit-calibration", path)):
        code, out, err = run(*command)
        assert (code, out) == (ExitCode.USAGE, "")
        assert err == f"gatehouse: {path}: column score_like is missing\n"


@pytest.mark.parametrize("missing", ["pyarrow", "scipy.optimize", "tomlkit"])
def test_a_missing_package_is_named_with_its_extra(run, log, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    for command in (("tune", log, *GOAL), ("fit-calibration", log)):
        code, out, err = run(*command)
        assert (code, out) == (ExitCode.USAGE, "")
        assert err.endswith(": pip install -e '.[tune]'\n")
        assert missing.partition(".")[0] in err


def test_store_and_policies_default_to_the_servers_variables(
    capsys, store, log, tmp_path, monkeypatch
):
    monkeypatch.setenv("GATEHOUSE_STORE", str(store))
    monkeypatch.setenv("GATEHOUSE_POLICIES", str(tmp_path / "served.toml"))
    assert main(["tune", str(log), *GOAL]) == ExitCode.OK
    assert f"wrote {tmp_path / 'served.toml'}" in capsys.readouterr().out


def test_a_factor_below_1_is_refused(run, log):
    code, out, err = run("tune", log, *GOAL, "--within", "0.5")
    assert (code, out) == (ExitCode.USAGE, "")
    assert "--within 0.5: must be 1 or more" in err


def test_without_matplotlib_only_the_plot_is_missing(run, log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run("tune", log, *GOAL, "--plot", tmp_path / "plot.png")
    assert code == ExitCode.OK
    assert "wrote" in out
    assert "matplotlib is not installed" in err


def test_ctrl_c_writes_no_file_and_no_traceback(run, log, tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("scipy.optimize.differential_evolution", interrupted)
    assert run("tune", log, *GOAL) == (ExitCode.INTERRUPTED, "", "gatehouse: interrupted\n")
    assert not (tmp_path / "policies.toml").exists()


@pytest.mark.slow
def test_written_policies_rank_equally_on_the_server_and_offline(run, log, store, tmp_path):
    assert run("fit-calibration", log)[0] == ExitCode.OK
    assert run("tune", log, *GOAL)[0] == ExitCode.OK
    written = policies(tmp_path)
    body = tmp_path / "request.json"
    user = {"age": 0.5, "recent": [1, 2]}
    candidates = {"item": [7, 3, 5], "quality": [[0.1, 0.2], [0.3, 0.1], [0.2, 0.3]]}
    ranking = {"explain": True}
    body.write_text(json.dumps({"user": user, "candidates": candidates, "ranking": ranking}))
    flags = ("--policies", str(tmp_path / "policies.toml"))
    with running_server(store, tmp_path / "server.log", *flags) as server:
        headers = {"content-type": "application/json"}
        served = httpx.post(f"{server.url}/v1/score", content=body.read_bytes(), headers=headers)
    code, out, err = run("rank", body)
    assert (code, err) == (ExitCode.OK, "")
    assert out.encode() == served.content + b"\n"
    policy = served.json()["policy"]
    assert (policy["version"], policy["weights"]) == (
        written.version,
        written.policies["default"].weights,
    )
    told = served.json()["explanation"]["candidates"][0]["tasks"]["click"]
    calibrated = written.calibrations["feed"]["click"](np.array([told["raw"]]))
    assert told["calibrated"] == pytest.approx(calibrated[0], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tune"], "missing LOG; see gatehouse tune --help"),
        (["tune", "LOG"], "missing one of --ndcg --mix"),
        (["tune", "LOG", "--ndcg", "click"], "--ndcg click: must be NAME=VALUE,NAME=VALUE"),
        (["tune", "LOG", "--ndcg", "a=1,a=2"], "--ndcg a=1,a=2: must be NAME=VALUE,NAME=VALUE"),
        (["tune", "LOG", "--ndcg", "click=-1"], "--ndcg click=-1: must be a number above 0"),
        (
            ["tune", "LOG", "--ndcg", "clik=1"],
            'no outcome "clik"; did you mean "click"? (known: click',
        ),
        (["tune", "LOG", *GOAL, "--at", "0"], "--at 0: must be a whole number of 1 or more"),
        (["tune", "LOG", *GOAL, "--held-out", "1"], "--held-out 1: must be below 1"),
        (
            ["tune", "LOG", *GOAL, "--policy", "x"],
            '--policy: there is no policy "x" (known: default)',
        ),
        (["tune", "LOG", *GOAL, "--as", "A Name"], "--as 'A Name': must be lower-case letters"),
        (["tune", "LOG", *GOAL, "--model", "x"], 'has no model "x" (models: feed)'),
        (
            ["tune", "LOG", *GOAL, "--held-out", "0.001"],
            " requests held out; at least 50 are needed",
        ),
        (["tune", "absent.csv", *GOAL], "absent.csv: "),
        (
            ["fit-calibration", "LOG", "--method", "click=platt"],
            "unknown option --method; did you mean --methods?",
        ),
        (["fit-calibration", "LOG", "--methods", "dwell=platt"], "--methods: dwell takes one of"),
        (
            ["fit-calibration", "LOG", "--methods", "x=platt"],
            '--methods: the log has no outcome "x"',
        ),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line(run, log, tmp_path, arguments, line):
    code, _, err = run(*[log if argument == "LOG" else argument for argument in arguments])
    assert code == ExitCode.USAGE
    assert err.startswith("gatehouse: ")
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "policies.toml").exists()
