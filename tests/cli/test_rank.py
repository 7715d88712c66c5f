"""`gatehouse rank`: the server's own bytes without a server, and problems by their place."""

import io
import json
from types import SimpleNamespace

import httpx
import pytest

from app.artifacts.store import PROGRAM
from app.cli.main import main
from app.cli.rank import positions
from app.errors import ExitCode
from tests.support.builders import published
from tests.support.server import running_server

KEYS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store with one small model, `feed`."""
    folder = tmp_path_factory.mktemp("rank")
    published(folder)
    return folder


@pytest.fixture
def request_file(tmp_path):
    """A request that `feed` answers; its candidates in the order of their item, worst first."""
    path = tmp_path / "request.json"
    path.write_text(json.dumps(document()))
    return path


def document(**changes):
    user = {"age": [0.5], "recent": [1, 2]}
    candidates = {"item": [7, 3, 5], "quality": [[0.1, 0.2], [0.3, 0.1], [0.2, 0.3]]}
    return {"user": user, "candidates": candidates, "candidate_keys": KEYS} | changes


def rank(capsys, *arguments):
    code = main(["rank", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_output_equals_the_response_of_the_server_byte_for_byte(
    capsys, folder, request_file, tmp_path
):
    code, out, err = rank(capsys, request_file, "--store", folder, "--model", "feed")
    with running_server(folder, tmp_path / "log") as server:
        headers = {"content-type": "application/json"}
        content = request_file.read_bytes()
        answer = httpx.post(f"{server.url}/v1/score", content=content, headers=headers)
    assert (code, err) == (ExitCode.OK, "")
    assert out.encode() == answer.content + b"\n"


def test_dash_reads_a_request_from_standard_input(capsys, folder, request_file, monkeypatch):
    _, expected, _ = rank(capsys, request_file, "--store", folder)
    stdin = SimpleNamespace(buffer=io.BytesIO(request_file.read_bytes()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert rank(capsys, "-", "--store", folder) == (ExitCode.OK, expected, "")


def test_the_store_defaults_to_the_environment_variable(capsys, folder, request_file, monkeypatch):
    monkeypatch.setenv("GATEHOUSE_STORE", str(folder))
    assert rank(capsys, request_file)[0] == ExitCode.OK


def test_keys_and_tls_files_of_the_server_are_ignored(capsys, folder, request_file, monkeypatch):
    monkeypatch.setenv("GATEHOUSE_KEYS_FILE", "/run/secrets/keys")
    monkeypatch.setenv("GATEHOUSE_TLS_CERT", "/run/secrets/certificate")
    assert rank(capsys, request_file, "--store", folder)[0] == ExitCode.OK


def test_the_table_has_the_best_candidate_on_top(capsys, folder, request_file):
    code, out, _ = rank(capsys, request_file, "--store", folder, "--table")
    answer = json.loads(rank(capsys, request_file, "--store", folder)[1])
    assert code == ExitCode.OK
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    best_first = sorted(answer["rank_score"], reverse=True)
    assert [(row[1].strip(), row[2].strip()) for row in rows] == [
        (key, f"{score:.4g}") for key, score in zip(answer["ranking"], best_first, strict=True)
    ]


POLICIES = """\
[policy.home]
formula = "weighted_sum"
weights = { click = 1.0, dwell = -0.5 }

[policy.odd]
formula = "expression"
expression = "click * (1 + w.a * dwell)"
weights = { a = 3.0 }

