"""Key to row, in arrays that can be memory-mapped.

Keys are sorted by a 64-bit hash. The first bits of the hash name a bucket, and `starts` says where
each bucket starts among the sorted keys: there are two to four times as many buckets as keys, so a
bucket has a few keys. A lookup hashes n keys, reads the keys of their buckets side by side,
`[n, w]` with w the most keys of one of them, and compares.

The hash of an int64 is SplitMix64, which is a bijection. The hash of a string is SplitMix64 of
n + Σ wᵢ·aᵢ mod 2⁶⁴: n is the number of its UTF-8 bytes, wᵢ are those bytes as 32-bit words, padded
with zeros, and aᵢ are odd numbers drawn by the seed (multilinear hashing, Lemire and Kaser 2014).
A string is found only if its bytes are equal, not only its hash.

Each index has a random seed, so nobody can choose keys that share a bucket.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from app.artifacts.encoding import hash_integers
from app.errors import ArtifactInvalid

Int64 = npt.NDArray[np.int64]
Uint64 = npt.NDArray[np.uint64]
Int32 = npt.NDArray[np.int32]
Uint32 = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]

LONGEST_KEY = 256
"""The most characters of a string key; also the limit of a key in a request."""
LONGEST_KEY_BYTES = 4 * LONGEST_KEY
"""The most bytes of a string key in UTF-8."""

MOST_IN_BUCKET = 64
"""Keys of one bucket. Half a million tables of a billion keys would have one with 20."""
_MOST_BITS = 28  # of a bucket's number: its starts take 1 GiB
_SEEDS = 8  # that are tried until no bucket has too many keys
_PIECE = 2**20  # entries that are checked together
_RANGE = np.arange(256)


class KeyIndex(Protocol):
    """Finds the rows of keys."""

    @property
    def rows(self) -> Int32:
        """The row of each entry, `[m]`; -1 for a key that is removed."""

    def find(self, keys: Int64 | Sequence[str]) -> Int64:
        """Return the row of each key, int64 `[n]`; -1 for a key that is not there."""

    def check(self) -> None:
        """Check the arrays, as far as lookups depend on them.

        Raises:
            ArtifactInvalid: they are not an index.
        """

    def keys_at(self, entries: Int64) -> list[int] | list[str]:
        """Return the keys of some entries, `[n]`."""


@dataclass(frozen=True, slots=True, eq=False)
class Int64Index:
    """An index of int64 keys.

    Attributes:
        seed: of the hash.
        bits: there are `2^bits` buckets.
        keys: `[m]` in the order of their hashes.
        rows: `[m]` the row of each; -1 for a key that is removed.
        starts: `[2^bits + 1]`.
    """

    seed: int
    bits: int
    keys: Int64
    rows: Int32
    starts: Uint32

    def find(self, keys: Int64 | Sequence[str]) -> Int64:
        """Return the row of each key, int64 `[n]`; -1 for a key that is not there."""
        wanted = np.asarray(keys, np.int64)
        if len(wanted) == 0 or len(self.keys) == 0:
            return np.full(len(wanted), -1)
        first, slots = _slots(self.starts, hash_integers(wanted, self.seed), self.bits)
        if slots.shape[1] == 0:
            return np.full(len(wanted), -1)
        match = self.keys.take(slots, mode="clip") == wanted[:, None]  # [n, w]
        return _rows_at(self.rows, first + match.argmax(axis=1), match.any(axis=1))

    def check(self) -> None:
        """Check the arrays; see `KeyIndex.check`."""
        entries = len(self.keys)
        _check_order(self.starts, self.bits, entries, self._hashes)

    def _hashes(self, at: slice) -> Uint64:
        return hash_integers(self.keys[at], self.seed)

    def keys_at(self, entries: Int64) -> list[int]:
        """Return the keys of some entries, `[n]`."""
        keys: list[int] = self.keys[entries].tolist()
        return keys


@dataclass(frozen=True, slots=True, eq=False)
class StringIndex:
    """An index of strings.

    Attributes:
        seed: of the hash.
        bits: there are `2^bits` buckets.
        words: the keys in the order of their hashes, UTF-8, each padded with zeros to 64-bit words;
            one word more at the end.
        places: `[m]` where each key is: the number of its first word · 2^16 + its bytes.
        hashes: `[m]` ascending.
        rows: `[m]` the row of each; -1 for a key that is removed.
        starts: `[2^bits + 1]`.
    """

    seed: int
    bits: int
    words: Uint64
    places: Int64
    hashes: Uint64
    rows: Int32
    starts: Uint32

    def find(self, keys: Int64 | Sequence[str]) -> Int64:
        """Return the row of each key, int64 `[n]`; -1 for a key that is not there."""
        if len(keys) == 0 or len(self.hashes) == 0:
            return np.full(len(keys), -1)
        wanted = pad(keys)  # type: ignore[arg-type]
        hashes = hash_strings(wanted, self.seed)
        first, slots = _slots(self.starts, hashes, self.bits)
        if slots.shape[1] == 0:
            return np.full(len(keys), -1)
        match = self.hashes.take(slots, mode="clip") == hashes[:, None]  # [n, w]
        while True:
            best = match.argmax(axis=1)
            slot = first + best
            is_found = self._equal(slot, wanted)
            if is_found.all():
                return _rows_at(self.rows, slot, is_found)
            differs = ~is_found & match.any(axis=1)
            if not differs.any():
                return _rows_at(self.rows, slot, is_found)
            match[differs, best[differs]] = False  # another key with this hash; try the next

    def _equal(self, slot: Int64, wanted: "PaddedStrings") -> Flags:
        """Return whether the keys at `slot` are the strings that are looked up, `[n]`."""
        place = self.places.take(slot, mode="clip")
        width = wanted.words.shape[1]
        at = (place >> 16)[:, None] + _RANGE[:width]  # [n, k]
        equal = np.equal(self.words.take(at, mode="clip"), wanted.words)
        needed = (wanted.length + 7) >> 3  # [n] words; behind them is the next key
        if needed.min() < width:
            equal |= needed[:, None] <= _RANGE[:width]
        same: Flags = equal.all(axis=1) & ((place & 0xFFFF) == wanted.length)
        return same

    def check(self) -> None:
        """Check the arrays; see `KeyIndex.check`."""
        length = self.places & 0xFFFF
        words = (length + 7) >> 3
        expected = np.cumsum(words) - words
        if (self.places >> 16 != expected).any() or len(self.words) != words.sum() + 1:
            raise ArtifactInvalid("keys.places: do not fit to keys")
        if len(length) and length.max() > LONGEST_KEY_BYTES:
            raise ArtifactInvalid(f"keys: a key has {length.max()} bytes")
        _check_order(self.starts, self.bits, len(self.hashes), self.hashes.__getitem__)

    def keys_at(self, entries: Int64) -> list[str]:
        """Return the keys of some entries, `[n]`."""
        content = self.words.view(np.uint8).data
        place = self.places[entries]
        starts, lengths = ((place >> 16) * 8).tolist(), (place & 0xFFFF).tolist()
        return [
            str(content[start : start + length], "utf-8", "replace")
            for start, length in zip(starts, lengths, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class PaddedStrings:
    """Strings as rows of UTF-8 bytes, padded with zeros.

    Attributes:
        words: uint64 `[n, k]`, little-endian.
        length: int64 `[n]` bytes.
    """

    words: Uint64
    length: Int64

    def __len__(self) -> int:
        """Return the number of strings."""
        return len(self.length)


def pad(keys: Sequence[str]) -> PaddedStrings:
    """Return strings as UTF-8 bytes. One that cannot be a key gets the length -1, which no key has.

    Such are strings of more than `LONGEST_KEY` characters, and lone surrogates, which have no UTF-8
    form.
    """
    length = np.fromiter(map(len, keys), np.int64, len(keys))  # [n]
    if len(keys) and length.max() > LONGEST_KEY:
        padded = pad([key if len(key) <= LONGEST_KEY else "" for key in keys])
        padded.length[length > LONGEST_KEY] = -1
        return padded
    try:
        strings = np.array(keys, _bytes_type(length))  # [n]; fails unless all are ASCII
    except UnicodeEncodeError:
        encoded = [key.encode("utf-8", "surrogatepass") for key in keys]
        length = np.fromiter(map(len, encoded), np.int64, len(keys))
        strings = np.array(encoded, _bytes_type(length))
    words = np.frombuffer(strings.data, "<u8").reshape(len(keys), strings.itemsize // 8)
    return PaddedStrings(words, length)


def _bytes_type(length: Int64) -> str:
    """Return the type of byte strings that has room for these, in whole 64-bit words."""
    return f"S{max(8, -(-int(length.max(initial=0)) // 8) * 8)}"


def hash_strings(keys: PaddedStrings, seed: int) -> Uint64:
    """Return the hashes of strings, uint64 `[n]`."""
    halves = keys.words.view("<u4")  # [n, 2k]
    factors = _factors(seed)[: halves.shape[1]]
    sums = halves.astype(np.uint64) @ factors + keys.length.view(np.uint64)
    return hash_integers(sums.view(np.int64), seed)


@lru_cache(maxsize=32)
def _factors(seed: int) -> Uint64:
    """Return the factors of the words of a string, `[words]`: odd, and different for each seed."""
    return hash_integers(np.arange(LONGEST_KEY_BYTES // 4), seed) | np.uint64(1)


def _slots(starts: Uint32, hashes: Uint64, bits: int) -> tuple[Int64, Int64]:
    """Return where the buckets of hashes start, `[n]`, and the places to look at, `[n, w]`."""
    bucket = _bucket(hashes, bits)
    first = starts.take(bucket).astype(np.int64)  # [n]
    widest = int((starts.take(bucket + 1) - first).max())
    return first, first[:, None] + _RANGE[:widest]


def _bucket(hashes: Uint64, bits: int) -> Int64:
    return (hashes >> np.uint64(64 - bits)).view(np.int64)


def _rows_at(rows: Int32, slot: Int64, is_found: Flags) -> Int64:
    at = rows.take(slot, mode="clip").astype(np.int64)  # [n]
    if not is_found.all():
        at[~is_found] = -1
    return at


def _check_order(
    starts: Uint32, bits: int, entries: int, hashes_of: Callable[[slice], Uint64]
) -> None:
    """Check that keys are in the order of their hashes, and that the buckets start where they do.

    Raises:
        ArtifactInvalid: they are not.
    """
    if starts[0] != 0 or starts[-1] != entries:
        raise ArtifactInvalid("keys.starts: do not cover keys")
    widest = 0
    for begin in range(0, len(starts) - 1, _PIECE):
        step = np.diff(starts[begin : begin + _PIECE + 1].astype(np.int64))
        if step.min() < 0:
            raise ArtifactInvalid("keys.starts: are not ascending")
        widest = max(widest, int(step.max()))
    if widest > MOST_IN_BUCKET:
        raise ArtifactInvalid(f"keys.starts: a bucket has {widest} keys, limit {MOST_IN_BUCKET}")
    last = np.uint64(0)
    for begin in range(0, entries, _PIECE):
        hashes = hashes_of(slice(begin, begin + _PIECE))
        bucket = _bucket(hashes, bits)
        at = np.arange(begin, begin + len(hashes))
        inside = (starts.take(bucket) <= at) & (at < starts.take(bucket + 1))
        if hashes[0] < last or (hashes[1:] < hashes[:-1]).any() or not inside.all():
            raise ArtifactInvalid("keys: are not in the order of their hashes")
        last = hashes[-1]


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A new index, and the keys that it has twice.

    Attributes:
        index: in memory.
        same: int64 `[d, 2]`: pairs of entries with the same key, the one that was given first
            first; an index must have none.
    """

    index: Int64Index | StringIndex
    same: Int64


