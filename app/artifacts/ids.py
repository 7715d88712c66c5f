"""From rows of embedding tables back to ids, for examples, for people and for the traffic log.

A listed vocabulary maps each row back to its id. A hash cannot be inverted: the id is then a
made-up one of the right type.
"""

import itertools
from typing import Any
from weakref import WeakKeyDictionary

from app.artifacts.columns import Columns
from app.artifacts.encoding import Hashed, Id, Identity, Listed, Vocabularies
from app.artifacts.inputs import IdInput, IdListInput, Input
from app.artifacts.loader import Interface

LONGEST_LIST = 5

_of_model: WeakKeyDictionary[Interface, "Ids"] = WeakKeyDictionary()


def ids_of(model: Interface) -> "Ids":
    """Return the `Ids` of a model, which are made once."""
    ids = _of_model.get(model)
    if ids is None:
        ids = _of_model[model] = Ids(model.vocabularies)
    return ids


class Ids:
    """Maps rows of embedding tables back to ids."""

    def __init__(self, vocabularies: Vocabularies) -> None:
        self._by_row = {
            feature: dict(zip(vocabulary.values(), vocabulary.keys(), strict=True))
            for feature, vocabulary in vocabularies.items()
        }

    def of(self, feature: IdInput | IdListInput, rows: list[int]) -> list[Id]:
        """Return an id for each row; a made-up one if the vocabulary has none for it."""
        known = self._by_row.get(feature.name, {})
        match feature.encoding:
            case Identity():
                return list(rows)
            case Hashed(ids="string") | Listed(ids="string"):
                return [known.get(row, f"{feature.name}-{row}") for row in rows]
            case _:
                return [known.get(row, row) for row in rows]


def feature_values(
    feature: Input, columns: Columns, rows: int, ids: Ids, shown_ids: int | None = LONGEST_LIST
) -> list[Any]:
    """Return the values of a feature as a request has them; at most `shown_ids` of a list."""
    values = list(columns[feature.name][:rows])
    if isinstance(feature, IdListInput):
        shown = [_unpadded(feature, rows.tolist())[:shown_ids] for rows in values]
        return [ids.of(feature, rows) for rows in shown]
    if isinstance(feature, IdInput):
        return ids.of(feature, [int(row) for row in values])
    return list(itertools.chain.from_iterable(values)) if feature.dim == 1 else values


def _unpadded(feature: IdListInput, rows: list[int]) -> list[int]:
    if feature.reserves_padding:  # a golden request may have it between ids; a request may not
        return [row for row in rows if row != feature.padding]
    step = -1 if feature.padding_side == "right" else 1
    kept = list(itertools.dropwhile(lambda row: row == feature.padding, rows[::step]))
    return kept[::step]
