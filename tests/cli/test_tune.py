"""`fit-calibration` and `tune` as an analyst runs them: the file that they write is served."""

import json
import subprocess
import sys

import httpx
import numpy as np
import pyarrow.parquet as parquet
import pytest

from app.artifacts.manifest import DenseInput, Output
from app.cli.main import main
from app.cli.usage import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from app.ranking.policies import PolicySet
from app.ranking.policy import Policy
from app.settings import Settings
from tests.support.builders import INPUTS, published, task
from tests.support.server import running_server
from tests.tuning import worlds

GOAL = ("--ndcg", "click=1", "--at", "5", "--tries", "80")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal wide enough for a table, and no setting from outside."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEHOUSE_{name.upper()}", raising=False)


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
    assert (code, err) == (EXIT_OK, "")
    assert "NDCG@5" in out
    assert "click@5" in out
    assert f"wrote {tmp_path / 'policies.toml'}" in out
    written = policies(tmp_path).policies["default"]
    assert written.formula == "power_product"
    assert written.weights["like"] / written.weights["click"] > 1.5


def test_tune_again_starts_from_what_was_written_and_changes_no_more(run, log, tmp_path):
    run("tune", log, *GOAL)
    before = (tmp_path / "policies.toml").read_bytes()
    code, out, _ = run("tune", log, *GOAL)
    assert code == EXIT_OK
    assert "No change is worth making" in out
    assert (tmp_path / "policies.toml").read_bytes() == before


def test_scores_that_say_nothing_change_nothing_unless_it_is_asked_for(run, tmp_path):
    table = worlds.columns(worlds.log(400, exponents=(0, 0, 0)))
    path = worlds.write(tmp_path / "noise.parquet", table)
    code, out, _ = run("tune", path, *GOAL)
    assert code == EXIT_OK
    assert "No change is worth making" in out
    assert not (tmp_path / "policies.toml").exists()
    run("tune", path, *GOAL, "--anyway")
    assert (tmp_path / "policies.toml").exists()


def test_tune_under_another_name_leaves_the_old_policy(run, log, tmp_path):
    (tmp_path / "policies.toml").write_text(
        '[policy.home]\nformula = "weighted_sum"  # plain\nweights = { click = 1, dwell = 0.1 }\n'
    )
    code, *_ = run("tune", log, *GOAL, "--policy", "home", "--as", "home-2", "--anyway")
    assert code == EXIT_OK
    assert policies(tmp_path).policies["home"].weights == {"click": 1.0, "dwell": 0.1}
    assert policies(tmp_path).policies["home-2"].formula == "weighted_sum"
    assert "# plain" in (tmp_path / "policies.toml").read_text()


def test_a_dry_run_writes_nothing(run, log, tmp_path):
    for command in (("tune", log, *GOAL), ("fit-calibration", log)):
        code, out, _ = run(*command, "--dry-run", "--anyway")
        assert code == EXIT_OK
        assert "nothing was written" in out
    assert not (tmp_path / "policies.toml").exists()


def test_tune_plots_the_trade_off(run, log, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _ = run("tune", log, *GOAL, "--dry-run", "--plot", tmp_path / "plot.png")
    assert code == EXIT_OK
    assert "plotted" in out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "rule"),
    [("no/plot.png", "its folder does not exist"), ("plot.txt", "must end in .png or .svg")],
)
def test_a_plot_that_could_not_be_written_is_refused_before_the_search(
    run, log, tmp_path, name, rule
):
    code, out, err = run("tune", log, *GOAL, "--dry-run", "--plot", tmp_path / name)
    assert code == EXIT_USAGE
    assert rule in err
    assert not out


def test_targets_that_cannot_be_reached_are_said_to_be(run, log):
    code, out, _ = run("tune", log, "--mix", "click=3,dwell=1", "--tries", "40", "--anyway")
    assert code == EXIT_OK
    assert "Not every target is reached" in out


def test_a_multiplier_is_no_part_of_a_log(run, log, tmp_path):
    (tmp_path / "policies.toml").write_text(
        '[policy.home]\nformula = "power_product"\nweights = { click = 1, like = 1 }\n'
        'multiplier = "boost"\n'
    )
    code, out, err = run("tune", log, *GOAL, "--policy", "home")
    assert (code, out) == (EXIT_USAGE, "")
    assert "multiplier cannot be tuned" in err


def test_an_outcome_below_zero_is_nothing_to_gain(run, tmp_path):
    table = worlds.columns(worlds.log()) | {"outcome_hide": [-1.0] * worlds.log().rows}
    path = worlds.write(tmp_path / "log.parquet", table)
    code, _, err = run("tune", path, "--ndcg", "hide=1")
    assert (code, err) == (EXIT_USAGE, "gatehouse: --ndcg: outcome hide is below 0 in some rows\n")


def test_position_bias_needs_positions(run, log, tmp_path):
    assert run("tune", log, *GOAL, "--position-bias", "0.5")[0] == EXIT_OK
    without = parquet.read_table(log).drop_columns(["position"])
    parquet.write_table(without, tmp_path / "log.parquet")
    code, _, err = run("tune", tmp_path / "log.parquet", *GOAL, "--position-bias", "0.5")
    assert (code, err) == (
        EXIT_USAGE,
        "gatehouse: --position-bias: the log has no column position\n",
    )


def test_fit_calibration_writes_what_is_better_and_says_what_is_not(run, log, tmp_path):
    code, out, err = run("fit-calibration", log, "--methods", "dwell=scale,like=platt")
    assert (code, err) == (EXIT_OK, "")
    rows = {each.split("│")[1].strip(): each for each in out.splitlines() if "│" in each}
    assert set(rows) == set(worlds.TASKS)
    written = policies(tmp_path).calibrations["feed"]
    assert "better" in rows["click"]
    assert written.keys() == {
        each for each in rows if rows[each].split("│")[-2].strip() == "better"
    }
    assert written["dwell"].method == "scale"