def build(parts: Sequence[Int64 | PaddedStrings], rows: Int32) -> BuiltIndex:
    """Return an index of keys and the row of each, `[m]`.

    Args:
        parts: the keys, in parts of any size; all int64, or all strings.
        rows: one per key.

    Raises:
        ArtifactInvalid: too many keys share a bucket with every seed that was tried.
    """
    count = len(rows)
    bits = min(_MOST_BITS, max(1, (2 * count - 1).bit_length()))
    for _ in range(_SEEDS):
        seed = secrets.randbits(32)
        hashes = np.concatenate([np.zeros(0, np.uint64), *(_hash(part, seed) for part in parts)])
        order = np.argsort(hashes, kind="stable")
        sorted_hashes = hashes[order]
        same = _same(parts, order, sorted_hashes)
        sizes = np.bincount(_bucket(sorted_hashes, bits), minlength=2**bits)
        if sizes.max() <= MOST_IN_BUCKET or len(same):
            break
    else:
        raise ArtifactInvalid(f"more than {MOST_IN_BUCKET} keys have nearly the same hash")
    starts = np.zeros(2**bits + 1, np.uint32)
    np.cumsum(sizes, out=starts[1:])
    ordered = rows[order]
    if strings := [part for part in parts if isinstance(part, PaddedStrings)]:
        words, places = _packed(strings, order)
        index = StringIndex(seed, bits, words, places, sorted_hashes, ordered, starts)
        return BuiltIndex(index, same)
    integers = [part for part in parts if not isinstance(part, PaddedStrings)]
    keys = np.concatenate([np.zeros(0, np.int64), *integers])[order]
    return BuiltIndex(Int64Index(seed, bits, keys, ordered, starts), same)


