"""Encodings give the same row for the same id, always and in any language."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from app.artifacts.encoding import NOT_KNOWN, Hashed, Listed, hash_integers, hash_strings, rows_of
from app.artifacts.inputs import IdInput, IdListInput

LISTED = Listed(file="vocabulary.brand.jsonl")


def test_hashes_never_change():
    # Artifacts that are in use were trained with these numbers.
    strings = hash_strings(["", "a", "item-000123", "é"], seed=0)
    assert strings.tolist() == [
        0xE220A8397B1DCDAF,
        0x6AFE59E5BB345A16,
        0x3AFC988F9963AA47,
        0xF31119C4FEAE8457,
    ]
    integers = hash_integers(np.array([0, 1, -1, 2**63 - 1]), seed=42)
    assert integers.tolist() == [
        0x07DC930B302278A8,
        0x3C821FBF59108163,
        0x0BE2AF7DE053863B,
        0x91A428DB1352A9B4,
    ]


def test_zero_hashes_to_the_first_number_of_split_mix():
    # The first output of SplitMix64 from state 0, as its authors print it.
    assert hash_integers(np.array([0]), seed=0).tolist() == [0xE220A8397B1DCDAF]


def test_hashed_ids_spread_evenly_over_their_buckets():
    for encoding, ids in (
        (Hashed(buckets=10), [f"item-{i}" for i in range(10_000)]),
        (Hashed(buckets=10, ids="int64"), list(range(10_000))),
    ):
        counts = np.bincount(rows_of(encoding, ids, {}), minlength=11)
        assert counts[0] == 0
        assert counts[1:].min() > 850
        assert counts[1:].max() < 1150


def test_another_seed_gives_other_rows():
    ids = [f"item-{i}" for i in range(1000)]
    one, other = (rows_of(Hashed(buckets=100, seed=seed), ids, {}) for seed in (0, 1))
    assert 0 < np.count_nonzero(one == other) < 40


@given(st.lists(st.text()), st.integers(1, 2**31 - 1), st.integers(0, 2**63 - 1))
def test_an_id_has_the_row_that_it_has_alone(ids, buckets, seed):
    encoding = Hashed(buckets=buckets, seed=seed)
    alone = [int(rows_of(encoding, [identifier], {})[0]) for identifier in ids]
    assert rows_of(encoding, ids, {}).tolist() == alone
    assert all(row == NOT_KNOWN or 1 <= row <= buckets for row in alone)
    assert [row == NOT_KNOWN for row in alone] == [identifier == "" for identifier in ids]


def test_empty_list_of_ids_gives_no_rows():
    for encoding in (LISTED, Hashed(buckets=3), Hashed(ids="int64", buckets=3)):
        rows = rows_of(encoding, [], {})
        assert rows.shape == (0,)
        assert rows.dtype == np.int64


@pytest.mark.parametrize(
    ("encoding", "default", "message"),
    [
        (Hashed(buckets=10), None, "vocabulary_size must be greater than encoding.buckets, 10"),
        (Hashed(buckets=9), 3, "default: ids of this encoding are strings"),
        (Hashed(buckets=9, ids="int64"), "3", "default: ids of this encoding are integers"),
        (LISTED, 3, "default: ids of this encoding are strings"),
    ],
)
def test_an_input_that_does_not_fit_its_encoding_is_refused(encoding, default, message):
    fields = {"side": "user", "vocabulary_size": 10, "encoding": encoding}
    with pytest.raises(ValidationError, match=message):
        IdInput(name="x", default=default, **fields)
    lists = () if default is None else (default,)
    with pytest.raises(ValidationError, match=message):
        IdListInput(name="x", max_length=3, default=lists, **fields)


@pytest.mark.parametrize("file", ["../vocabulary.a.jsonl", "vocabulary.a/b.jsonl", "model.ts"])
def test_vocabulary_file_name_cannot_leave_the_artifact(file):
    with pytest.raises(ValidationError):
        Listed(file=file)


@pytest.mark.parametrize("counts", [{"buckets": 0}, {"buckets": -1}, {"buckets": 5, "seed": -1}])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValidationError):
        Hashed(**counts)