def test_what_is_calibrated_already_is_not_calibrated_again(run, log, tmp_path):
    run("fit-calibration", log)
    before = (tmp_path / "policies.toml").read_bytes()
    code, out, _ = run("fit-calibration", log)
    assert code == EXIT_OK
    assert "no sure gain" in out
    assert "No change is worth making" in out
    assert (tmp_path / "policies.toml").read_bytes() == before


def test_tasks_that_are_left_out_stay_as_they_are(run, log, tmp_path):
    run("fit-calibration", log, "--methods", "click=none,like=none,dwell=isotonic", "--anyway")
    assert policies(tmp_path).calibrations["feed"].keys() == {"dwell"}


def test_every_bad_column_is_a_line(run, tmp_path):
    table = worlds.columns(worlds.log(10))
    del table["score_like"]
    table["outcome_click"][3] = 7.0
    path = worlds.write(tmp_path / "log.parquet", table)
    for command in (("tune", path, *GOAL), ("fit-calibration", path)):
        code, out, err = run(*command)
        assert (code, out) == (EXIT_USAGE, "")
        assert err == f"gatehouse: {path}: column score_like is missing\n"


@pytest.mark.parametrize("missing", ["pyarrow", "scipy.optimize", "tomlkit"])
def test_a_part_that_is_not_installed_is_named(run, log, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    for command in (("tune", log, *GOAL), ("fit-calibration", log)):
        code, out, err = run(*command)
        assert (code, out) == (EXIT_USAGE, "")
        assert err.endswith(": pip install -e '.[tune]'\n")
        assert missing.partition(".")[0] in err


def test_variables_of_the_server_name_the_store_and_the_file(
    capsys, store, log, tmp_path, monkeypatch
):
    monkeypatch.setenv("GATEHOUSE_STORE", str(store))
    monkeypatch.setenv("GATEHOUSE_POLICIES", str(tmp_path / "served.toml"))
    assert main(["tune", str(log), *GOAL]) == EXIT_OK
    assert f"wrote {tmp_path / 'served.toml'}" in capsys.readouterr().out


def test_a_factor_below_1_is_refused(run, log):
    code, out, err = run("tune", log, *GOAL, "--within", "0.5")
    assert (code, out) == (EXIT_USAGE, "")
    assert "--within: must be 1 or more" in err


def test_without_matplotlib_there_is_no_plot_but_all_else(run, log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run("tune", log, *GOAL, "--plot", tmp_path / "plot.png")
    assert code == EXIT_OK
    assert "wrote" in out
    assert "matplotlib is not installed" in err


def test_an_interrupt_leaves_the_file_and_no_traceback(run, log, tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("scipy.optimize.differential_evolution", interrupted)
    assert run("tune", log, *GOAL) == (EXIT_INTERRUPTED, "", "gatehouse: interrupted\n")
    assert not (tmp_path / "policies.toml").exists()


@pytest.mark.slow
def test_what_was_written_is_served_and_ranks_alike_offline(run, log, store, tmp_path):
    assert run("fit-calibration", log)[0] == EXIT_OK
    assert run("tune", log, *GOAL)[0] == EXIT_OK
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
    assert (code, err) == (EXIT_OK, "")
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
        (["tune"], "the following arguments are required: LOG"),
        (["tune", "LOG"], "one of the arguments --ndcg --mix is required"),
        (["tune", "LOG", "--ndcg", "click"], "argument --ndcg: must be NAME=VALUE,NAME=VALUE"),
        (["tune", "LOG", "--ndcg", "a=1,a=2"], "argument --ndcg: must be NAME=VALUE,NAME=VALUE"),
        (["tune", "LOG", "--ndcg", "click=-1"], "argument --ndcg: must be a number above 0"),
        (["tune", "LOG", "--ndcg", "clik=1"], "--ndcg: the log has no outcome clik; it has click"),
        (["tune", "LOG", *GOAL, "--at", "0"], "argument --at: must be a whole number, 1 or more"),
        (["tune", "LOG", *GOAL, "--held-out", "1"], "argument --held-out: must be below 1"),
        (["tune", "LOG", *GOAL, "--policy", "x"], "--policy: there is no policy of this name"),
        (["tune", "LOG", *GOAL, "--as", "A Name"], "argument --as: must be lower-case letters"),
        (["tune", "LOG", *GOAL, "--model", "x"], "there is no model x"),
        (["tune", "LOG", *GOAL, "--held-out", "0.001"], " requests held out; there must be 50 or"),
        (["tune", "absent.csv", *GOAL], "absent.csv: "),
        (["fit-calibration", "LOG", "--method", "click=platt"], "no flag --method"),
        (["fit-calibration", "LOG", "--methods", "dwell=platt"], "--methods: dwell takes one of"),
        (["fit-calibration", "LOG", "--methods", "x=platt"], "--methods: the log has no outcome x"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line(run, log, tmp_path, arguments, line):
    code, _, err = run(*[log if each == "LOG" else each for each in arguments])
    assert code == EXIT_USAGE
    assert err.startswith("gatehouse: ")
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "policies.toml").exists()


@pytest.mark.parametrize("command", ["rank", "fit-calibration", "tune"])
def test_help_says_what_there_is(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert not caught.value.code
    out = capsys.readouterr().out
    assert "default:" in out


@pytest.mark.parametrize("command", ["rank", "fit-calibration", "tune"])
def test_help_does_not_wait_for_torch(command):
    code = (
        "import sys; from app.cli.main import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
