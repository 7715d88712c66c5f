"""Tables and deltas that are wrong, missing or replaced leave those before them in use."""

import logging
import shutil

import numpy as np
import pytest

from app.artifacts.tables.listing import find_table
from app.artifacts.tables.table import open_table
from app.lifecycle import open_tables
from app.main import gatehouse
from tests.lifecycle.item_tables import change, items_of, publish, with_input
from tests.lifecycle.serving import settings
from tests.support.artifacts import corrupt
from tests.support.model_tables import change_rows, random_rows


async def test_a_damaged_table_is_refused_once_and_the_one_before_serves(folder, manifest, caplog):
    publish(folder, manifest)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        corrupt(publish(folder, manifest, seed=1).folder / "rows")
        caplog.set_level(logging.ERROR)
        for _ in range(3):
            await parts.deployment.refresh()
        registry = parts.service.registry
        assert items_of(registry, registry.active("tiny")).version == 1
        (reason,) = registry.refused_tables.values()
        assert "rows" in reason
        assert list(registry.refused_tables) == [("tiny", "items/2")]
        messages = [
            record.getMessage() for record in caplog.records if "refused" in record.getMessage()
        ]
        assert messages == [f"table items/2 of model tiny is refused: {reason}"]
        labels = {"model": "tiny", "table": "items", "result": "refused"}
        value = parts.metrics.registry.get_sample_value
        assert value("gatehouse_table_swaps_total", labels) == 1
        assert value("gatehouse_refused_tables") == 1
        publish(folder, manifest, seed=2)
        shutil.rmtree(folder / "tiny" / "items" / "2")
        await parts.deployment.refresh()
        assert registry.refused_tables == {}
        assert items_of(registry, registry.active("tiny")).version == 3


async def test_a_damaged_delta_leaves_those_before_it(folder, manifest):
    publish(folder, manifest)
    change(folder, manifest, 100)
    listed = change(folder, manifest, 101)
    corrupt(listed.delta_folder(2) / "rows")
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        assert items_of(registry, registry.active("tiny")).label == "1.1"
        assert list(registry.refused_tables) == [("tiny", "items/1.2")]


async def test_deltas_after_a_missing_one_are_refused_until_it_is_there(folder, manifest, caplog):
    publish(folder, manifest)
    for key in (100, 101, 102):
        listed = change(folder, manifest, key)
    moved = folder / "moved"
    listed.delta_folder(2).rename(moved)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        for _ in range(2):
            await parts.deployment.refresh()
        assert items_of(registry, registry.active("tiny")).label == "1.1"
        (reason,) = registry.refused_tables.values()
        assert reason.startswith("delta 2 is missing, so delta 3 will not be applied: restore ")
        assert list(registry.refused_tables) == [("tiny", "items/1.3")]
        assert sum("delta 2 is missing" in record.getMessage() for record in caplog.records) == 1
        moved.rename(listed.delta_folder(2))
        await parts.deployment.refresh()
        assert items_of(registry, registry.active("tiny")).label == "1.3"
        assert registry.refused_tables == {}


async def test_a_replaced_delta_that_cannot_be_read_is_compared_again(
    folder, manifest, monkeypatch, tmp_path_factory
):
    publish(folder, manifest)
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder / "tiny", other / "tiny")
    applied, another = change(folder, manifest, 1, seed=8), change(other, manifest, 1, seed=9)

    def row(parts):
        registry = parts.service.registry
        table = items_of(registry, registry.active("tiny"))
        return table.take(table.find(np.array([1]))).tobytes()

    def unreadable(_):
        raise OSError("stale file handle")

    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        before = row(parts)
        shutil.rmtree(applied.delta_folder(1))
        shutil.copytree(another.delta_folder(1), applied.delta_folder(1))
        with monkeypatch.context() as patched:
            patched.setattr(open_tables, "read_description", unreadable)
            await parts.deployment.refresh()
        assert row(parts) == before
        await parts.deployment.refresh()
        assert row(parts) != before


