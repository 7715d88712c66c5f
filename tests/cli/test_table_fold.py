"""`gatehouse items publish --fold`: what it takes, what it keeps, and why it is refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from app.artifacts.store import Store
from app.artifacts.tables.listing import tables_of
from app.artifacts.tables.publish import publish_delta
from app.cli.main import main
from app.errors import ExitCode
from tests.cli.item_tables import ROWS, default_store, items, table
from tests.support.builders import Folding, Request, published


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A store with `feed/1`, which may be folded."""
    store = tmp_path_factory.mktemp("models")
    published(store, Folding(), folded_width=2)
    return store


@pytest.fixture
def store(models, tmp_path, monkeypatch):
    return default_store(models, tmp_path, monkeypatch)


@pytest.fixture
def run(capsys):
    def run_items(*arguments, code=ExitCode.OK):
        found = main(["items", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert found == code, err
        return (out + err).replace("gatehouse: ", "")

    return run_items


def folded(found, *keys):
    return found.take_folded(found.find(np.array(keys))).tolist()


def as_float32(rows):
    return np.array(rows, np.float32).tolist()


def test_what_it_takes_is_said_before_it_is_done(store, run, monkeypatch):
    seen = []

    def usage(_path):
        seen.append(tables_of(store / "feed", "items"))
        return SimpleNamespace(free=10**9)

    monkeypatch.setattr("shutil.disk_usage", usage)
    first, second, third = run("publish", items(ROWS), "--key", "item", "--fold").splitlines()
    assert first == (
        "folding for version 1: 8 bytes per item beside 16 of its features; 0.0 kB for 3 items "
        "beside 0.0 kB"
    )
    assert second.startswith("published items/1 of feed: 3 rows, 2 features, key item (int64)")
    assert third.startswith("folded for version 1: scores differ by at most ")
    assert third.endswith("tolerance 1e-05; other versions of the model serve from the features")
    assert seen == [[]]
    found = table(store)
    assert found.fold.version == 1
    assert folded(found, 3, 1) == as_float32([[-0.3, 1.1], [-0.1, 0.3]])


def test_a_disk_that_is_too_small_refuses(store, run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=23))
    out = run("publish", items(ROWS), "--fold", code=ExitCode.USAGE)
    assert "folding for version 1: 8 bytes per item" in out
    assert "folding needs 0.0 kB, the disk of " in out
    assert "nothing is published: 1 problem" in out
    assert tables_of(store / "feed", "items") == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=24))
    run("publish", items(ROWS), "--fold")


def test_the_gate_refuses_a_version_whose_scores_differ(store, run):
    published(store, Folding(1e-3), folded_width=2)
    out = run("publish", items(ROWS), "--fold", code=ExitCode.USAGE)
    assert "version 2: fold: raw output of task click differs by 0.000" in out
    assert "on golden examples, tolerance 1e-05\nnothing is published: 1 problem\n" in out
    assert tables_of(store / "feed", "items") == []
    run("publish", items(ROWS), "--fold", "--version", 1)


def test_the_gate_refuses_rows_whose_scores_differ(store, run, monkeypatch):
    def wrong(_program, records):
        yield np.full((len(records), 2), 7, np.float32)

    monkeypatch.setattr("app.cli.table_fold.fold_records", wrong)
    out = run("publish", items(ROWS), "--fold", code=ExitCode.USAGE)
    assert "on rows of the table, tolerance 1e-05\nnothing is published: 1 problem\n" in out
    assert tables_of(store / "feed", "items") == []
    assert list((store / "feed" / "items").iterdir()) == []


def test_what_cannot_be_folded_is_refused_with_every_reason(store, run, capsys):
    out = run("publish", items("item\n1\n"), "--fold", "--sent", "quality", code=ExitCode.USAGE)
    assert 'feature "quality": is not in the table, so the table cannot be folded' in out
    published(store, Request())
    out = run("publish", items(ROWS), "--fold", code=ExitCode.USAGE)
    assert "version 2 cannot be folded: its model.json has no folded_width" in out
    assert main(["users", "publish", items(ROWS), "--fold"]) == ExitCode.USAGE
    assert "unknown option --fold" in capsys.readouterr().err


def test_deltas_of_a_folded_table_are_folded_and_compaction_keeps_it(store, run):
    run("publish", items(ROWS), "--fold")
    assert "--fold cannot be used with --delta: a delta is folded if its table is" in run(
        "publish", items(ROWS), "--delta", "--fold", code=ExitCode.USAGE
    )
    out = run("publish", items("item,quality\n2,1 1\n4,2 2\n", "new.csv"), "--delta")
    assert "folding for version 1: 8 bytes per item beside 16 of its features; 0.0 kB for 2" in out
    run("publish", items("item,gone\n1,true\n", "gone.csv"), "--delta", "--deleted", "gone")
    found = table(store)
    assert (found.label, found.fold.version) == ("1.2", 1)
    expected = as_float32([[-0.2, 2.0], [-0.3, 1.1], [-0.4, 4.0]])
    assert folded(found, 2, 3, 4) == expected
    out = run("compact")
    assert out == "published items/2 of feed: items/1.2, 3 rows, folded for version 1\n"
    assert folded(table(store), 2, 3, 4) == expected


