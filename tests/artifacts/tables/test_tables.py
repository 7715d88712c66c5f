"""Tables with deltas against a dict, and files that are damaged, missing or elsewhere."""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from app.artifacts.inputs import DenseInput, IdInput
from app.artifacts.store import Store
from app.artifacts.tables import description as descriptions, segment, writer
from app.artifacts.tables.description import TableColumn
from app.artifacts.tables.listing import find_table, tables_of
from app.artifacts.tables.publish import compact, publish_table, remove
from app.artifacts.tables.table import TableKeys, open_table
from app.artifacts.tables.writer import DuplicateKeys
from app.errors import ArtifactInvalid, TableIncomplete
from tests.support.artifacts import corrupt
from tests.support.tables import DEFAULTS, add, as_keys, change, plan, publish, record

KEYS = {
    "int64": st.one_of(st.integers(0, 12), st.sampled_from([-(2**63), 2**63 - 1])),
    "string": st.sampled_from(["", "a", "b", "ab", "é", "𝄞", "a" * 256, "\0", "item 1", "item 2"]),
}
numbers = st.integers(0, 1000)


def opened(store, version=None, **upto):
    return open_table(find_table(store / "feed", "items", version), "feed", **upto)


def check(table, the_plan, twin, asked):
    """Compare a table with a dict: found keys, rows, every column, unknown keys."""
    positions = table.find(as_keys(the_plan, asked))
    assert (positions >= 0).tolist() == [key in twin for key in asked]
    rows = [record(twin[key]) if key in twin else DEFAULTS for key in asked]
    expected = np.concatenate([record(0)[:0], *rows])
    taken = table.take(positions)
    for name in table.columns:
        assert taken[name].tolist() == expected[name].tolist()
        out = np.zeros_like(expected[name])
        assert table.gather(name, positions, out) is out
        assert out.tolist() == expected[name].tolist()
        assert table.gather(name, positions).dtype == out.dtype
    assert table.rows == len(twin)
    everything = [list(keys) for keys, _ in table.batches(5)]
    assert sorted(key for part in everything for key in part) == sorted(twin)
    for count in (0, 1, 3, 99):
        first = table.first_keys(count)
        assert len(set(first)) == len(first) == min(count, len(twin))
        assert set(first) <= set(twin)