def _hash(keys: Int64 | PaddedStrings, seed: int) -> Uint64:
    if isinstance(keys, PaddedStrings):
        return hash_strings(keys, seed)
    return hash_integers(keys, seed)


def _same(parts: Sequence[Int64 | PaddedStrings], order: Int64, hashes: Uint64) -> Int64:
    """Return pairs of entries with the same key, int64 `[d, 2]`: its first entry and another.

    Args:
        parts: all keys.
        order: of the entries, by hash, then as they were given.
        hashes: in that order.
    """
    equal = np.flatnonzero(hashes[1:] == hashes[:-1])
    ends = np.cumsum([len(part) for part in parts])
    seen: dict[object, int] = {}
    run = None
    pairs = []
    for place in np.union1d(equal, equal + 1).tolist():
        if hashes[place] != run:
            seen, run = {}, hashes[place]
        entry = int(order[place])
        part = int(np.searchsorted(ends, entry, side="right"))
        at = entry - int(ends[part]) + len(parts[part])
        first = seen.setdefault(_comparable(parts[part], at), entry)
        if first != entry:
            pairs.append((first, entry))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _comparable(keys: Int64 | PaddedStrings, at: int) -> object:
    if isinstance(keys, PaddedStrings):
        length = int(keys.length[at])
        return keys.words[at].tobytes()[:length]
    return int(keys[at])


def _packed(parts: Sequence[PaddedStrings], order: Int64) -> tuple[Uint64, Int64]:
    """Return the words of strings in another order, without those that only pad, and places."""
    length = np.concatenate([part.length for part in parts])
    needed = (length + 7) >> 3  # [m] words of part
    source = [
        part.words.reshape(-1)[
            (((part.length + 7) >> 3)[:, None] > _RANGE[: part.words.shape[1]]).reshape(-1)
        ]
        for part in parts
    ]
    words = np.concatenate(source)  # as they were given
    begins = np.cumsum(needed) - needed
    sizes = needed[order]
    target = np.cumsum(sizes) - sizes
    packed = np.zeros(len(words) + 1, np.uint64)
    for begin in range(0, len(order), _PIECE):
        chosen = slice(begin, begin + _PIECE)
        step = np.repeat(begins[order[chosen]] - target[chosen], sizes[chosen])
        first = int(target[begin])
        packed[first : first + len(step)] = words[step + np.arange(first, first + len(step))]
    return packed, (target << 16) | length[order]
