"""`gatehouse replay`: two versions on recorded traffic, their figures and gates."""

import re
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import kendalltau

from app.artifacts.artifact_files import read_manifest
from app.artifacts.inputs import DenseInput
from app.artifacts.loader import load
from app.artifacts.store import Store
from app.artifacts.traffic_log import TrafficLog
from app.cli.main import main
from app.errors import ExitCode
from app.lifecycle.traffic import ReplaySettings
from app.scoring.replay import Contender, replay
from app.settings import Settings
from tests import REPOSITORY
from tests.support.builders import CPU, INPUTS, own_policies, published
from tests.support.model_tables import publish_rows, random_rows
from tests.support.server import running_server
from tests.support.traffic import Reversed, record_of, write_log

NEW = (*INPUTS, DenseInput(name="mood", side="user"))
ROWS = (2, 5, 17, 40)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with three versions of `feed`; the third one needs a new feature."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEHOUSE_{name.upper()}", raising=False)
    store = tmp_path / "store"
    published(store)
    published(store, Reversed())
    published(store, inputs=NEW)
    monkeypatch.setenv("GATEHOUSE_STORE", str(store))
    (store / "feed" / "traffic.toml").write_text("active = 1")
    return store


@pytest.fixture
def log(tmp_path):
    """Two processes' files, in one folder."""
    folder = tmp_path / "log"
    write_log(folder, [record_of(rows) for rows in ROWS[:2]], "1")
    write_log(folder, [record_of(rows) for rows in ROWS[2:]], "2")
    return folder


def contender(store, version):
    artifact = next(
        artifact for artifact in Store(store).artifacts() if artifact.version == version
    )
    model = load(artifact, CPU)
    return Contender(model, own_policies(model.manifest))


def test_figures_are_those_of_a_naive_comparison(store, log):
    before, after = contender(store, 1), contender(store, 2)
    report = replay(TrafficLog(log, "feed").requests(), before, after, most_requests=100)
    pairs = [
        [side.answer(request.document).ranked for side in (before, after)]
        for request in TrafficLog(log, "feed").requests()
    ]
    assert (report.requests, report.rows, report.refused) == (4, sum(ROWS), 0)
    for k, task in enumerate(("click", "dwell")):
        found = report.tasks[k]
        one, two = (np.concatenate([pair[i].scores[:, k] for pair in pairs]) for i in (0, 1))
        assert found.name == task
        assert found.mean == pytest.approx(one.mean(), rel=1e-6)
        assert found.other_mean == pytest.approx(two.mean(), rel=1e-6)
        assert found.max_difference == pytest.approx(np.abs(two - one).max(), rel=1e-6)
        taus = [kendalltau(a.scores[:, k], b.scores[:, k]).statistic for a, b in pairs]
        assert found.kendall_tau == pytest.approx(np.mean(taus))
    overlaps = [
        len({*np.argsort(-a.sort_keys)[:10]} & {*np.argsort(-b.sort_keys)[:10]})
        / min(10, len(a.scores))
        for a, b in pairs
    ]
    assert report.rank_score.top_10_overlap == pytest.approx(np.mean(overlaps))
    assert [task.kendall_tau is not None for task in report.tasks] == [True] * 3
    assert (report.tasks[0].kendall_tau or 0) < 0.5 < (report.tasks[1].kendall_tau or 0)
    assert report.cpu_us > 0 < report.other_cpu_us


@pytest.mark.parametrize(
    ("gates", "failed"),
    [
        ({}, []),
        ({"kendall_tau": 1.0}, ["kendall_tau"]),
        ({"top_10_overlap": 1.0}, ["top_10_overlap"]),
        ({"mean_ratio": 1.01}, ["mean_ratio", "mean_ratio"]),
        ({"cpu_ratio": 1e-6}, ["cpu_ratio"]),
        ({"kendall_tau": -1.0, "top_10_overlap": 0.0, "mean_ratio": 1000.0}, []),
    ],
)
def test_each_gate_fails_alone(store, log, gates, failed):
    requests = TrafficLog(log, "feed").requests()
    report = replay(requests, contender(store, 1), contender(store, 2), most_requests=100)
    found = report.failures(ReplaySettings(**gates))
    assert [failure.split(":")[0] for failure in found] == failed


