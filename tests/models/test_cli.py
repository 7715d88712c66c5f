import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.artifacts.store import Store
from models import __main__ as cli
from models.training import experiment
from tests import TINY_EXPERIMENT
from tests.models import impressions
from tests.support.waiting import killed_after

TINY = TINY_EXPERIMENT
ROOT = Path(__file__).parents[2]
COMMANDS = [
    *("train", "log", "fetch", "schema", "vocabulary", "tables"),
    *("show", "compare", "sweep"),
]


def test_train_ends_with_the_figures_and_the_artifact(tmp_path, capsys):
    status = cli.main(["train", "--config", str(TINY), "--store", str(tmp_path), "--quiet"])

    shown = capsys.readouterr()
    assert status == 0
    assert "true expectation" in shown.out
    assert shown.out.rstrip().splitlines()[-1] == f"published tiny/1: {tmp_path / 'tiny' / '1'}"
    assert shown.err == ""


def test_training_again_makes_the_next_version(tmp_path, capsys):
    for _ in range(2):
        cli.main(["train", "--config", str(TINY), "--store", str(tmp_path), "--quiet"])

    assert "published tiny/2" in capsys.readouterr().out
    assert Store(tmp_path).versions("tiny") == [1, 2]


def test_tables_are_the_items_and_users_of_the_simulated_feed(tmp_path, capsys):
    folder = tmp_path / "tables"
    assert cli.main(["tables", "--config", str(TINY), "--out", str(folder)]) == 0
    assert "rows, for gatehouse items publish" in capsys.readouterr().out
    found = experiment.read(TINY)
    for kind, key in (("items", "item_id"), ("users", "user_id")):
        lines = (folder / f"{kind}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        side = "candidate" if kind == "items" else "user"
        names = [feature.name for feature in found.features if feature.side == side]
        assert all(list(row) == names for row in rows)
        keys = [row[key] for row in rows]
        assert 0 not in keys
        assert len(set(keys)) == len(keys) > 40


def test_synthetic_data_has_no_tables(tmp_path, capsys):
    synthetic = next((ROOT / "models/configs").rglob("correlation/*.toml"))
    assert cli.main(["tables", "--config", str(synthetic), "--out", str(tmp_path)]) == 2
    assert "synthetic data has no items and users" in capsys.readouterr().err


def test_wrong_file_is_one_line_and_status_2(tmp_path, capsys):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(TINY.read_text().replace("epochs = 2", "epochs = 0"))

    status = cli.main(["train", "--config", str(wrong), "--store", str(tmp_path / "store")])

    shown = capsys.readouterr()
    assert status == 2
    assert shown.err == f"{wrong}: training.epochs: must be greater than 0\n"
    assert shown.out == ""
    assert not (tmp_path / "store").exists()


def test_diverging_run_is_one_line_and_status_1(tmp_path, capsys):
    wild = tmp_path / "wild.toml"
    wild.write_text(TINY.read_text().replace("learning_rate = 0.01", "learning_rate = 1e30"))

    status = cli.main(["train", "--config", str(wild), "--store", str(tmp_path)])

    assert status == 1
    assert capsys.readouterr().err.startswith("epoch 1: the ")


def test_store_that_cannot_be_written_is_one_line_and_status_1(tmp_path, capsys):
    (tmp_path / "file").touch()

    status = cli.main(["train", "--config", str(TINY), "--store", str(tmp_path / "file")])

    error = capsys.readouterr().err
    assert status == 1
    assert "Not a directory" in error
    assert error.count("\n") == 1


def test_show_prints_the_network(capsys):
    status = cli.main(["show", str(TINY)])

    shown = capsys.readouterr().out
    assert status == 0
    assert "PLE" in shown
    assert "total" in shown


def test_misspelt_config_key_names_the_right_one(tmp_path, capsys):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(TINY.read_text().replace("learning_rate", "lr"))

    status = cli.main(["train", "--config", str(wrong), "--store", str(tmp_path / "store")])

    assert status == 2
    assert capsys.readouterr().err == (
        f'{wrong}: unknown key "lr" in [training]; did you mean "learning_rate"?\n'
    )


def test_missing_csv_column_names_file_column_and_the_nearest(tmp_path, capsys):
    path = impressions.folder(tmp_path, schema=('"price"', '"prices"'))
    (tmp_path / "rows.parquet").unlink()
    impressions.write_csv(tmp_path / "rows.csv", impressions.table())

    status = cli.main(["train", "--config", str(path), "--store", str(tmp_path / "store")])

    assert status == 2
    assert capsys.readouterr().err == (
        f'{tmp_path / "rows.csv"}: no column "prices" for feature "quality" (columns: "request", '
        '"user", "recent", "item", "price", "age", "click", "like", "dwell"); '
        'did you mean "price"?\n'
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tarin"],
            "python -m models: unknown command tarin (commands: train, log, fetch, schema, "
            'vocabulary, tables, show, compare, sweep); did you mean "train"?\n',
        ),
        (
            ["train", "--confg", "x"],
            'python -m models train: unknown option --confg; did you mean "--config"?\n',
        ),
        (
            ["compare", "--sedes=3"],
            'python -m models compare: unknown option --sedes; did you mean "--seeds"?\n',
        ),
        (["show"], "python -m models show: the following arguments are required: CONFIG\n"),
    ],
)
def test_misspelt_command_or_option_suggests_the_nearest(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)

    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error
    assert error.splitlines()[-1].endswith(" --help")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])

    assert f"Example: python -m models {command} " in " ".join(capsys.readouterr().out.split())


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])

    shown = capsys.readouterr().out
    listed = [
        command for command in COMMANDS if re.search(rf"^    {command}\s", shown, re.MULTILINE)
    ]
    assert listed == COMMANDS


def test_help_names_defaults(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["train", "--help"])

    assert "(default: store)" in capsys.readouterr().out


def test_interrupt_keeps_a_checkpoint_and_says_how_to_resume(tmp_path, capsys):
    endless = tmp_path / "endless.toml"
    endless.write_text(TINY.read_text().replace("epochs = 2", "epochs = 100000\npatience = 100000"))
    process = subprocess.Popen(
        [
            *(sys.executable, "-u", "-m", "models", "train"),
            *("--config", str(endless), "--store", str(tmp_path / "store")),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with killed_after(process, 120):
        while "epoch 1/" not in process.stdout.readline():
            assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)

    assert process.returncode == 130
    kept = tmp_path / "store" / ".checkpoints" / "tiny.safetensors"
    assert re.fullmatch(
        rf"interrupted in epoch \d+; checkpoint: {kept}; "
        r"continue with the same command and --resume\n",
        error,
    )
    assert list(Store(tmp_path / "store").artifacts()) == []

    endless.write_text(TINY.read_text().replace("epochs = 2", "epochs = 1\npatience = 100000"))
    again = ["train", "--config", str(endless), "--store", str(tmp_path / "store"), "--resume"]
    assert cli.main(again) == 0
    assert "published tiny/1" in capsys.readouterr().out
    assert not kept.exists()


def test_resuming_without_a_checkpoint_is_one_line_and_status_2(tmp_path, capsys):
    status = cli.main(
        ["train", "--config", str(TINY), "--store", str(tmp_path / "store"), "--resume"]
    )

    error = capsys.readouterr().err
    assert status == 2
    assert error.endswith("tiny.safetensors: no checkpoint to resume from\n")
    assert error.count("\n") == 1