[calibration.feed.click]
method = "platt"
slope = 0.5
intercept = 0.0
"""


def test_a_table_in_a_pipe_is_not_truncated(capsys, folder, request_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = rank(capsys, request_file, "--store", folder, "--explain", "--table")
    assert "…" not in out
    leads = [cell for line in out.splitlines() if line.startswith("│") for cell in line.split("│")]
    assert all(cell.count("(") == cell.count(")") for cell in leads)


def test_an_explained_table_has_shares_that_add_up(capsys, folder, request_file, tmp_path):
    (tmp_path / "policies.toml").write_text(POLICIES)
    flags = ("--store", folder, "--policies", tmp_path / "policies.toml", "--policy", "home")
    code, out, err = rank(capsys, request_file, *flags, "--explain", "--table")
    assert (code, err) == (ExitCode.OK, "")
    assert "home: weighted_sum of click 1, dwell -0.5" in out
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    assert len(rows) == 3
    for row in rows:
        _, _, rank_score, click, _, click_share, dwell_share = (cell.strip() for cell in row)
        calibrated, share = click_share.split(" (")[0].split(": ")
        assert float(calibrated) != float(click)
        assert float(calibrated) == pytest.approx(float(share), abs=1e-3)
        total = float(share) + float(dwell_share.split(" (")[0])
        assert float(rank_score) == pytest.approx(total, abs=2e-3)


def test_shares_of_an_expression_leave_a_remainder(capsys, folder, request_file, tmp_path):
    (tmp_path / "policies.toml").write_text(POLICIES)
    flags = ("--store", folder, "--policies", tmp_path / "policies.toml", "--policy", "odd")
    _, out, _ = rank(capsys, request_file, *flags, "--explain", "--table")
    assert "odd: expression of a 3" in out
    assert "remainder ┃" in out
    assert "click share" in out
    assert "finite difference" in " ".join(out.split())


def test_a_broken_policies_file_is_reported_on_one_line(capsys, folder, request_file, tmp_path):
    (tmp_path / "policies.toml").write_text('[default]\nfeed = "away"\n')
    flags = ("--store", folder, "--policies", tmp_path / "policies.toml")
    code, out, err = rank(capsys, request_file, *flags)
    assert (code, out, err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert "default.feed" in err


def test_equal_keys_list_the_better_candidate_first():
    answer = {"rank_score": [0.1, 0.5, 0.9], "ranking": ["a", "b", "a"]}
    assert positions(answer, ["a", "b", "a"]) == [2, 1, 0]
    assert positions({"ranking": [2, 0], "rank_score": [1, 0, 2]}, None) == [2, 0]


def test_each_wrong_field_is_a_line_without_its_value(capsys, folder, tmp_path):
    wrong = tmp_path / "request.json"
    candidates = {"item": ["s3cr3t", 1], "quality": [[0.0, 0.0], [0.0]]}
    wrong.write_text(json.dumps(document(candidates=candidates, candidate_keys=None)))
    code, out, err = rank(capsys, wrong, "--store", folder)
    assert (code, out) == (ExitCode.USAGE, "")
    lines = err.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["gatehouse", str(wrong), "/candidates/item/0"],
        ["gatehouse", str(wrong), "/candidates/quality/1"],
    ]
    assert "s3cr3t" not in err


def test_line_i_is_the_response_to_request_i_even_if_refused(capsys, folder, tmp_path):
    many = tmp_path / "requests.jsonl"
    lines = [json.dumps(document()), "{}", "", "no json", json.dumps(document())]
    many.write_text("\n".join(lines))
    code, out, err = rank(capsys, many, "--store", folder)
    assert code == ExitCode.USAGE
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer.get("status", 200) for answer in answers] == [200, 422, 400, 200]
    assert answers[0] == answers[3]
    assert f"{many}, line 2: /user" in err
    assert f"{many}, line 4: invalid JSON" in err


@pytest.mark.parametrize("body", ["", "[]", '{"ranking": 3}', '{"user": {"age": [NaN]}}'])
def test_explain_does_not_change_how_a_bad_request_is_refused(capsys, folder, tmp_path, body):
    path = tmp_path / "request.json"
    path.write_text(body)
    code, out, err = rank(capsys, path, "--store", folder, "--explain", "--table")
    assert (code, out) == (ExitCode.USAGE, "")
    assert str(path) in err
    assert "must be null" not in err


def test_an_unknown_model_is_reported_on_one_line(capsys, folder, request_file):
    code, out, err = rank(capsys, request_file, "--store", folder, "--model", "search")
    assert (code, out, err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert "not found; active models: " in err


def test_store_that_cannot_be_served_exits_with_1(capsys, tmp_path, request_file):
    code, _, err = rank(capsys, request_file, "--store", tmp_path)
    assert code == ExitCode.FAILED
    assert "holds no artifacts" in err
    artifact = published(tmp_path)
    (artifact.folder / PROGRAM).write_bytes(b"")
    code, _, err = rank(capsys, request_file, "--store", tmp_path)
    assert code == ExitCode.FAILED
    assert "model.ts: has 0 bytes" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "missing REQUEST.json; see gatehouse rank --help"),
        (["absent.json"], "absent.json: No such file or directory"),
        (["a", "--stor", "b"], "unknown option --stor; did you mean --store?"),
    ],
    ids=str,
)
def test_wrong_usage_is_reported_on_one_line(capsys, arguments, line):
    code, out, err = rank(capsys, *arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert err == f"gatehouse: {line}\n"


def test_a_store_that_does_not_exist_is_wrong_usage(capsys, tmp_path, request_file):
    code, out, err = rank(capsys, request_file, "--store", tmp_path / "none")
    assert (code, out) == (ExitCode.USAGE, "")
    assert err == f'gatehouse: store "{tmp_path / "none"}" does not exist\n'


def test_policies_beside_the_store_are_followed(capsys, request_file, tmp_path):
    published(tmp_path / "store")
    (tmp_path / "policies.toml").write_text(POLICIES)
    code, out, err = rank(capsys, request_file, "--store", tmp_path / "store", "--policy", "home")
    assert (code, err) == (ExitCode.OK, "")
    assert json.loads(out)["policy"]["name"] == "home"


def test_a_wrong_setting_is_one_line(capsys, request_file, monkeypatch):
    monkeypatch.setenv("GATEHOUSE_MAX_CANDIDATES", "many")
    code, _, err = rank(capsys, request_file)
    assert code == ExitCode.USAGE
    assert err.startswith(
        "gatehouse: GATEHOUSE_MAX_CANDIDATES=many: must be an integer of 1 or more"
    )
