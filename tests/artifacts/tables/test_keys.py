"""The index of keys against a dict."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from app.artifacts.encoding import hash_integers
from app.artifacts.tables import keys as tables_keys
from app.artifacts.tables.keys import Int64Index, StringIndex, build, hash_strings, pad
from app.errors import ArtifactInvalid

EXTREMES = [-(2**63), 2**63 - 1, 0, -1, 1]
integers = st.one_of(
    st.sampled_from(EXTREMES), st.integers(-(2**63), 2**63 - 1), st.integers(0, 40)
)
texts = st.one_of(
    st.text(max_size=6), st.sampled_from(["", "\0", "a\0", "é", "𝄞" * 256, "x" * 256, "ab", "abc"])
)


def parts_of(keys):
    """Two parts, so that their border is tested."""
    middle = len(keys) // 2
    parts = [keys[:middle], keys[middle:]]
    is_text = bool(keys) and isinstance(keys[0], str)
    return [pad(part) if is_text else np.array(part, np.int64) for part in parts]


def built(keys):
    rows = np.arange(len(keys), dtype=np.int32)[::-1].copy()
    found = build(parts_of(keys), rows)
    assert len(found.same) == 0
    found.index.check()
    return found.index, dict(zip(keys, rows.tolist(), strict=True))


@given(st.lists(integers, unique=True), st.lists(integers))
def test_index_of_integers_finds_what_a_dict_finds(keys, others):
    index, twin = built(keys)
    asked = keys + others
    found = index.find(np.array(asked, np.int64))
    assert found.dtype == np.int64
    assert found.tolist() == [twin.get(key, -1) for key in asked]


@given(st.lists(texts, unique=True, min_size=1), st.lists(texts))
def test_index_of_strings_finds_what_a_dict_finds(keys, others):
    index, twin = built(keys)
    asked = keys + others
    assert index.find(asked).tolist() == [twin.get(key, -1) for key in asked]
    assert sorted(index.keys_at(np.arange(len(keys)))) == sorted(keys)


@given(st.lists(texts, unique=True, min_size=1), st.lists(texts), st.integers(1, 64))
def test_strings_with_equal_hashes_are_told_apart(keys, others, distinct):
    """Every hash is one of a few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tables_keys,
            "hash_strings",
            lambda keys, _: hash_strings(keys, 3) % np.uint64(distinct) * np.uint64(2**58 - 1),
        )
        patch.setattr(tables_keys, "MOST_IN_BUCKET", 1000)
        index, twin = built(keys)
        asked = keys + others
        assert index.find(asked).tolist() == [twin.get(key, -1) for key in asked]
        again = build(parts_of([*keys, *keys[::-1]]), np.arange(2 * len(keys), dtype=np.int32))
        pairs = {tuple(pair) for pair in again.same.tolist()}
        assert pairs == {(i, 2 * len(keys) - 1 - i) for i in range(len(keys))}


@given(st.lists(texts, min_size=1))
def test_hash_of_strings_is_the_documented_sum(keys):
    seed = 7
    factors = [int(hashed) | 1 for hashed in hash_integers(np.arange(256), seed)]
    sums = []
    for key in keys:
        content = key.encode()
        padded = content + b"\0" * (-len(content) % 4)
        words = [int.from_bytes(padded[i : i + 4], "little") for i in range(0, len(padded), 4)]
        total = sum(w * a for w, a in zip(words, factors, strict=False))
        sums.append((len(content) + total) % 2**64)
    expected = hash_integers(np.array(sums, np.uint64).view(np.int64), seed)
    assert hash_strings(pad(keys), seed).tolist() == expected.tolist()


def test_repeated_integers_are_reported_with_their_first_place():
    found = build([np.array([5, 6, 5, 7, 5, 6])], np.arange(6, dtype=np.int32))
    assert sorted(map(tuple, found.same.tolist())) == [(0, 2), (0, 4), (1, 5)]


def test_keys_longer_than_any_in_the_index_are_unknown():
    keys = [f"{'é' * 200}{number}" for number in range(2000)]
    index, twin = built(keys)
    asked = [*keys, "x" * 70_000, "", *keys[::-1]]
    assert index.find(asked).tolist() == [twin.get(key, -1) for key in asked]


def test_a_lone_surrogate_is_an_unknown_key():
    index, _ = built(["a", "é", "𝄞"])
    assert index.find(["\ud834", "\udd1e", "𝄞", "a\ud800"]).tolist() == [-1, -1, 0, -1]


def test_an_empty_index_knows_no_key():
    assert built([])[0].find(np.array([1, 2])).tolist() == [-1, -1]
    empty = build([pad([])], np.zeros(0, np.int32)).index
    empty.check()
    assert empty.find(["a", ""]).tolist() == [-1, -1]


def test_keys_that_share_a_bucket_in_spite_of_every_seed_are_refused(monkeypatch):
    monkeypatch.setattr(tables_keys, "hash_strings", lambda keys, _: np.zeros(len(keys), np.uint64))
    with pytest.raises(ArtifactInvalid, match="nearly the same hash"):
        build([pad([f"{n}" for n in range(100)])], np.arange(100, dtype=np.int32))


@pytest.mark.parametrize("field", ["starts", "keys"])
def test_a_damaged_index_of_integers_is_refused(field):
    index, _ = built(list(range(50)))
    damaged = getattr(index, field).copy()
    damaged[[0, -1]] = damaged[[-1, 0]]  # of different buckets, whatever the seed of the hash
    changed = {name: getattr(index, name) for name in ("seed", "bits", "keys", "rows", "starts")}
    with pytest.raises(ArtifactInvalid):
        Int64Index(**changed | {field: damaged}).check()


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        *[("starts", 2**32 - 1, place) for place in (0, 3, -1)],
        ("starts", 0, -1),
        *[("places", value, place) for value in (-1, 10**6) for place in (0, 3, -1)],
        *[("hashes", None, place) for place in (0, 3, -1)],
    ],
)
def test_a_damaged_index_of_strings_is_refused(field, value, place):
    index, _ = built([f"key {n}" for n in range(50)])
    damaged = getattr(index, field).copy()
    damaged[place] = ~damaged[place] if value is None else value
    names = ("seed", "bits", "words", "places", "hashes", "rows", "starts")
    changed = {name: getattr(index, name) for name in names}
    with pytest.raises(ArtifactInvalid):
        StringIndex(**changed | {field: damaged}).check()