@pytest.mark.parametrize("kind", ["items", "users"])
async def test_a_delta_that_is_removed_or_replaced_is_undone(folder, manifest, kind, caplog):
    """Another delta may have its number, for instance from a copy of the store."""
    publish(folder, manifest, kind=kind)
    keys = (1, 2, 3)
    name = "item_id" if kind == "items" else "user_id"
    for key in keys:
        rows = random_rows(manifest, kind, [key], seed=9)
        listed = change_rows(folder, manifest, kind, name, rows)

    def serving():
        registry = parts.service.registry
        bound = getattr(registry.tables[registry.active("tiny")], kind)
        rows = bound.table.take(bound.table.find(np.array(keys)))
        return bound.table.label, rows.tobytes()

    def expected(*sources):
        """The rows of these keys, each from a seed of random rows."""
        table = open_table(find_table(folder / "tiny", kind), "tiny", upto=0)
        of = {0: table, 9: table.extended(listed, 3)}
        found = [
            of[seed].take(of[seed].find(np.array([key])))
            for key, seed in zip(keys, sources, strict=True)
        ]
        return np.concatenate(found).tobytes()

    all_applied = expected(9, 9, 9)
    two_applied = expected(9, 9, 0)
    none_applied = expected(0, 0, 0)
    deltas = listed.delta_folder(1).parent
    aside = folder / "aside"
    shutil.copytree(deltas, aside)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        assert serving() == ("1.3", all_applied)
        shutil.rmtree(deltas / "3")
        for _ in range(2):
            await parts.deployment.refresh()
        assert serving() == ("1.2", two_applied)
        (warning,) = caplog.records
        place = f"{kind}/1.3"
        assert warning.getMessage() == (
            f"model tiny: its table {place} is made again without deltas: "
            "delta 3 was removed from the store"
        )
        # Restored by a copy: the same delta, but not the same file.
        shutil.copytree(aside / "3", deltas / ".3")
        (deltas / ".3").rename(deltas / "3")
        await parts.deployment.refresh()
        before = serving()
        assert before == ("1.3", all_applied)
        shutil.copytree(aside / "2", deltas / ".2")
        shutil.rmtree(deltas / "2")
        (deltas / ".2").rename(deltas / "2")
        caplog.clear()
        await parts.deployment.refresh()
        assert (serving(), caplog.records) == (before, [])
        # Another delta with the number of one that is applied.
        shutil.rmtree(deltas / "3")
        (deltas.parent / ".1.delta.last").unlink()
        row = random_rows(manifest, kind, [3], seed=8)
        change_rows(folder, manifest, kind, name, row)
        await parts.deployment.refresh()
        label, rows = serving()
        assert label == "1.3"
        assert rows not in (all_applied, two_applied)
        assert "delta 3 was replaced in the store" in caplog.text
        shutil.rmtree(deltas)
        await parts.deployment.refresh()
        assert serving() == ("1", none_applied)


async def test_a_table_that_does_not_fit_is_refused_with_the_reasons(folder, manifest):
    publish(folder, manifest)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        publish(folder, with_input(manifest, "quality", dim=3))
        await parts.deployment.refresh()
        registry = parts.service.registry
        assert items_of(registry, registry.active("tiny")).version == 1
        reason = registry.refused_tables["tiny", "items/2"]
        assert reason.startswith("does not fit tiny/1: ")
        assert "quality" in reason


async def test_a_removed_table_goes_on_serving_and_is_reported(folder, manifest, caplog):
    publish(folder, manifest)
    async with gatehouse(settings(folder)) as parts:
        await parts.start()
        registry = parts.service.registry
        publish(folder, manifest, seed=1)
        await parts.deployment.refresh()
        moved = folder / "moved"
        (folder / "tiny" / "items" / "2").rename(moved)
        for _ in range(2):
            await parts.deployment.refresh()
        assert items_of(registry, registry.active("tiny")).version == 2
        assert registry.table_problems == {
            ("tiny", "items/2"): "was removed from the store; items/1, the newest there, does not "
            "replace it: its number is lower"
        }
        assert sum("was removed" in record.getMessage() for record in caplog.records) == 1
        moved.rename(folder / "tiny" / "items" / "2")
        await parts.deployment.refresh()
        assert registry.table_problems == {}