def test_a_delta_without_its_version_is_published_and_not_folded(store, run):
    run("publish", items(ROWS), "--fold")
    published(store, Request())
    shutil.rmtree(store / "feed" / "1")
    out = run("publish", items("item,quality\n2,1 1\n", "new.csv"), "--delta")
    assert (
        "the delta is not folded, so its table will serve from its features: the store has no "
        "version with the program of version 1\n"
    ) in out
    found = table(store)
    assert (found.label, found.fold) == ("1.1", None)
    assert found.take(found.find(np.array([2])))["quality"].tolist() == [[1.0, 1.0]]
    again = run("publish", items("item,quality\n3,1 1\n", "new.csv"), "--delta")
    assert "its table will serve from its features: delta 1 is not folded\n" in again
    assert "not folded any more: delta 1 is not" in run("list")


def test_a_delta_without_rows_does_not_end_the_fold(store, run):
    """The next delta follows one that was removed by hand: an empty one takes its number."""
    run("publish", items("item,quality\n1,1 1\n2,2 2\n"), "--fold")
    for key in (1, 2):
        run("publish", items(f"item,quality\n{key},5 5\n", "new.csv"), "--delta")
    shutil.rmtree(store / "feed" / "items" / "1.delta" / "2")
    run("publish", items("item,quality\n2,6 6\n", "new.csv"), "--delta")
    assert table(store).label == "1.3"
    assert folded(table(store), 2)[0][1] == 12
    assert "not folded any more" not in run("list")
    run("publish", items("item,quality\n1,7 7\n", "new.csv"), "--delta")
    assert folded(table(store), 1)[0][1] == 14


def test_a_delta_that_the_gate_refuses_is_published_and_not_folded(store, run, monkeypatch):
    def wrong(_program, records):
        yield np.full((len(records), 2), 7, np.float32)

    run("publish", items(ROWS), "--fold")
    with monkeypatch.context() as patched:
        patched.setattr("app.cli.table_fold.fold_records", wrong)
        out = run("publish", items("item,quality\n2,1 1\n", "new.csv"), "--delta")
    assert "the delta is not folded, so its table will serve from its features: fold: " in out
    found = table(store)
    assert (found.label, found.fold) == ("1.1", None)
    assert not (store / "feed" / "items" / "1.delta" / "1" / "folded").exists()


def test_a_delta_is_told_of_a_table_that_was_folded_meanwhile(store, run, monkeypatch):
    published(store, Folding(1e-7), folded_width=2)
    run("publish", items(ROWS), "--fold", "--version", 1)

    def delta(meanwhile):
        def publishing(*arguments):
            assert main(["items", "publish", *meanwhile]) == ExitCode.OK
            return publish_delta(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr("app.cli.table_publish.publish_delta", publishing)
            return run("publish", items("item,quality\n2,1 1\n", "new.csv"), "--delta")

    again = [items(ROWS), "--fold", "--version", "1"]
    assert "the delta is not folded" not in delta(again)
    assert (table(store).label, table(store).fold.version) == ("2.1", 1)
    reason = "items/3 was published meanwhile, folded for version 2\n"
    assert f"its table will serve from its features: {reason}" in delta([items(ROWS), "--fold"])
    assert (table(store).label, table(store).fold) == ("3.1", None)


@pytest.mark.usefixtures("store")
def test_a_table_that_ends_the_fold_is_told(run):
    run("publish", items(ROWS), "--fold")
    assert "items/1 was folded for version 1, this table is not; --fold folds it" in run(
        "publish", items(ROWS)
    )


def test_list_show_and_check_tell_of_the_fold(store, run, capsys):
    run("publish", items(ROWS), "--fold")
    assert "folded for version 1 (8 bytes per item)" in run("list")
    assert run("show", 2).startswith("items/1 of feed, item 2, folded for version 1\n")
    assert main(["check"]) == ExitCode.OK
    assert "table, folded for version 1" in capsys.readouterr().out
    published(store, Request())
    assert "folded for version 1 (8 bytes per item)" in run("list")
    shutil.rmtree(store / "feed" / "1")
    assert "folded for version 1, which the store does not have" in run("list")
    assert main(["check"]) == ExitCode.OK


@pytest.mark.usefixtures("store")
def test_check_finds_a_fold_with_other_scores(run, capsys, monkeypatch):
    def wrong(_program, records):
        yield np.full((len(records), 2), 7, np.float32)

    with monkeypatch.context() as patched:
        patched.setattr("app.cli.table_fold.fold_records", wrong)
        patched.setattr("app.cli.table_fold.check_rows", lambda *_: 0.0)
        run("publish", items(ROWS), "--fold")
    assert main(["check"]) == ExitCode.FAILED
    assert "differs by" in capsys.readouterr().out


def test_tables_without_a_fold_have_the_same_description_as_before(store, run):
    run("publish", items(ROWS))
    (listed,) = tables_of(store / "feed", "items")
    assert "fold" not in json.loads((listed.folder / "table.json").read_text())
    assert Store(store).versions("feed") == [1]
