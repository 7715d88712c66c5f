"""Tables of random rows in a store of `tiny`."""

from app.artifacts.manifest import Manifest
from tests.support.model_tables import change_rows, publish_rows, random_rows

KEYS = range(1, 41)


def publish(folder, manifest, seed=0, kind="items", **changes):
    key = "item_id" if kind == "items" else "user_id"
    rows = random_rows(manifest, kind, list(KEYS), seed)
    return publish_rows(folder, manifest, kind, key, rows, **changes)


def change(folder, manifest, key, seed=9, **changes):
    rows = random_rows(manifest, "items", [key], seed)
    return change_rows(folder, manifest, "items", "item_id", rows, **changes)


def items_of(registry, model):
    """Return the items table that a version serves from."""
    assert model is not None
    bound = registry.tables[model].items
    assert bound is not None
    return bound.table


def with_input(manifest, name, **changes):
    """Return a manifest with another entry for one feature."""
    document = manifest.model_dump(mode="json")
    for entry in document["inputs"]:
        if entry["name"] == name:
            entry.update(changes)
    return Manifest.model_validate(document)
