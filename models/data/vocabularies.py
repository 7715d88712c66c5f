"""Write vocabularies: the ids of the training set, most frequent first."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from app.artifacts.encoding import Id, write_vocabulary
from models.data import arrow_columns
from models.data.scan import units_of
from models.data.schema import DataInvalid, DenseColumns, FilesConfig, IdListColumn, VocabularyIds
from models.data.table import TRAIN, parts_of, required_columns
from models.data.table_inputs import VocabularySize


def make(config: FilesConfig) -> dict[Path, VocabularySize]:
    """Write every vocabulary that does not exist; return the size of each new file.

    Ids are sorted by frequency in the training set, then by value.

    Raises:
        DataInvalid: the files do not match the schema, or a vocabulary would be empty.
    """
    made = {}
    listed = {
        feature.name: feature.encoding
        for feature in config.features
        if not isinstance(feature, DenseColumns) and isinstance(feature.encoding, VocabularyIds)
    }
    absent = {name: ids for name, ids in listed.items() if not config.path(ids.file).exists()}
    for name, counts in _count(config, absent).items():
        path, ids = config.path(absent[name].file), absent[name]
        kept = [identifier for identifier, count in counts.items() if count >= ids.min_count]
        if not kept:
            raise DataInvalid(
                f"{path}: no id occurs {ids.min_count} times (min_count) in the training set"
            )
        kept.sort(key=lambda identifier: (-counts[identifier], identifier))
        path.write_bytes(write_vocabulary(kept))
        made[path] = VocabularySize(len(kept), len(counts) - len(kept))
    return made


def _count(config: FilesConfig, owners: Mapping[str, VocabularyIds]) -> dict[str, Counter[Id]]:
    """Number of occurrences of each id in the training set, by the owner of the vocabulary."""
    counts: dict[str, Counter[Id]] = {name: Counter() for name in owners}
    if not owners:
        return counts
    for unit in units_of(config):
        if unit.part not in (None, TRAIN):
            continue
        for chunk in unit.file.chunks(unit.number, list(required_columns(config))):
            parts = parts_of(config, chunk, unit.part)
            table = chunk.table.filter(pa.array(np.asarray(parts == TRAIN)))
            for feature in config.features:
                if isinstance(feature, DenseColumns):
                    continue
                owner = feature.shared_with or feature.name
                if owner in owners:
                    array = table[feature.column]
                    if isinstance(feature, IdListColumn):
                        array, _ = arrow_columns.lists(array, feature.separator)
                    counts[owner].update(arrow_columns.distinct_ids(array, owners[owner].ids))
    return counts