@pytest.mark.usefixtures("store")
def test_a_version_agrees_with_itself(log, capsys):
    assert main(["replay", "feed", "1", "--against", "1", "--log", str(log)]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert re.search(r"rank score .* 1\.000 .* 1\.0000 .* 1\.0000 .* 0 ", shown)
    assert "4 requests, 64 candidates; 0 refused" in shown


def test_gates_come_from_options_or_from_the_traffic_file(store, log, capsys):
    command = ["replay", "feed", "2", "--log", str(log)]
    assert main(command) == ExitCode.OK
    assert main([*command, "--mean-ratio", "1.01"]) == ExitCode.FAILED
    assert "gate failed: mean_ratio: " in capsys.readouterr().err
    (store / "feed" / "traffic.toml").write_text("active = 1\n[replay]\nkendall_tau = 0.99")
    assert main(command) == ExitCode.FAILED
    assert "gate failed: kendall_tau: " in capsys.readouterr().err
    assert main([*command, "--kendall-tau", "-1"]) == ExitCode.OK


@pytest.mark.usefixtures("store")
def test_a_version_that_refuses_the_requests_fails(log, capsys):
    assert main(["replay", "3", "--log", str(log)]) == ExitCode.FAILED
    printed = capsys.readouterr()
    assert "gate failed: error_ratio: 1.0000, at most 0 is allowed" in printed.err
    assert "first refusal: /user/mood: required feature is missing" in printed.out
    assert main(["replay", "3", "--log", str(log), "--error-ratio", "1"]) == ExitCode.OK


@pytest.mark.usefixtures("store")
def test_a_policies_file_is_replayed_on_the_same_scores(log, tmp_path, capsys):
    policies = tmp_path / "next.toml"
    policies.write_text(
        '[default]\nfeed = "home"\n[policy.home]\nweights = { click = -1.0 }\n', encoding="utf-8"
    )
    command = ["replay", "feed", "--log", str(log), "--policies", str(policies)]
    assert main([*command, "--kendall-tau", "0.5"]) == ExitCode.FAILED
    shown = capsys.readouterr()
    assert re.search(r"click .* 1\.000 .* 1\.0000", shown.out)
    assert "gate failed: kendall_tau: 0." in shown.err
    assert "feed/1 (next.toml)" in shown.out
    policies.write_text("[policy.home]\nweights = { clikc = 1.0 }\n[default]\nfeed = 'home'")
    assert main(command) == ExitCode.USAGE
    assert 'did you mean "click"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["2"], "missing --log"),
        (["--log", "LOG"], "missing VERSION"),
        (["9", "--log", "LOG"], "feed has no version 9 (versions: 1, 2, 3)"),
        (["1", "--log", "LOG"], "version 1 is the active one"),
        (["2", "--log", "nowhere"], 'folder "nowhere" does not exist'),
        (["2", "--log", "."], "has no recorded requests of feed"),
        (["2", "--log", "LOG", "--kendall-tau", "2"], "--kendall-tau: must be at most 1"),
        (["2", "--log", "LOG", "--requests", "0"], "--requests must be 1 or more"),
        (["2", "--log", "LOG", "--policies", "no.toml"], "no.toml: no such file"),
        (["2", "--log", "LOG", "--plot", "x.dox"], "--plot x.dox: "),
    ],
)
@pytest.mark.usefixtures("store")
def test_a_mistake_is_one_line(log, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [str(log) if argument == "LOG" else argument for argument in arguments]
    assert main(["replay", *given]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("store")
def test_a_log_without_usable_requests_fails(tmp_path, capsys):
    folder = tmp_path / "other"
    write_log(folder, [record_of(status=503, scored=None)])
    (folder / "feed" / "2.parquet").write_bytes(b"PAR1")
    assert main(["replay", "2", "--log", str(folder)]) == ExitCode.FAILED
    error = capsys.readouterr().err
    assert "1 files cannot be read: 2.parquet: " in error
    assert "no recorded request that feed/1 can score" in error


@pytest.mark.usefixtures("store")
def test_a_plot_is_written(log, tmp_path):
    plot = tmp_path / "replay.png"
    assert main(["replay", "2", "--log", str(log), "--plot", str(plot)]) == ExitCode.OK
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("store")
def test_rows_with_outcomes_joined_to_them_can_be_tuned(tmp_path, capsys):
    folder = tmp_path / "log"
    write_log(folder, [record_of(3 + number % 9) for number in range(400)])
    rows = tmp_path / "rows.parquet"
    command = ["replay", "1", "--against", "1", "--log", str(folder), "--rows", str(rows)]
    assert main(command) == ExitCode.OK
    table = pq.read_table(rows)
    assert {"time", "position", "user.age", "candidate.item", "score_click"} <= {
        *table.column_names
    }
    assert "candidate.quality" not in table.column_names
    positions = table.column("position").to_numpy()
    assert positions.min() == 1
    clicks = np.random.default_rng(1).random(len(table)) < table.column("score_click").to_numpy()
    dwell = np.where(clicks, 3.0, np.nan)
    joined = table.append_column("outcome_click", pa.array(clicks.astype(float)))
    joined = joined.append_column("outcome_dwell", pa.array(dwell, from_pandas=True))
    logged = tmp_path / "log.parquet"
    pq.write_table(joined, logged)
    arguments = ["tune", str(logged), "--model", "feed", "--mix", "click=1", "--dry-run"]
    assert main([*arguments, "--anyway"]) == ExitCode.OK, capsys.readouterr().err


@pytest.mark.slow
def test_outcomes_are_joined_as_the_operators_guide_says(tmp_path, tiny, monkeypatch, capsys):
    """The key of the items is no feature, and the table drops unknown ones."""
    monkeypatch.chdir(tmp_path)
    store, traffic = tmp_path / "store", tmp_path / "traffic"
    shutil.copytree(tiny.folder, store / "tiny" / "1")
    manifest = read_manifest(tiny)
    keys = list(range(100, 150))
    publish_rows(
        store, manifest, "items", "sku", random_rows(manifest, "items", keys), unknown="drop"
    )
    publish_rows(store, manifest, "users", "user_id", random_rows(manifest, "users", [42]))
    guide = (REPOSITORY / "docker" / "VERSIONS.md").read_text(encoding="utf-8")
    caller, join = (
        next(block for block in re.findall(r"```python\n(.*?)```", guide, re.S) if part in block)
        for part in ("x-record-id", "rows.join")
    )
    random = np.random.default_rng(0)
    shown = []
    for _ in range(250):
        items = [*random.choice(keys, 6, replace=False).tolist(), 999]
        random.shuffle(items)
        shown.append((items, {item for item in items if random.random() < 0.3}))
    once = "show(user=42, items=[11, 12, 13], clicked={12})\n"
    assert once in caller
    caller = caller.replace(once, "for items, clicked in SHOWN:\n    show(42, items, clicked)\n")
    options = ("--record", str(traffic), "--record-share", "1", "--record-ids", "random")
    with running_server(store, tmp_path / "log", "--lanes", "1", *options) as server:
        url = "http://127.0.0.1:8000/v1/models/feed"
        assert url in caller
        names: dict[str, Any] = {"SHOWN": shown}
        exec(caller.replace(url, f"{server.url}/v1/models/tiny"), names)
        names["client"].close()
        server.terminate()
    command = ["replay", "tiny", "1", "--against", "1", "--store", str(store)]
    assert main([*command, "--log", str(traffic), "--rows", "rows.parquet"]) == ExitCode.OK
    exec(join)
    rows = pq.read_table("log.parquet").to_pylist()
    ids = pq.read_table("outcomes.parquet").column("request_id").to_pylist()
    requests = dict(zip(dict.fromkeys(ids), shown, strict=True))
    assert len(rows) == 6 * len(shown)
    for row in rows:
        items, clicked = requests[row["request_id"]]
        item = items[row["candidate"]]
        assert item != 999
        assert row["outcome_click"] == (item in clicked)
    tune = ["tune", "log.parquet", "--model", "tiny", "--mix", "click=1", "--dry-run", "--anyway"]
    assert main(tune) == ExitCode.OK, capsys.readouterr().err