@pytest.fixture
def quick_disk(monkeypatch):
    """The disk is not waited for: a property test publishes hundreds of tables."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.no_cover
@pytest.mark.usefixtures("quick_disk")
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data(), st.sampled_from(["int64", "string"]))
def test_table_and_deltas_equal_a_dict(tmp_path_factory, data, key_type):
    store = tmp_path_factory.mktemp("store")
    try:
        the_plan = plan(store, key_type)
        keys = KEYS[key_type]
        twin = data.draw(st.dictionaries(keys, numbers, max_size=8))
        publish(the_plan, twin)
        view = opened(store)
        views = [(view, twin)]
        for _ in range(data.draw(st.integers(0, 4))):
            rows = data.draw(st.dictionaries(keys, numbers, max_size=4))
            removed = data.draw(st.lists(keys.filter(lambda key: key not in rows), unique=True))  # noqa: B023
            listed = change(the_plan, rows, removed)
            twin = {key: number for key, number in twin.items() if key not in removed} | rows
            if data.draw(st.booleans()):
                view = view.extended(listed)
                views.append((view, twin))
        views.append((opened(store), twin))
        asked = data.draw(st.lists(keys))
        for view, its_twin in views:  # old views stay as they were
            check(view, the_plan, its_twin, [*its_twin, *asked])
        listed = find_table(store / "feed", "items")
        counts = [opened(store, upto=delta).rows for delta in range(len(listed.deltas) + 1)]
        prefixes = [replace(listed, deltas=listed.deltas[:delta]) for delta in range(len(counts))]
        assert [TableKeys.of(prefix).count for prefix in prefixes] == counts
        if views[-1][0].delta and not twin:
            with pytest.raises(ArtifactInvalid, match="items/1 has no rows: its deltas remove"):
                compact(store / "feed", "items")
        elif views[-1][0].delta:
            assert compact(store / "feed", "items").version == 2
            check(opened(store), the_plan, twin, [*twin, *asked])
            assert opened(store).created == views[-1][0].created
    finally:
        shutil.rmtree(store)


def test_a_view_may_be_extended_twice(tmp_path):
    the_plan = plan(tmp_path)
    publish(the_plan, {1: 1})
    change(the_plan, {4: 4})
    view = opened(tmp_path)
    one = view.extended(change(the_plan, {2: 2}))
    shutil.rmtree(tmp_path / "feed" / "items" / "1.delta" / "2")
    other = view.extended(change(the_plan, {3: 3}))
    check(view, the_plan, {1: 1, 4: 4}, [1, 2, 3, 4])
    check(one, the_plan, {1: 1, 2: 2, 4: 4}, [1, 2, 3, 4])
    check(other, the_plan, {1: 1, 3: 3, 4: 4}, [1, 2, 3, 4])


def test_table_says_what_it_is(tmp_path):
    publish(plan(tmp_path, unknown="drop", max_age_s=60.0), {11: 1, 12: 2, 13: 3})
    change(plan(tmp_path), {12: 5, 14: 6}, [13])
    table = opened(tmp_path)
    assert (table.kind, table.version, table.delta, table.label) == ("items", 1, 1, "1.1")
    assert (table.key, table.key_type, table.unknown, table.rows) == ("item_id", int, "drop", 3)
    assert set(table.columns) == {"price", "vector", "brand", "tags"}
    assert table.max_age_s == 60.0
    assert (datetime.now(UTC) - table.created).total_seconds() < 60
    assert opened(tmp_path, upto=0).label == "1"
    files = [path for path in (tmp_path / "feed" / "items").rglob("*") if path.is_file()]
    assert table.size == sum(
        e.stat().st_size for e in files if e.name != "table.json" and e.name[0] != "."
    )


def test_first_keys_are_those_of_the_table_then_those_that_deltas_add(tmp_path):
    publish(plan(tmp_path), {11: 1, 12: 2, 13: 3, 14: 4})
    change(plan(tmp_path), {11: 5, 20: 6, 21: 7}, [12, 13])
    change(plan(tmp_path), {22: 8}, [21])
    table = opened(tmp_path)
    assert table.first_keys(1) == [11]
    assert table.first_keys(2) == [11, 14]
    assert table.first_keys(3) == [11, 14, 20]
    assert table.first_keys(9) == [11, 14, 20, 22]


def test_repeated_keys_are_refused_and_leave_nothing(tmp_path):
    def fill(writer):
        add(writer, {1: 1, 2: 2})
        add(writer, {3: 3, 2: 4})

    with pytest.raises(DuplicateKeys) as refused:
        publish_table(plan(tmp_path), fill)
    assert refused.value.pairs.tolist() == [[1, 3]]
    assert list((tmp_path / "feed" / "items").iterdir()) == []
    with pytest.raises(ArtifactInvalid, match="256 characters"):
        publish(plan(tmp_path, "string"), {"x" * 257: 1})


def test_delta_of_another_table_is_refused(tmp_path):
    publish(plan(tmp_path), {1: 1})
    other = tmp_path / "other"
    publish(plan(other), {1: 1})
    change(plan(other), {1: 2})
    shutil.copytree(other / "feed" / "items" / "1.delta", tmp_path / "feed" / "items" / "1.delta")
    with pytest.raises(ArtifactInvalid, match=r"delta 1: table.json: is a delta of another table"):
        opened(tmp_path)
    assert opened(tmp_path, upto=0).rows == 1
    with pytest.raises(ArtifactInvalid, match="items/1 has other columns than the delta"):
        change(plan(tmp_path, columns=plan(tmp_path).columns[:2]), {})
    with pytest.raises(ArtifactInvalid, match=r"feed has no items/7 \(tables: 1\)"):
        change(plan(tmp_path), {}, table=7)


def test_delta_after_a_gap_waits(tmp_path):
    publish(plan(tmp_path), {1: 1})
    for number in (2, 3, 4, 5):
        change(plan(tmp_path), {1: number})
    model = tmp_path / "feed"
    deltas = tmp_path / "feed" / "items" / "1.delta"
    (deltas / "2").rename(deltas / ".2")
    assert find_table(tmp_path / "feed", "items").deltas == (1,)
    assert find_table(tmp_path / "feed", "items").stranded == (3, 4)
    for refused in (lambda: change(plan(tmp_path), {1: 9}), lambda: compact(model, "items")):
        with pytest.raises(ArtifactInvalid, match="items/1: delta 2 is missing, so delta 3 and 1 "):
            refused()
    (deltas / "2").mkdir()  # a copy that was interrupted gives way to a new delta
    (deltas / "3").rename(deltas / ".3")
    (deltas / "4").rename(deltas / ".4")
    assert change(plan(tmp_path), {1: 9}).deltas == (1, 2, 3, 4, 5)
    check(opened(tmp_path), plan(tmp_path), {1: 9}, [1])


def _become_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = (
    (corrupt, ArtifactInvalid, "SHA-256"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), TableIncomplete, "bytes"),
    (lambda path: path.write_bytes(path.read_bytes() + b"0"), ArtifactInvalid, "bytes"),
    (lambda path: path.unlink(), TableIncomplete, "is missing"),
    (_become_a_folder, ArtifactInvalid, "not a regular file"),
)


@pytest.mark.parametrize("key_type", ["int64", "string"])
def test_every_damaged_file_is_refused(tmp_path, key_type):
    folder = publish(
        plan(tmp_path, key_type), {"a": 1, "b": 2} if key_type == "string" else {1: 1, 2: 2}
    ).folder
    files = sorted(path.name for path in folder.iterdir() if path.name != "table.json")
    assert len(files) == (6 if key_type == "string" else 4)
    for name in files:
        content = (folder / name).read_bytes()
        for damage, error, message in DAMAGES:
            damage(folder / name)
            with pytest.raises(error, match=rf"^{name}: .*{message}") as refused:
                opened(tmp_path)
            assert isinstance(refused.value, TableIncomplete) == (error is TableIncomplete)
            if (folder / name).is_dir():
                (folder / name).rmdir()
            (folder / name).write_bytes(content)
    assert opened(tmp_path).rows == 2


def rewrite(folder, name, content):
    """Replace a file as an attacker would: its digest fits."""
    (folder / name).write_bytes(content)
    document = json.loads((folder / "table.json").read_text())
    digest = [hashlib.sha256(content).hexdigest()] if content else []
    document["files"][name] = {"size": len(content), "sha256": digest}
    (folder / "table.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("keys.rows", np.array([0, 0, 1], "<i4"), "keys.rows: a row has no key"),
        ("keys.rows", np.array([0, 1, 7], "<i4"), "keys.rows: a row is beyond the last"),
        ("keys.rows", np.array([0, 1, -1], "<i4"), "keys.rows: another number of keys"),
        ("keys.rows", np.array([0, 1, -2], "<i4"), "keys.rows: another number of keys"),
        ("keys.rows", np.array([0, 1], "<i4"), "keys.rows must have 12 bytes"),
        ("keys", np.array([3, 2, 1, 0], "<i8"), "keys must have 24 bytes"),
        ("keys", np.array([8, 8, 8], "<i8"), "keys"),
        ("keys.starts", np.zeros(9, "<u4"), "keys.starts: do not cover keys"),
        ("rows", np.zeros(3, "u1"), "rows must have"),
    ],
)
def test_wrong_content_with_a_right_digest_is_refused(tmp_path, name, content, message):
    folder = publish(plan(tmp_path), {1: 1, 2: 2, 3: 3}).folder
    rewrite(folder, name, content.tobytes())
    with pytest.raises(ArtifactInvalid, match=message):
        opened(tmp_path)


def wide(dim):
    return {"feature": {"kind": "dense", "name": "price", "side": "candidate", "dim": dim}}


@pytest.fixture(scope="module")
def eight_rows(tmp_path_factory):
    """The folder of a table with the keys 0 to 7, and of one with the keys a to h."""
    keys = {"int64": range(8), "string": "abcdefgh"}
    return {
        kind: publish(
            plan(tmp_path_factory.mktemp(kind), kind), dict.fromkeys(own_keys, 1.0)
        ).folder
        for kind, own_keys in keys.items()
    }


@pytest.mark.no_cover
@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3),
    st.sampled_from(["int64", "string"]),
)
def test_forged_files_are_refused_or_harmless(tmp_path_factory, eight_rows, file, damages, kind):
    """Whatever the bytes are, a lookup ends, and gives a row of the table or none."""
    store = tmp_path_factory.mktemp("store")
    folder = store / "feed" / "items" / "1"
    shutil.copytree(eight_rows[kind], folder)
    names = sorted(path.name for path in folder.iterdir())
    name = names[file % len(names)]
    content = bytearray((folder / name).read_bytes())
    for place, byte in damages:
        content[place % len(content)] = byte
    if name == "table.json":
        (folder / name).write_bytes(content)
    else:
        rewrite(folder, name, bytes(content))
    try:
        table = opened(store)
    except ArtifactInvalid:
        return
    finally:
        shutil.rmtree(store)
    asked = list("abcdefghz") if kind == "string" else np.arange(9)
    positions = table.find(asked)
    assert ((positions >= -1) & (positions < 8)).all()
    assert len(table.take(positions)) == len(asked)
    assert len(table.first_keys(100)) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "describes items/2 of feed, its folder is items/1 of feed"),
        ({"model": "other"}, "describes items/1 of other"),
        ({"bits": 20}, "keys.starts must have"),
        ({"rows": -1}, "rows: "),
        ({"rows": 2**40}, "rows: "),
        ({"removed": 1}, "only a delta removes keys"),
        ({"extra": 1}, 'unknown key "extra"'),
        ({"columns": [wide(2**40)]}, "a row has more than 16777216 bytes"),
        ({"columns": [wide(2**70)]}, "columns"),
        ({"format": 2}, "format: "),
        ({"columns": []}, "columns: "),
        ({"unknown": "guess"}, "unknown: "),
        ({"files": {"../../secret": {"size": 0, "sha256": []}}}, "files"),
    ],
)
def test_wrong_description_is_refused(tmp_path, changes, message):
    path = publish(plan(tmp_path), {1: 1}).folder / "table.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ArtifactInvalid, match=message):
        opened(tmp_path)


def test_a_copy_that_is_under_way_is_incomplete(tmp_path):
    source = publish(plan(tmp_path / "source"), {1: 1}).folder
    target = tmp_path / "feed" / "items" / "1"
    target.mkdir(parents=True)
    assert tables_of(tmp_path / "feed", "items") == []
    content = (source / "table.json").read_bytes()
    for part in (b"", content[:100], content):
        (target / "table.json").write_bytes(part)
        with pytest.raises(TableIncomplete):
            opened(tmp_path)
    for path in source.iterdir():
        shutil.copy(path, target)
    before = find_table(tmp_path / "feed", "items").fingerprint()
    assert opened(tmp_path).rows == 1
    assert find_table(tmp_path / "feed", "items").fingerprint() == before


def test_links_are_followed_inside_a_folder_only(tmp_path):
    source = publish(plan(tmp_path / "source"), {1: 1}).folder
    mounted = tmp_path / "feed" / "items" / "1"  # as a Kubernetes volume is mounted
    (mounted / "..2026").mkdir(parents=True)
    for path in source.iterdir():
        shutil.copy(path, mounted / "..2026")
        (mounted / path.name).symlink_to(f"..data/{path.name}")
    (mounted / "..data").symlink_to("..2026")
    assert opened(tmp_path).rows == 1
    (mounted / "rows").unlink()
    (mounted / "rows").symlink_to(source / "rows")
    with pytest.raises(ArtifactInvalid, match="rows: is a link that leaves the folder"):
        opened(tmp_path)


def test_a_store_behind_links_serves(tmp_path):
    publish(plan(tmp_path / "..2026"), {1: 1})
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "feed").symlink_to("..data/feed")
    assert opened(tmp_path).rows == 1


def test_a_table_outlives_its_files(tmp_path):
    listed = publish(plan(tmp_path), {1: 1})
    table = opened(tmp_path)
    shutil.rmtree(listed.folder)
    assert listed.fingerprint() == frozenset()
    check(table, plan(tmp_path), {1: 1}, [1, 2])


def test_a_removed_table_is_gone_with_its_deltas_and_its_number(tmp_path):
    for number in (1, 2, 3):
        publish(plan(tmp_path), {1: number})
        change(plan(tmp_path), {2: number})
    table = opened(tmp_path, version=1)
    remove(find_table(tmp_path / "feed", "items", 1))
    left = sorted(path.name for path in (tmp_path / "feed" / "items").iterdir())
    assert left == [".2.delta.last", ".3.delta.last", ".lock", "2", "2.delta", "3", "3.delta"]
    check(table, plan(tmp_path), {1: 1, 2: 1}, [1, 2])
    shutil.rmtree(tmp_path / "feed" / "items" / "3")
    assert publish(plan(tmp_path), {1: 1}).version == 4  # never the number of an old delta


def test_no_number_is_given_twice(tmp_path):
    """A server that has opened items/3 never goes back, and does not take another items/3."""
    for number in (1, 2, 3):
        publish(plan(tmp_path), {1: number})
    items = tmp_path / "feed" / "items"
    shutil.rmtree(items / "3")
    assert publish(plan(tmp_path), {1: 1}).version == 4
    shutil.rmtree(items)
    change(plan(tmp_path), {2: 2}, table=publish(plan(tmp_path), {1: 1}).version)
    assert compact(tmp_path / "feed", "items").version == 6
    assert sorted(path.name for path in (tmp_path / "feed").iterdir()) == [".items.last", "items"]


@pytest.mark.parametrize("key_type", ["int64", "string"])
def test_no_number_of_a_delta_is_given_twice(tmp_path, key_type):
    """A server that has applied items/1.2 would not see that there is another items/1.2."""
    the_plan = plan(tmp_path, key_type)
    one, two, three, four = (1, 2, 3, 4) if key_type == "int64" else ("a", "b", "c", "d")
    publish(the_plan, {one: 1})
    for key in (two, three, four):
        change(the_plan, {key: 1}, [one])
    deltas = tmp_path / "feed" / "items" / "1.delta"
    shutil.rmtree(deltas / "2")
    with pytest.raises(ArtifactInvalid, match="delta 2 is missing"):
        change(the_plan, {two: 5})
    shutil.rmtree(deltas)
    assert change(the_plan, {three: 7}).deltas == (1, 2, 3, 4)
    check(opened(tmp_path), the_plan, {one: 1, three: 7}, [one, two, three, four])
    shutil.rmtree(deltas / "4")
    assert change(the_plan, {four: 8}).deltas == (1, 2, 3, 4, 5)
    check(opened(tmp_path), the_plan, {one: 1, four: 8}, [one, two, three, four])
    assert compact(tmp_path / "feed", "items").version == 2
    check(opened(tmp_path), the_plan, {one: 1, four: 8}, [one, two, three, four])


def test_many_deltas_that_were_removed_are_not_filled(tmp_path):
    publish(plan(tmp_path), {1: 1})
    change(plan(tmp_path), {2: 2})
    (tmp_path / "feed" / "items" / ".1.delta.last").write_bytes(b"9" * 15)
    with pytest.raises(ArtifactInvalid) as refused:
        change(plan(tmp_path), {3: 3})
    assert str(refused.value) == (
        "items/1: deltas 2 to 999999999999999 were removed (items/.1.delta.last has the last "
        "number): restore them, or publish a new table"
    )
    assert find_table(tmp_path / "feed", "items").deltas == (1,)


@pytest.mark.parametrize("content", [b"", b"x", b"-3", b"9" * 5000, b"\xff"])
def test_a_damaged_note_of_the_last_number_does_not_matter(tmp_path, content):
    publish(plan(tmp_path), {1: 1})
    (tmp_path / "feed" / ".items.last").write_bytes(content)
    assert publish(plan(tmp_path), {1: 1}).version == 2
    assert (tmp_path / "feed" / ".items.last").read_bytes() == b"2\n"


def test_the_store_does_not_take_tables_for_versions(tmp_path):
    publish(plan(tmp_path), {1: 1})
    change(plan(tmp_path), {1: 1})
    listing = Store(tmp_path).scan()
    assert (listing.artifacts, dict(listing.ignored)) == ([], {})


def test_large_files_are_hashed_in_pieces(tmp_path, monkeypatch):
    for module in (descriptions, segment, writer):
        monkeypatch.setattr(module, "PIECE", 64)
    folder = publish(plan(tmp_path), {n: n for n in range(100)}).folder
    assert opened(tmp_path).rows == 100
    corrupt(folder / "rows")
    with pytest.raises(ArtifactInvalid, match="rows: its SHA-256"):
        opened(tmp_path)


def _publish_slowly(store, started):
    def fill(writer):
        for number in range(1000):
            add(writer, {number: number})
            started.set()
            time.sleep(0.01)

    publish_table(plan(store), fill)


def test_a_publisher_that_is_killed_leaves_no_table(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_publish_slowly, args=(tmp_path, started))
    process.start()
    assert started.wait(30)
    process.kill()
    process.join(30)
    assert tables_of(tmp_path / "feed", "items") == []
    left = list((tmp_path / "feed" / "items").iterdir())
    assert [path.name.startswith(".publishing-") for path in left] == [True]
    assert publish(plan(tmp_path), {1: 1}).version == 1
    assert not left[0].exists()


def test_publishers_at_once_get_different_numbers(tmp_path):
    def one(number):
        publish(plan(tmp_path), {1: number})

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listed = tables_of(tmp_path / "feed", "items")
    assert [table.version for table in listed] == list(range(1, 9))
    values = [open_table(table, "feed").take(np.array([0]))["price"][0, 0] for table in listed]
    assert sorted(values) == list(range(8))
    threads = [
        threading.Thread(target=change, args=(plan(tmp_path), {2 + number: number}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert find_table(tmp_path / "feed", "items").deltas == tuple(range(1, 9))
    assert opened(tmp_path).rows == 9


def test_compaction_needs_deltas_and_keeps_settings(tmp_path):
    publish(plan(tmp_path, unknown="default", max_age_s=5.0, sent=("distance",)), {1: 1})
    with pytest.raises(ArtifactInvalid, match="items/1 has no deltas"):
        compact(tmp_path / "feed", "items")
    change(plan(tmp_path), {1: 2})
    compact(tmp_path / "feed", "items")
    found = opened(tmp_path).description
    assert (found.unknown, found.max_age_s, found.sent) == ("default", 5.0, ("distance",))
    assert found.source == "items/1.1"


def test_a_read_only_store_can_be_read(tmp_path):
    folder = publish(plan(tmp_path), {1: 1}).folder
    change(plan(tmp_path), {2: 2})
    for path in (folder, folder.parent, tmp_path / "feed"):
        path.chmod(0o555)
    try:
        assert opened(tmp_path).rows == 2
    finally:
        for path in (folder, folder.parent, tmp_path / "feed"):
            path.chmod(0o755)


def test_columns_must_be_of_one_side_and_distinct(tmp_path):
    price = TableColumn(feature=DenseInput(name="price", side="candidate"))
    age = TableColumn(feature=DenseInput(name="age", side="user"))
    brand = TableColumn(
        feature=IdInput(name="brand", side="candidate", vocabulary_size=3), vocabulary="0" * 64
    )
    for columns, message in (
        ((price, price), "two columns have the same name"),
        ((price, age), 'column "age" is not a candidate feature'),
        ((price, brand), 'column "brand": digest'),
    ):
        defaults = np.zeros(
            1, descriptions.record_dtype([column.feature for column in columns[:1]])
        )
        with pytest.raises(ValueError, match=message):
            publish_table(plan(tmp_path, columns=columns, defaults=defaults), lambda _: None)
